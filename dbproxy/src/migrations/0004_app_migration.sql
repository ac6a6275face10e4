-- The migrations of applications that were applied, each application's own.
CREATE TABLE _pando_app_migration (
    app      TEXT NOT NULL,
    id       INTEGER NOT NULL,
    name     TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    at       TEXT NOT NULL,
    made_by  TEXT NOT NULL,
    PRIMARY KEY (app, id)
) STRICT, WITHOUT ROWID;
