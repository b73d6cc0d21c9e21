-- +goose Up

-- Who may reach a port inside a sandbox from outside: everybody, or who shows a
-- token. Without a row nobody may; revoking one removes it. 49983 is the guest
-- daemon's own.
CREATE TABLE port_access (
    id              uuid PRIMARY KEY,
    team_id         uuid        NOT NULL REFERENCES teams (id),
    sandbox_id      uuid        NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port            integer     NOT NULL CHECK (port BETWEEN 1 AND 65535 AND port <> 49983),
    token_hash      bytea       UNIQUE CHECK (length(token_hash) = 32), -- SHA-256; NULL is everybody
    name            text        NOT NULL DEFAULT '' CHECK (length(name) <= 100),
    created_by_type text        NOT NULL,
    created_by_id   text        NOT NULL,
    created_by_name text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    expires_at      timestamptz
);
CREATE INDEX port_access_sandbox ON port_access (sandbox_id, created_at DESC, id DESC);

GRANT SELECT, INSERT, UPDATE, DELETE ON port_access TO skerry_app;

-- +goose Down
DROP TABLE port_access;
