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
    -- When the address was proven to be the user's own, by a mailed link or a provider; NULL for never.
    email_proven_at timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_email_prefix ON users (email text_pattern_ops);

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
-- The index allows one owner at most; at the end of each transaction a living
-- team must also have one at least.
-- +goose StatementBegin
CREATE FUNCTION check_team_has_owner() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    team uuid;
BEGIN
    IF TG_TABLE_NAME = 'teams' THEN
        team := NEW.id;
    ELSE
        team := OLD.team_id;
    END IF;
    IF team <> '00000000-0000-0000-0000-000000000000'
        AND EXISTS (SELECT 1 FROM teams t WHERE t.id = team AND t.deleted_at IS NULL)
        AND NOT EXISTS (SELECT 1 FROM users_teams m WHERE m.team_id = team AND m.role = 'owner') THEN
        RAISE EXCEPTION 'team % has no owner', team USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'team_has_owner';
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE CONSTRAINT TRIGGER team_has_owner AFTER INSERT OR UPDATE OF deleted_at ON teams
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_team_has_owner();
CREATE CONSTRAINT TRIGGER team_keeps_owner AFTER UPDATE OR DELETE ON users_teams
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_team_has_owner();
CREATE UNIQUE INDEX users_teams_one_default ON users_teams (user_id) WHERE is_default;

CREATE TABLE sessions (
    id         uuid PRIMARY KEY,
    user_id    uuid        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    team_id    uuid REFERENCES teams (id), -- the active team; NULL for none
    user_agent text        NOT NULL DEFAULT '',
    ip         inet,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz,
    end_reason text        NOT NULL DEFAULT '', -- logout, ended, password_changed, token_reused, …
    -- Refresh tokens are derived from the session and this counter under a server
    -- key. The token before stays valid until the current one was used.
    refresh_counter bigint NOT NULL DEFAULT 1,
    refresh_hash    bytea CHECK (length(refresh_hash) = 32), -- SHA-256 of the current one; NULL for sessions without
    refreshed_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_user ON sessions (user_id, created_at DESC);

-- A person as an OAuth or OIDC provider knows them.
CREATE TABLE user_identities (
    provider   text        NOT NULL CHECK (length(provider) BETWEEN 1 AND 64),
    subject    text        NOT NULL CHECK (length(subject) BETWEEN 1 AND 255),
    user_id    uuid        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    email      text        NOT NULL, -- as the provider said at the last login
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, subject)
);
CREATE UNIQUE INDEX user_identities_user ON user_identities (user_id, provider);

