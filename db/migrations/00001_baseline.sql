-- +goose Up

-- Ids are UUIDs made by the server (version 7). TEXT ids exist only where a
-- column may name things of several kinds.

CREATE TABLE users (
    id            uuid PRIMARY KEY,
    email         text        NOT NULL UNIQUE CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    name          text        NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    password_hash text, -- argon2id in PHC form; NULL for accounts that log in by OAuth only
    is_admin      boolean     NOT NULL DEFAULT false,
    is_active     boolean     NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE teams (
    id         uuid PRIMARY KEY,
    name       text        NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    slug       text        NOT NULL UNIQUE CHECK (slug ~ '^[0-9a-f]{6}-[0-9a-f]{6}$'),
    is_byoc    boolean     NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz
);

-- The platform itself: owns what is shared with all teams, has no members.
INSERT INTO teams (id, name, slug) VALUES ('00000000-0000-0000-0000-000000000000', 'Platform', '000000-000000');

CREATE TABLE users_teams (
    user_id    uuid        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team_id    uuid        NOT NULL REFERENCES teams (id),
    role       text        NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    is_default boolean     NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, team_id)
);
CREATE INDEX users_teams_team ON users_teams (team_id, created_at);
CREATE UNIQUE INDEX users_teams_one_owner ON users_teams (team_id) WHERE role = 'owner';
CREATE UNIQUE INDEX users_teams_one_default ON users_teams (user_id) WHERE is_default;

