-- +goose Up

-- Files for COPY, and tarballs of images: uploaded before the build.
CREATE TABLE build_contexts (
    id          uuid PRIMARY KEY,
    team_id     uuid        NOT NULL REFERENCES teams (id),
    artifact_id uuid REFERENCES artifacts (id),
    size_bytes  bigint      NOT NULL DEFAULT 0,
    digest      text        NOT NULL DEFAULT '', -- SHA-256 of the whole, hex; empty until it is complete
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL -- collected then, unless a living build uses it
);
CREATE INDEX build_contexts_expiry ON build_contexts (expires_at);
CREATE INDEX build_contexts_artifact ON build_contexts (artifact_id) WHERE artifact_id IS NOT NULL;

-- A job that makes a template.
CREATE TABLE builds (
    id              uuid PRIMARY KEY,
    team_id         uuid        NOT NULL REFERENCES teams (id),
    name            text        NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    status          text        NOT NULL CHECK (status IN ('queued', 'running', 'ready', 'failed', 'canceled')),
    recipe          jsonb       NOT NULL, -- as it was asked for, secrets left out
    secrets_sealed  bytea,                -- of the registry; gone when the build has ended
    context_id      uuid REFERENCES build_contexts (id) ON DELETE SET NULL,
    tarball_id      uuid REFERENCES build_contexts (id) ON DELETE SET NULL, -- of the image it begins with
    sandbox_id      uuid REFERENCES sandboxes (id) ON DELETE SET NULL, -- in which its steps run
    base_id         uuid REFERENCES templates (id), -- what its steps begin with, once that is known
    template_id     uuid REFERENCES templates (id), -- what it made
    step            integer     NOT NULL DEFAULT 0, -- the step that runs or failed, from 1
    steps           integer     NOT NULL DEFAULT 0,
    reason          text        NOT NULL DEFAULT '', -- stable word, of one that failed
    error           text        NOT NULL DEFAULT '',
    cancel_asked_at timestamptz,
    attempts        integer     NOT NULL DEFAULT 0,
    lease_owner     uuid,
    lease_until     timestamptz,
    created_by_type text        NOT NULL,
    created_by_id   text        NOT NULL,
    created_by_name text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL))
);
CREATE INDEX builds_team ON builds (team_id, created_at DESC, id DESC);
CREATE INDEX builds_due ON builds (lease_until NULLS FIRST) WHERE finished_at IS NULL;
CREATE INDEX builds_context ON builds (context_id) WHERE finished_at IS NULL;
CREATE INDEX builds_tarball ON builds (tarball_id) WHERE finished_at IS NULL;
CREATE INDEX builds_ended ON builds (finished_at) WHERE finished_at IS NOT NULL;

-- What builds say, line by line; bounded per build.
CREATE TABLE build_logs (
    build_id uuid        NOT NULL REFERENCES builds (id) ON DELETE CASCADE,
    seq      integer     NOT NULL,
    step     integer     NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    stream   text        NOT NULL CHECK (stream IN ('stdout', 'stderr', 'system')),
    line     text        NOT NULL,
    PRIMARY KEY (build_id, seq)
);

-- What a step left of the disk, by what it was made of: the next build that comes
-- to the same step goes on from there.
CREATE TABLE build_layers (
    team_id     uuid        NOT NULL REFERENCES teams (id),
    key         bytea       NOT NULL CHECK (length(key) = 32), -- SHA-256 over the base image and all steps so far
    snapshot_id uuid        NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    used_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, key)
);
CREATE INDEX build_layers_age ON build_layers (used_at);
CREATE INDEX build_layers_snapshot ON build_layers (snapshot_id);

-- What runs for a build is no sandbox of the team's to see.
ALTER TABLE sandboxes ADD COLUMN build_id uuid REFERENCES builds (id) ON DELETE SET NULL;
CREATE INDEX sandboxes_build ON sandboxes (build_id) WHERE build_id IS NOT NULL;

-- 'layer': of a build. 'template': what sandboxes of a template start from.
ALTER TABLE snapshots DROP CONSTRAINT snapshots_kind_check;
ALTER TABLE snapshots ADD CONSTRAINT snapshots_kind_check CHECK (kind IN ('snapshot', 'pause', 'checkpoint', 'fork', 'layer', 'template'));

ALTER TABLE templates
    ADD COLUMN state_id  uuid REFERENCES snapshots (id), -- started from instead of being booted
    ADD COLUMN env       jsonb NOT NULL DEFAULT '{}',    -- of every command
    ADD COLUMN start_cmd text  NOT NULL DEFAULT '',      -- runs in it
    ADD COLUMN ready_cmd text  NOT NULL DEFAULT '',
    ADD COLUMN build_id  uuid REFERENCES builds (id);
CREATE INDEX templates_state ON templates (state_id) WHERE state_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON build_contexts, builds, build_logs, build_layers TO skerry_app;

-- +goose Down
ALTER TABLE templates DROP COLUMN build_id, DROP COLUMN ready_cmd, DROP COLUMN start_cmd, DROP COLUMN env, DROP COLUMN state_id;
DELETE FROM snapshots WHERE kind IN ('layer', 'template');
ALTER TABLE snapshots DROP CONSTRAINT snapshots_kind_check;
ALTER TABLE snapshots ADD CONSTRAINT snapshots_kind_check CHECK (kind IN ('snapshot', 'pause', 'checkpoint', 'fork'));
ALTER TABLE sandboxes DROP COLUMN build_id;
DROP TABLE build_layers, build_logs, builds, build_contexts;