-- A login at a provider that has begun; spent by its callback.
CREATE TABLE oauth_logins (
    state_hash bytea PRIMARY KEY CHECK (length(state_hash) = 32),
    provider   text        NOT NULL,
    sealed     bytea       NOT NULL, -- nonce and PKCE verifier, sealed under the state
    link_user  uuid REFERENCES users (id) ON DELETE CASCADE, -- set when a logged-in user links
    user_code  text        NOT NULL DEFAULT '', -- of a device login to go on to
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

-- One-time links: to reset a password, to prove an address.
CREATE TABLE account_tokens (
    token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
    kind       text        NOT NULL CHECK (kind IN ('password_reset', 'email_proof')),
    user_id    uuid        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    email      text        NOT NULL, -- the address it was made for
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX account_tokens_user ON account_tokens (user_id, kind);

-- A program that waits for a person to approve it in the browser.
CREATE TABLE device_logins (
    id          uuid PRIMARY KEY,
    device_hash bytea       NOT NULL UNIQUE CHECK (length(device_hash) = 32),
    user_code   text        NOT NULL UNIQUE,
    client_name text        NOT NULL DEFAULT '',
    ip          inet,
    user_id     uuid REFERENCES users (id) ON DELETE CASCADE, -- who approved
    approved_at timestamptz,
    denied_at   timestamptz,
    session_id  uuid, -- what it was exchanged for
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL
);

-- An invitation into a team, by link; works without mail.
CREATE TABLE team_invitations (
    id          uuid PRIMARY KEY,
    team_id     uuid        NOT NULL REFERENCES teams (id),
    email       text        NOT NULL DEFAULT '', -- only this account may accept; empty: whoever has the link
    role        text        NOT NULL CHECK (role IN ('admin', 'member')),
    token_hash  bytea       NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    created_by  uuid REFERENCES users (id) ON DELETE SET NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    accepted_by uuid REFERENCES users (id) ON DELETE SET NULL,
    accepted_at timestamptz,
    revoked_at  timestamptz
);
CREATE INDEX team_invitations_team ON team_invitations (team_id, created_at DESC, id DESC);

-- What a team may have where it is not the default; NULL is the default.
CREATE TABLE team_limits (
    team_id    uuid PRIMARY KEY REFERENCES teams (id),
    sandboxes  integer CHECK (sandboxes >= 0),
    cpu_millis bigint CHECK (cpu_millis >= 0),
    memory_mb  bigint CHECK (memory_mb >= 0),
    disk_mb    bigint CHECK (disk_mb >= 0),
    stored_mb  bigint CHECK (stored_mb >= 0),
    api_keys   integer CHECK (api_keys >= 0),
    hosts      integer CHECK (hosts >= 0),
    templates  integer CHECK (templates >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- For a browser's stream that cannot send headers: 30 s, single use, bound to
-- one operation on one thing.
CREATE TABLE stream_tickets (
    ticket_hash  bytea PRIMARY KEY CHECK (length(ticket_hash) = 32),
    operation    text        NOT NULL,
    resource     text        NOT NULL DEFAULT '',
    session_id   uuid, -- whose it is: one of the two
    api_key_id   uuid,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    CHECK ((session_id IS NULL) <> (api_key_id IS NULL))
);

-- What changed, for those who watch: ids and kinds only. A row is visible to
-- readers once no older transaction can still add one before it.
CREATE TABLE outbox (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tx       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    team_id  uuid        NOT NULL,
    kind     text        NOT NULL, -- as sandbox.paused
    resource text        NOT NULL, -- an id in its wire form
    scope    text        NOT NULL CHECK (scope IN ('team', 'admin')),
    at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_order ON outbox (tx, id);
CREATE INDEX outbox_team ON outbox (team_id, tx, id);
CREATE INDEX outbox_age ON outbox (at);

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
    kind       text        NOT NULL CHECK (kind IN ('user_jwt', 'host_jwt', 'audit', 'ca')),
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

-- A saved state of a sandbox: named ones are the team's snapshots, the others
-- are what paused sandboxes, checkpoints and forks live from.
CREATE TABLE snapshots (
    id              uuid PRIMARY KEY,
    team_id         uuid        NOT NULL REFERENCES teams (id),
    kind            text        NOT NULL CHECK (kind IN ('snapshot', 'pause', 'checkpoint', 'fork')),
    name            text CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    status          text        NOT NULL CHECK (status IN ('creating', 'ready', 'failed', 'deleting', 'deleted')),
    error           text        NOT NULL DEFAULT '',
    sandbox_id      uuid        NOT NULL, -- where it was taken; the row may be gone
    incarnation     bigint      NOT NULL,
    host_id         uuid        NOT NULL REFERENCES hosts (id), -- which holds the only copy
    template_id     uuid        NOT NULL REFERENCES templates (id),
    template_name   text        NOT NULL,
    image_digest    text        NOT NULL,
    engine          text        NOT NULL,
    engine_version  text        NOT NULL DEFAULT '',
    cpu_features    text[]      NOT NULL DEFAULT '{}',
    memory          boolean     NOT NULL, -- false: the disk only
    cpu_millis      integer     NOT NULL,
    memory_mb       integer     NOT NULL,
    disk_mb         integer     NOT NULL,
    internet        boolean     NOT NULL,
    env_sealed      bytea,
    size_bytes      bigint      NOT NULL DEFAULT 0,
    digest          text        NOT NULL DEFAULT '',
    created_by_type text        NOT NULL,
    created_by_id   text        NOT NULL,
    created_by_name text        NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    ready_at        timestamptz,
    drop_at         timestamptz, -- of one to be removed from its host: when to try next
    deleted_at      timestamptz,
    CHECK ((kind = 'snapshot') = (name IS NOT NULL)),
    CHECK (status <> 'ready' OR (digest <> '' AND ready_at IS NOT NULL)),
    CHECK ((status = 'deleted') = (deleted_at IS NOT NULL))
);
-- One of a name may be there while its successor is being made.
CREATE UNIQUE INDEX snapshots_name ON snapshots (team_id, name) WHERE status = 'ready';
CREATE UNIQUE INDEX snapshots_name_next ON snapshots (team_id, name) WHERE status = 'creating';
CREATE INDEX snapshots_team ON snapshots (team_id, created_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id) WHERE deleted_at IS NULL;
CREATE INDEX snapshots_named ON snapshots (team_id, created_at DESC, id DESC) WHERE kind = 'snapshot' AND deleted_at IS NULL;
CREATE INDEX snapshots_dropping ON snapshots (drop_at NULLS FIRST) WHERE status IN ('failed', 'deleting');
CREATE INDEX snapshots_forks ON snapshots (id) WHERE kind = 'fork' AND status = 'ready';
CREATE INDEX snapshots_deleted ON snapshots (deleted_at) WHERE deleted_at IS NOT NULL;

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
    idle_check_at    timestamptz, -- before then it cannot have been idle for long enough
    checkpoint_interval_sec integer,
    checkpoint_due_at timestamptz,
    retry_at         timestamptz, -- after a pause at the deadline failed: when the next one may begin
    -- What it was or is being started from; NULL for its template's image.
    from_snapshot_id uuid REFERENCES snapshots (id),
    -- Its newest complete saved state: what a paused one resumes from, what is
    -- left of one that ended by itself.
    state_id         uuid REFERENCES snapshots (id),
    state_at         timestamptz,
    paused_at        timestamptz,
    paused_reason    text        NOT NULL DEFAULT '', -- requested, deadline, idle, lost_contact, host_shutdown, …
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
CREATE INDEX sandboxes_idle ON sandboxes (idle_check_at) WHERE status = 'running' AND idle_check_at IS NOT NULL;
CREATE INDEX sandboxes_checkpoint ON sandboxes (checkpoint_due_at) WHERE status = 'running' AND checkpoint_due_at IS NOT NULL;
CREATE INDEX sandboxes_state ON sandboxes (state_id) WHERE state_id IS NOT NULL;
CREATE INDEX sandboxes_from ON sandboxes (from_snapshot_id) WHERE from_snapshot_id IS NOT NULL;
CREATE INDEX sandboxes_paused ON sandboxes (paused_at) WHERE status = 'paused';
CREATE INDEX sandboxes_missing ON sandboxes (updated_at) WHERE status = 'missing';
CREATE INDEX sandboxes_ended ON sandboxes (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX sandboxes_deadline ON sandboxes (deadline_at) WHERE ended_at IS NULL AND deadline_at IS NOT NULL;

CREATE TABLE operations (
    id          uuid PRIMARY KEY,
    sandbox_id  uuid        NOT NULL REFERENCES sandboxes (id),
    team_id     uuid        NOT NULL REFERENCES teams (id),
    kind        text        NOT NULL CHECK (kind IN ('create', 'delete', 'pause', 'resume', 'snapshot', 'fork', 'checkpoint')),
    incarnation bigint      NOT NULL,
    -- What it works on: {snapshot_id, memory, if_idle_sec, reason, …}.
    params      jsonb       NOT NULL DEFAULT '{}',
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
-- Whoever watches hears of each.
-- +goose StatementBegin
CREATE FUNCTION tell_sandbox_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (team_id, kind, resource, scope) VALUES (NEW.team_id, 'sandbox.' || NEW.kind, 'sb-' || NEW.sandbox_id, 'team');
    RETURN NULL;
END $$;
-- +goose StatementEnd
CREATE TRIGGER sandbox_events_told AFTER INSERT ON sandbox_events FOR EACH ROW EXECUTE FUNCTION tell_sandbox_event();

-- Figures of running sandboxes, kept for a day.
CREATE TABLE sandbox_samples (
    sandbox_id   uuid        NOT NULL,
    at           timestamptz NOT NULL,
    cpu_millis   integer     NOT NULL, -- used on average since the sample before
    memory_bytes bigint      NOT NULL,
    disk_bytes   bigint      NOT NULL,
    processes    integer     NOT NULL,
    PRIMARY KEY (sandbox_id, at)
);
CREATE INDEX sandbox_samples_age ON sandbox_samples (at);

CREATE TABLE idempotency_keys (
    caller       text        NOT NULL, -- kind and id of who called
    key_hash     bytea       NOT NULL CHECK (length(key_hash) = 32),
    request_hash bytea       NOT NULL CHECK (length(request_hash) = 32),
    receipt      bytea       NOT NULL, -- what was made, sealed under a key derived from the Idempotency-Key
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key_hash)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Append-only: the application's role may not change it, and a trigger refuses
-- whoever may. Each team's entries form a chain: seq has no gaps, hash is the
-- SHA-256 over the entry and the hash before.
CREATE TABLE audit_logs (
    id            uuid PRIMARY KEY,
    team_id       uuid        NOT NULL REFERENCES teams (id),
    seq           bigint      NOT NULL CHECK (seq > 0),
    hash          bytea       NOT NULL CHECK (length(hash) = 32),
    actor_type    text        NOT NULL CHECK (actor_type IN ('user', 'api_key', 'host', 'system', 'anonymous')),
    actor_id      text        NOT NULL,
    actor_name    text        NOT NULL,
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    action        text        NOT NULL,
    scope         text        NOT NULL CHECK (scope IN ('team', 'admin')),
    status        text        NOT NULL CHECK (status IN ('success', 'info', 'warning', 'error')),
    metadata      json        NOT NULL DEFAULT '{}', -- its very text is hashed
    request_id    text        NOT NULL DEFAULT '',
    ip            inet,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, seq)
);
CREATE INDEX audit_logs_all ON audit_logs (created_at DESC, id DESC);

-- Where each team's chain stands. Locked last in a transaction, several in the
-- order of team ids.
CREATE TABLE audit_heads (
    team_id     uuid PRIMARY KEY REFERENCES teams (id),
    seq         bigint NOT NULL,
    hash        bytea  NOT NULL CHECK (length(hash) = 32),
    -- The entry that retention removed last; what is left begins after it.
    anchor_seq  bigint NOT NULL DEFAULT 0,
    anchor_hash bytea  NOT NULL DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000'
);

-- Refusals of callers nobody knows, counted instead of recorded one by one.
CREATE TABLE refusal_counts (
    ip     inet        NOT NULL,
    minute timestamptz NOT NULL,
    reason text        NOT NULL,
    count  bigint      NOT NULL DEFAULT 1,
    PRIMARY KEY (minute, ip, reason)
);

CREATE INDEX refusal_counts_ip ON refusal_counts (ip, minute);

-- The trail is append-only for everybody, its owner too: an entry goes only
-- once its team's anchor has passed it, which prune_audit_logs alone moves for
-- the application.
-- +goose StatementBegin
CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM audit_heads h WHERE h.team_id = OLD.team_id AND h.anchor_seq >= OLD.seq) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'audit_logs is append-only: % is refused', TG_OP
        USING ERRCODE = 'insufficient_privilege', HINT = 'Old entries go by SKERRY_AUDIT_RETENTION.';
END $$;
-- +goose StatementEnd
CREATE TRIGGER audit_logs_append_only BEFORE UPDATE OR DELETE ON audit_logs FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_logs_no_truncate BEFORE TRUNCATE ON audit_logs FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
ALTER TABLE audit_logs ENABLE ALWAYS TRIGGER audit_logs_append_only;
ALTER TABLE audit_logs ENABLE ALWAYS TRIGGER audit_logs_no_truncate;

-- Removes at most max_rows of a team's oldest entries, those before a time at
-- least a day ago, and anchors the chain at the last of them. Entries about
-- earlier removals go only along with others. Returns how many went and the
-- last one's sequence, zeros for nothing. Its caller records that.
-- +goose StatementBegin
CREATE FUNCTION prune_audit_logs(team uuid, before timestamptz, max_rows integer, OUT removed bigint, OUT up_to bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head audit_heads%ROWTYPE;
    kept bigint;
BEGIN
    removed := 0;
    up_to := 0;
    IF before IS NULL OR before > now() - interval '1 day' THEN
        RAISE EXCEPTION 'audit entries are kept for a day at least' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF max_rows IS NULL OR max_rows NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'between 1 and 10000 entries at once' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO head FROM audit_heads WHERE team_id = team FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- The first of the batch that stays: the rest of the chain stays with it.
    SELECT min(l.seq) INTO kept FROM audit_logs l
        WHERE l.team_id = team AND l.seq > head.anchor_seq AND l.seq <= head.anchor_seq + max_rows AND l.created_at >= before;
    kept := coalesce(kept, least(head.anchor_seq + max_rows, head.seq) + 1);
    IF NOT EXISTS (SELECT FROM audit_logs l WHERE l.team_id = team AND l.seq > head.anchor_seq AND l.seq < kept
                   AND (l.resource_type <> 'audit' OR l.action <> 'prune')) THEN
        RETURN;
    END IF;
    up_to := kept - 1;
    UPDATE audit_heads h SET anchor_seq = l.seq, anchor_hash = l.hash
        FROM audit_logs l WHERE h.team_id = team AND l.team_id = team AND l.seq = up_to;
    DELETE FROM audit_logs l WHERE l.team_id = team AND l.seq <= up_to;
    GET DIAGNOSTICS removed = ROW_COUNT;
END $$;
-- +goose StatementEnd

-- What the servers may do. Their connections take this role, so that a
-- DATABASE_URL that names the owner cannot touch what is written for good.
-- Roles belong to the whole PostgreSQL server: pg.Migrate made it.
GRANT USAGE ON SCHEMA public TO skerry_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON users, teams, users_teams, sessions, user_identities, oauth_logins, account_tokens, device_logins,
    team_invitations, team_limits, stream_tickets, outbox, team_api_keys, platform_keys, hosts, host_registration_tokens, host_refresh_tokens,
    templates, snapshots, sandboxes, operations, sandbox_events, sandbox_samples, idempotency_keys, refusal_counts TO skerry_app;
GRANT SELECT, INSERT ON audit_logs TO skerry_app;
GRANT SELECT, INSERT (team_id, seq, hash), UPDATE (seq, hash) ON audit_heads TO skerry_app;
REVOKE ALL ON FUNCTION prune_audit_logs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prune_audit_logs TO skerry_app;

-- +goose Down
DROP FUNCTION prune_audit_logs;
DROP TABLE refusal_counts, audit_heads, audit_logs, idempotency_keys, sandbox_samples, sandbox_events, operations, sandboxes, snapshots, templates,
    host_refresh_tokens, host_registration_tokens, hosts, platform_keys, team_api_keys, outbox, stream_tickets, team_limits, team_invitations,
    device_logins, account_tokens, oauth_logins, user_identities, sessions, users_teams, teams, users;
DROP FUNCTION tell_sandbox_event, check_team_has_owner;
DROP FUNCTION refuse_audit_change;
