-- +goose Up

-- Instances that hosts keep ready for the next sandbox of a template and size.
-- What is wanted counts when hosts are compared, and gives way to sandboxes.
CREATE TABLE host_warm (
    host_id      uuid    NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    key          bytea   NOT NULL CHECK (length(key) = 32), -- SHA-256 over all that must be the same
    template_id  uuid    NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    image_digest text    NOT NULL,
    engine       text    NOT NULL,
    cpu_millis   integer NOT NULL,
    memory_mb    integer NOT NULL,
    disk_mb      integer NOT NULL,
    internet     boolean NOT NULL,
    state_id     uuid REFERENCES snapshots (id) ON DELETE CASCADE, -- started from instead of being booted
    wanted       integer NOT NULL CHECK (wanted >= 0),
    there        integer NOT NULL DEFAULT 0 CHECK (there >= 0), -- as the host said last, less what was given away since
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host_id, key)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON host_warm TO skerry_app;

-- +goose Down
DROP TABLE host_warm;
