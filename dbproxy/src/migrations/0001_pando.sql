-- What Pando itself keeps: names with _pando_ are reserved.

-- The database's own id, and the term of the last primary.
CREATE TABLE _pando_meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- One row per applied write: a retry finds its answer here.
CREATE TABLE _pando_op (
    n           INTEGER PRIMARY KEY,
    op_id       TEXT NOT NULL UNIQUE,
    fingerprint INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    results     TEXT NOT NULL
) STRICT;

-- The journal: dense from 1, in commit order.
CREATE TABLE _pando_event (
    seq      INTEGER PRIMARY KEY,
    epoch    INTEGER NOT NULL,
    topic    TEXT NOT NULL,
    prev     INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    envelope TEXT NOT NULL
) STRICT;
CREATE INDEX _pando_event_topic ON _pando_event (topic, seq);

-- The last event of each topic whose events were pruned, so that prev stays right.
CREATE TABLE _pando_topic (
    topic TEXT PRIMARY KEY,
    seq   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
