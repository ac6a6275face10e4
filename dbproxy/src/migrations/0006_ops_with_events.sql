-- The last event of a write by a client that counts keeps the write's op id and answer, while the client may still ask for them: a page less for a write
-- that is committed alone. What its client has the answer to is forgotten, all else is moved to _pando_op in time. `ops` in _pando_meta is the
-- event up to which that is done.
ALTER TABLE _pando_event ADD COLUMN client BLOB;
ALTER TABLE _pando_event ADD COLUMN counter INTEGER;
ALTER TABLE _pando_event ADD COLUMN fingerprint INTEGER;
ALTER TABLE _pando_event ADD COLUMN results TEXT;
INSERT INTO _pando_meta (key, value) SELECT 'ops', coalesce(max(seq), 0) FROM _pando_event;
