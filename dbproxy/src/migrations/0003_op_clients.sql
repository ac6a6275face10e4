-- Op ids of clients that count: client is the UUID's 16 bytes and op the counter. Others: client is the scope, op the text.
ALTER TABLE _pando_op RENAME TO _pando_op_before;
CREATE TABLE _pando_op (
    n           INTEGER PRIMARY KEY,
    client      ANY NOT NULL,
    op          ANY NOT NULL,
    fingerprint INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    -- NULL when the op was settled as not applied.
    results     TEXT,
    UNIQUE (client, op)
) STRICT;
INSERT INTO _pando_op (n, client, op, fingerprint, at, epoch, seq, results)
    SELECT n,
        CASE WHEN counted THEN unhex(replace(substr(op_id, 1, 36), '-', '')) ELSE '' END,
        CASE WHEN counted THEN CAST(substr(op_id, 38) AS INTEGER) ELSE op_id END,
        fingerprint, at, epoch, seq, results
    FROM (SELECT *, op_id GLOB '????????-????-7???-????-????????????-[0-9]*' AND op_id NOT GLOB '*[g-z]*' AS counted
        FROM _pando_op_before);
DROP TABLE _pando_op_before;

-- What is forgotten of a client that counts: everything below.
CREATE TABLE _pando_client (
    client BLOB PRIMARY KEY,
    below  INTEGER NOT NULL,
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX _pando_client_at ON _pando_client (at);
