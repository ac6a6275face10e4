-- The agent store.

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
CREATE INDEX sessions_by_parent ON sessions (parent_session_id);

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
CREATE INDEX messages_by_session ON messages (session_id, created_at);

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
CREATE INDEX files_by_session ON files (session_id, created_at);

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
CREATE INDEX prompt_templates_by_name ON prompt_templates (name, version);

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
CREATE INDEX session_scores_by_session ON session_scores (session_id);
CREATE INDEX session_scores_by_template ON session_scores (template_id);

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
CREATE INDEX skills_by_rate ON skills (is_active, success_rate, usage_count);

-- message_count counts up and down with the messages of the session.
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

-- updated_at is the store's, also for plain SQL. Each trigger ends its own recursion: its UPDATE changes updated_at.
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