CREATE TABLE sessions (
    id         uuid PRIMARY KEY,
    user_id    uuid        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team_id    uuid REFERENCES teams (id), -- the active team; NULL for none
    user_agent text        NOT NULL DEFAULT '',
    ip         inet,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX sessions_user ON sessions (user_id, created_at DESC);

CREATE TABLE team_api_keys (
    id           uuid PRIMARY KEY,
    team_id      uuid        NOT NULL REFERENCES teams (id),
    name         text        NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    key_hash     bytea       NOT NULL UNIQUE CHECK (length(key_hash) = 32), -- SHA-256 of the 40 hex digits
    key_prefix   text        NOT NULL, -- what lists show
    scopes       text[]      NOT NULL,
    created_by   uuid REFERENCES users (id) ON DELETE SET NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX team_api_keys_team ON team_api_keys (team_id, created_at DESC, id DESC);

-- Signing keys and the platform's certificate authority, sealed under
-- SKERRY_SECRET.
CREATE TABLE platform_keys (
    kid        text PRIMARY KEY,
    kind       text        NOT NULL CHECK (kind IN ('user_jwt', 'host_jwt', 'ca')),
    sealed     bytea       NOT NULL,
    public     bytea       NOT NULL, -- public key or certificate, DER
    created_at timestamptz NOT NULL DEFAULT now(),
    retired_at timestamptz
);
CREATE UNIQUE INDEX platform_keys_one_ca ON platform_keys (kind) WHERE kind = 'ca' AND retired_at IS NULL;

CREATE TABLE hosts (
    id                uuid PRIMARY KEY,
    team_id           uuid        NOT NULL REFERENCES teams (id), -- the platform for regular hosts
    type              text        NOT NULL CHECK (type IN ('regular', 'byoc')),
    name              text        NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    provider          text        NOT NULL DEFAULT '',
    availability_zone text        NOT NULL DEFAULT '',
    labels            jsonb       NOT NULL DEFAULT '{}',
    status            text        NOT NULL CHECK (status IN ('pending', 'online', 'unreachable', 'draining', 'deleted')),
    address           text        NOT NULL DEFAULT '', -- host:port the agent listens on
    arch              text        NOT NULL DEFAULT '',
    cpu_count         integer     NOT NULL DEFAULT 0,
    memory_bytes      bigint      NOT NULL DEFAULT 0,
    disk_bytes        bigint      NOT NULL DEFAULT 0,
    kernel            text        NOT NULL DEFAULT '',
    agent_version     text        NOT NULL DEFAULT '',
    engines           jsonb       NOT NULL DEFAULT '[]', -- [{name, version, healthy, reasons}]
    load              jsonb       NOT NULL DEFAULT '{}',
    generation        bigint      NOT NULL DEFAULT 0, -- grows with each start of the agent
    status_reason     text        NOT NULL DEFAULT '', -- why it is not online, and the remedy
    last_placed_at    timestamptz, -- round-robin takes the host that waited longest
    last_heartbeat_at timestamptz,
    reconciled_at     timestamptz,
    registered_at     timestamptz,
    created_by        uuid REFERENCES users (id) ON DELETE SET NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    deleted_at        timestamptz,
    CHECK ((type = 'regular') = (team_id = '00000000-0000-0000-0000-000000000000'))
);
CREATE INDEX hosts_team ON hosts (team_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;

CREATE TABLE host_registration_tokens (
    id         uuid PRIMARY KEY,
    host_id    uuid        NOT NULL REFERENCES hosts (id),
    token_hash bytea       NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    used_by    bytea, -- SHA-256 of the public key that spent it: only it may repeat the call
    revoked_at timestamptz
);
CREATE INDEX host_registration_tokens_host ON host_registration_tokens (host_id);

-- Refresh tokens are derived from the family and a counter under a server key;
-- only hashes are kept.
CREATE TABLE host_refresh_tokens (
    id           uuid PRIMARY KEY, -- the family
    host_id      uuid        NOT NULL REFERENCES hosts (id),
    public_key   bytea       NOT NULL, -- of the host, PKIX DER
    counter      bigint      NOT NULL DEFAULT 1,
    token_hash   bytea       NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    previous_hash bytea, -- still valid until the current one was used
    created_at   timestamptz NOT NULL DEFAULT now(),
    rotated_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz
);
CREATE INDEX host_refresh_tokens_host ON host_refresh_tokens (host_id) WHERE revoked_at IS NULL;

CREATE TABLE templates (
    id               uuid PRIMARY KEY,
    team_id          uuid        NOT NULL REFERENCES teams (id),
    name             text        NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    status           text        NOT NULL CHECK (status IN ('building', 'ready', 'failed')),
    error            text        NOT NULL DEFAULT '',
    image_digest     text        NOT NULL DEFAULT '',
    image_size_bytes bigint      NOT NULL DEFAULT 0,
    manifest_digest  text        NOT NULL DEFAULT '',
    engine           text        NOT NULL DEFAULT 'auto' CHECK (engine IN ('auto', 'gvisor', 'microvm', 'fake')),
    cpu_millis       integer     NOT NULL DEFAULT 1000,
    memory_mb        integer     NOT NULL DEFAULT 512,
    disk_mb          integer     NOT NULL DEFAULT 4096,
    default_user     text        NOT NULL DEFAULT 'user',
    default_workdir  text        NOT NULL DEFAULT '/home/user',
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz,
    CHECK (status <> 'ready' OR (image_digest <> '' AND manifest_digest <> ''))
);
CREATE UNIQUE INDEX templates_name ON templates (team_id, name) WHERE deleted_at IS NULL;

CREATE TABLE sandboxes (
    id               uuid PRIMARY KEY,
    team_id          uuid        NOT NULL REFERENCES teams (id),
    host_id          uuid        NOT NULL REFERENCES hosts (id),
    template_id      uuid        NOT NULL REFERENCES templates (id),
    template_name    text        NOT NULL,
    image_digest     text        NOT NULL, -- what it really runs; the template may move on
    status           text        NOT NULL CHECK (status IN ('pending', 'starting', 'running', 'pausing', 'paused', 'resuming',
                                                            'snapshotting', 'stopping', 'stopped', 'missing', 'error')),
    incarnation      bigint      NOT NULL DEFAULT 1 CHECK (incarnation > 0),
    engine           text        NOT NULL,
    engine_version   text        NOT NULL DEFAULT '',
    cpu_millis       integer     NOT NULL CHECK (cpu_millis > 0),
    memory_mb        integer     NOT NULL CHECK (memory_mb > 0),
    disk_mb          integer     NOT NULL CHECK (disk_mb > 0),
    internet         boolean     NOT NULL DEFAULT true,
    env_sealed       bytea, -- sealed; never in lists, events or audit
    metadata         jsonb       NOT NULL DEFAULT '{}',
    timeout_sec      integer     NOT NULL,
    on_timeout       text        NOT NULL CHECK (on_timeout IN ('pause', 'kill')),
    idle_timeout_sec integer,
    deadline_at      timestamptz,
    end_reason       text        NOT NULL DEFAULT '',
    error            text        NOT NULL DEFAULT '',
    created_by_type  text        NOT NULL,
    created_by_id    text        NOT NULL,
    created_by_name  text        NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    ended_at         timestamptz,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((status IN ('stopped', 'error')) = (ended_at IS NOT NULL))
);
CREATE INDEX sandboxes_team ON sandboxes (team_id, created_at DESC, id DESC);
CREATE INDEX sandboxes_team_live ON sandboxes (team_id, created_at DESC, id DESC) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_host_live ON sandboxes (host_id) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_metadata ON sandboxes USING gin (metadata jsonb_path_ops) WHERE ended_at IS NULL;
CREATE INDEX sandboxes_deadline ON sandboxes (deadline_at) WHERE ended_at IS NULL AND deadline_at IS NOT NULL;

CREATE TABLE operations (
    id          uuid PRIMARY KEY,
    sandbox_id  uuid        NOT NULL REFERENCES sandboxes (id),
    team_id     uuid        NOT NULL REFERENCES teams (id),
    kind        text        NOT NULL CHECK (kind IN ('create', 'delete', 'pause', 'resume', 'snapshot', 'fork')),
    incarnation bigint      NOT NULL,
    status      text        NOT NULL CHECK (status IN ('open', 'succeeded', 'failed', 'superseded')),
    reason      text        NOT NULL DEFAULT '', -- stable word, for failed and superseded
    message     text        NOT NULL DEFAULT '',
    attempts    integer     NOT NULL DEFAULT 0,
    lease_owner uuid, -- the server that drives it
    lease_until timestamptz,
    deadline_at timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK ((status = 'open') = (finished_at IS NULL))
);
CREATE UNIQUE INDEX operations_one_open ON operations (sandbox_id) WHERE status = 'open';
CREATE INDEX operations_due ON operations (lease_until NULLS FIRST) WHERE status = 'open';
CREATE INDEX operations_sandbox ON operations (sandbox_id, created_at DESC);

-- What happened to a sandbox, from whichever side saw it.
CREATE TABLE sandbox_events (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sandbox_id uuid        NOT NULL REFERENCES sandboxes (id),
    team_id    uuid        NOT NULL REFERENCES teams (id),
    kind       text        NOT NULL,
    data       jsonb       NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL DEFAULT now(),
    -- Where an agent reported it: a repeated report changes nothing.
    host_id    uuid REFERENCES hosts (id),
    generation bigint,
    seq        bigint,
    UNIQUE (host_id, generation, seq)
);
CREATE INDEX sandbox_events_sandbox ON sandbox_events (sandbox_id, id DESC);

CREATE TABLE idempotency_keys (
    caller       text        NOT NULL, -- kind and id of who called
    key_hash     bytea       NOT NULL CHECK (length(key_hash) = 32),
    request_hash bytea       NOT NULL CHECK (length(request_hash) = 32),
    receipt      bytea       NOT NULL, -- what was made, sealed under a key derived from the Idempotency-Key
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key_hash)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

CREATE TABLE audit_logs (
    id            uuid PRIMARY KEY,
    team_id       uuid        NOT NULL REFERENCES teams (id),
    actor_type    text        NOT NULL CHECK (actor_type IN ('user', 'api_key', 'host', 'system', 'anonymous')),
    actor_id      text        NOT NULL,
    actor_name    text        NOT NULL,
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    action        text        NOT NULL,
    scope         text        NOT NULL CHECK (scope IN ('team', 'admin')),
    status        text        NOT NULL CHECK (status IN ('success', 'info', 'warning', 'error')),
    metadata      jsonb       NOT NULL DEFAULT '{}',
    request_id    text        NOT NULL DEFAULT '',
    ip            inet,
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_logs_team ON audit_logs (team_id, created_at DESC, id DESC);

-- +goose Down
DROP TABLE audit_logs, idempotency_keys, sandbox_events, operations, sandboxes, templates, host_refresh_tokens,
    host_registration_tokens, hosts, platform_keys, team_api_keys, sessions, users_teams, teams, users;
