-- A database as release 0.1.0 made it with schema version 5, with a row in each table that a migration might touch.
CREATE TABLE _pando_migration (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum INTEGER NOT NULL, at TEXT NOT NULL, made_by TEXT NOT NULL
) STRICT;
CREATE TABLE _pando_meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE _pando_event (
    seq      INTEGER PRIMARY KEY,
    epoch    INTEGER NOT NULL,
    topic    TEXT NOT NULL,
    prev     INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    envelope TEXT NOT NULL
) STRICT;
CREATE TABLE _pando_topic (
    topic TEXT PRIMARY KEY,
    seq   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    id                 TEXT PRIMARY KEY NOT NULL,
    parent_session_id  TEXT,
    title              TEXT NOT NULL,
    message_count      INTEGER NOT NULL DEFAULT 0 CHECK (message_count >= 0),
    prompt_tokens      INTEGER NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    completion_tokens  INTEGER NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
    cost               REAL NOT NULL DEFAULT 0.0 CHECK (cost >= 0.0),
    updated_at         INTEGER NOT NULL DEFAULT (unixepoch()),
    created_at         INTEGER NOT NULL DEFAULT (unixepoch()),
    summary_message_id TEXT
);
CREATE TABLE messages (
    id          TEXT PRIMARY KEY NOT NULL,
    session_id  TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    role        TEXT NOT NULL,
    parts       TEXT NOT NULL DEFAULT '[]',
    model       TEXT,
    created_at  INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at  INTEGER NOT NULL DEFAULT (unixepoch()),
    finished_at INTEGER
);
CREATE TABLE files (
    id         TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    path       TEXT NOT NULL,
    content    TEXT NOT NULL,
    version    TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at INTEGER NOT NULL DEFAULT (unixepoch()),
    UNIQUE (path, session_id, version)
);
CREATE TABLE projects (
    id          TEXT PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL,
    path        TEXT NOT NULL UNIQUE,
    status      TEXT NOT NULL,
    initialized INTEGER NOT NULL DEFAULT 0 CHECK (initialized IN (0, 1)),
    acp_pid     INTEGER,
    acp_port    INTEGER,
    last_opened INTEGER,
    created_at  INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at  INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE TABLE prompt_templates (
    id         TEXT PRIMARY KEY NOT NULL,
    name       TEXT NOT NULL,
    section    TEXT NOT NULL,
    content    TEXT NOT NULL,
    version    INTEGER NOT NULL DEFAULT 1,
    is_active  INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    is_default INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    created_at INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE TABLE session_scores (
    id                TEXT PRIMARY KEY NOT NULL,
    session_id        TEXT NOT NULL,
    template_id       TEXT,
    reward            REAL NOT NULL,
    success_score     REAL NOT NULL,
    efficiency_score  REAL NOT NULL,
    judge_analysis    TEXT,
    judge_model       TEXT,
    prompt_tokens     INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    message_count     INTEGER NOT NULL DEFAULT 0,
    user_corrections  INTEGER NOT NULL DEFAULT 0,
    evaluated_at      INTEGER NOT NULL DEFAULT (unixepoch()),
    created_at        INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE TABLE skills (
    id                 TEXT PRIMARY KEY NOT NULL,
    title              TEXT NOT NULL,
    content            TEXT NOT NULL,
    source_session_id  TEXT,
    source_template_id TEXT,
    task_type          TEXT NOT NULL,
    usage_count        INTEGER NOT NULL DEFAULT 0,
    success_rate       REAL NOT NULL DEFAULT 0.0,
    is_active          INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    created_at         INTEGER NOT NULL DEFAULT (unixepoch()),
    updated_at         INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE TABLE _pando_client (
    client BLOB PRIMARY KEY,
    below  INTEGER NOT NULL,
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE _pando_app_migration (
    app      TEXT NOT NULL,
    id       INTEGER NOT NULL,
    name     TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    at       TEXT NOT NULL,
    made_by  TEXT NOT NULL,
    PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
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
CREATE INDEX sessions_by_parent ON sessions (parent_session_id);
CREATE INDEX messages_by_session ON messages (session_id, created_at);
CREATE INDEX files_by_session ON files (session_id, created_at);
CREATE INDEX prompt_templates_by_name ON prompt_templates (name, version);
CREATE INDEX session_scores_by_session ON session_scores (session_id);
CREATE INDEX session_scores_by_template ON session_scores (template_id);
CREATE INDEX skills_by_rate ON skills (is_active, success_rate, usage_count);
CREATE INDEX _pando_client_at ON _pando_client (at);
CREATE TRIGGER messages_count_up AFTER INSERT ON messages BEGIN
    UPDATE sessions SET message_count = message_count + 1, updated_at = unixepoch() WHERE id = NEW.session_id;
END;
CREATE TRIGGER messages_count_down AFTER DELETE ON messages BEGIN
    UPDATE sessions SET message_count = max(message_count - 1, 0), updated_at = unixepoch() WHERE id = OLD.session_id;
END;
CREATE TRIGGER messages_count_moved AFTER UPDATE OF session_id ON messages WHEN OLD.session_id IS NOT NEW.session_id BEGIN
    UPDATE sessions SET message_count = max(message_count - 1, 0), updated_at = unixepoch() WHERE id = OLD.session_id;
    UPDATE sessions SET message_count = message_count + 1, updated_at = unixepoch() WHERE id = NEW.session_id;
END;
CREATE TRIGGER sessions_touch AFTER UPDATE ON sessions WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE sessions SET updated_at = unixepoch() WHERE id = NEW.id;
END;
CREATE TRIGGER messages_touch AFTER UPDATE ON messages WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE messages SET updated_at = unixepoch() WHERE id = NEW.id;
END;
CREATE TRIGGER files_touch AFTER UPDATE ON files WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE files SET updated_at = unixepoch() WHERE id = NEW.id;
END;
CREATE TRIGGER projects_touch AFTER UPDATE ON projects WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE projects SET updated_at = unixepoch() WHERE id = NEW.id;
END;
CREATE TRIGGER prompt_templates_touch AFTER UPDATE ON prompt_templates WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE prompt_templates SET updated_at = unixepoch() WHERE id = NEW.id;
END;
CREATE TRIGGER skills_touch AFTER UPDATE ON skills WHEN NEW.updated_at IS OLD.updated_at AND NEW.updated_at < unixepoch() BEGIN
    UPDATE skills SET updated_at = unixepoch() WHERE id = NEW.id;
END;
INSERT INTO _pando_migration VALUES (1, 'pando', -8392017836262930091, '2026-11-21T00:00:00Z', '0.1.0');
INSERT INTO _pando_migration VALUES (2, 'agent_store', 3897661312043478529, '2026-11-21T00:00:00Z', '0.1.0');
INSERT INTO _pando_migration VALUES (3, 'op_clients', 7309243638549272624, '2026-11-21T00:00:00Z', '0.1.0');
INSERT INTO _pando_migration VALUES (4, 'app_migration', -6302135660262747155, '2026-11-21T00:00:00Z', '0.1.0');
INSERT INTO _pando_migration VALUES (5, 'fewer_pages', -4648637368628653454, '2026-11-21T00:00:00Z', '0.1.0');
INSERT INTO _pando_meta VALUES ('database', '67e55044-10b1-426f-9247-bb680e5fe0c8');
INSERT INTO _pando_meta VALUES ('epoch', 7);
INSERT INTO _pando_meta VALUES ('topics', 1);
INSERT INTO _pando_op VALUES (7, X'0192F0C1E5A07000800000000000000A', 12, -1, 1795230255, 7, 1, '[7]');
INSERT INTO _pando_op_named VALUES (1, '', 'op-1', -1, 1795230255, 7, 1, 'null');
INSERT INTO _pando_client VALUES (X'0192F0C1E5A07000800000000000000A', 3, 1795230255);
INSERT INTO _pando_event VALUES (1, 7, 'db.session.created', 0, 1795230255, '{"instanceId":"inst-A","projectId":"","sessionId":"s-1","topic":"db.session.created","timestamp":"2026-11-21T03:04:15Z","payload":{},"epoch":7,"seq":1,"prev":0}');
INSERT INTO _pando_topic VALUES ('db.session.created', 1);
INSERT INTO sessions (id, title) VALUES ('s-1', 'kept');
