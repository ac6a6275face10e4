-- Each index is a further page in the log for each write that is committed alone.

-- Op ids of clients that count. The writer knows in memory where each stands: they are few, as clients say what they have answers to.
ALTER TABLE _pando_op RENAME TO _pando_op_before;
CREATE TABLE _pando_op (
    n           INTEGER PRIMARY KEY,
    client      BLOB NOT NULL,
    counter     INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    -- NULL when the op was settled as not applied.
    results     TEXT
) STRICT;
INSERT INTO _pando_op (n, client, counter, fingerprint, at, epoch, seq, results)
    SELECT n, client, op, fingerprint, at, epoch, seq, results FROM _pando_op_before WHERE typeof(client) = 'blob';

-- Op ids that somebody chose: a text, within a scope.
CREATE TABLE _pando_op_named (
    n           INTEGER PRIMARY KEY,
    scope       TEXT NOT NULL,
    name        TEXT NOT NULL,
    fingerprint INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    results     TEXT,
    UNIQUE (scope, name)
) STRICT;
INSERT INTO _pando_op_named (n, scope, name, fingerprint, at, epoch, seq, results)
    SELECT n, client, op, fingerprint, at, epoch, seq, results FROM _pando_op_before WHERE typeof(client) = 'text';
DROP TABLE _pando_op_before;

-- _pando_topic holds the last event of each topic, as of the event that `topics` in _pando_meta names.
INSERT INTO _pando_topic (topic, seq) SELECT topic, max(seq) FROM _pando_event WHERE true GROUP BY topic
    ON CONFLICT (topic) DO UPDATE SET seq = excluded.seq;
INSERT INTO _pando_meta (key, value) SELECT 'topics', coalesce(max(seq), 0) FROM _pando_event;
DROP INDEX _pando_event_topic;
