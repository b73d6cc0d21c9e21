-- +goose Up

-- What a host holds and this database does not know there: a sandbox without a
-- row, or one whose row is another host's. The sandbox is referred to by id
-- alone, for there may be no row.
CREATE TABLE host_strays (
    host_id       uuid        NOT NULL REFERENCES hosts (id),
    sandbox_id    uuid        NOT NULL,
    incarnation   bigint      NOT NULL,
    kind          text        NOT NULL CHECK (kind IN ('unknown', 'foreign')),
    phase         text        NOT NULL, -- as the host says; '' for a mere report
    state_id      uuid        NOT NULL, -- what its quarantine saves it as
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    paused_at     timestamptz,
    destroy_at    timestamptz, -- NULL for never by itself
    told_at       timestamptz NOT NULL DEFAULT now(), -- when the trail last heard of it
    PRIMARY KEY (host_id, sandbox_id)
);
CREATE INDEX host_strays_age ON host_strays (last_seen_at);

-- What was started on a host lately, and is there without being fetched.
CREATE TABLE host_images (
    host_id      uuid        NOT NULL REFERENCES hosts (id),
    image_digest text        NOT NULL,
    used_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host_id, image_digest)
);
CREATE INDEX host_images_age ON host_images (used_at);

-- What an image is made for; empty where that is not known.
ALTER TABLE templates ADD COLUMN arch text NOT NULL DEFAULT '';

GRANT SELECT, INSERT, UPDATE, DELETE ON host_strays, host_images TO skerry_app;

-- +goose Down
ALTER TABLE templates DROP COLUMN arch;
DROP TABLE host_images, host_strays;
