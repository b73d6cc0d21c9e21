-- +goose Up

-- Numbers in the names of stored objects: each makes its name one that never
-- comes again, so that a removal that was late can never hit what was stored
-- anew.
CREATE SEQUENCE store_objects;

-- What the store keeps is described here; the store itself only has bytes. An
-- artifact is one manifest with its chunks. Whoever needs it points at it
-- (snapshots, templates, engine_builds, build_contexts): what nothing points at
-- is collected, so the pointer is set in the transaction that makes the row.
CREATE TABLE artifacts (
    id              uuid PRIMARY KEY,
    team_id         uuid        NOT NULL REFERENCES teams (id),
    kind            text        NOT NULL CHECK (kind IN ('state', 'image', 'engine', 'context')),
    status          text        NOT NULL CHECK (status IN ('uploading', 'ready', 'deleting')),
    -- Who puts it there: only this host may, while it is uploading. NULL for the
    -- control plane itself.
    host_id         uuid REFERENCES hosts (id),
    -- Until when an upload may go on without a word; each answer prolongs it.
    lease_until     timestamptz,
    -- Of the stored bytes, hex, and its object: set before it is put, so that one
    -- that was left half way is found.
    manifest_digest text        NOT NULL DEFAULT '',
    manifest_object bigint      NOT NULL DEFAULT nextval('store_objects'),
    size_bytes      bigint      NOT NULL DEFAULT 0,  -- of the files, holes included
    stored_bytes    bigint      NOT NULL DEFAULT 0,  -- of its chunks as they are stored
    sent_bytes      bigint      NOT NULL DEFAULT 0,  -- of size_bytes, while it is uploading
    created_at      timestamptz NOT NULL DEFAULT now(),
    ready_at        timestamptz,
    CHECK ((status = 'uploading') = (lease_until IS NOT NULL)),
    CHECK (status <> 'ready' OR (manifest_digest <> '' AND ready_at IS NOT NULL))
);
CREATE INDEX artifacts_lease ON artifacts (lease_until) WHERE status = 'uploading';
CREATE INDEX artifacts_deleting ON artifacts (id) WHERE status = 'deleting';

-- A chunk of a team.
CREATE TABLE chunks (
    team_id    uuid    NOT NULL REFERENCES teams (id),
    digest     bytea   NOT NULL CHECK (length(digest) = 32), -- SHA-256 of the stored bytes
    object     bigint  NOT NULL DEFAULT nextval('store_objects'),
    size_bytes integer NOT NULL CHECK (size_bytes > 0),
    stored     boolean NOT NULL DEFAULT false, -- seen in the store, in that size
    PRIMARY KEY (team_id, digest)
);

-- What an artifact consists of; of one being uploaded, what it claimed so far.
CREATE TABLE artifact_chunks (
    artifact_id uuid  NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
    team_id     uuid  NOT NULL,
    digest      bytea NOT NULL,
    PRIMARY KEY (artifact_id, digest),
    FOREIGN KEY (team_id, digest) REFERENCES chunks (team_id, digest)
);
CREATE INDEX artifact_chunks_chunk ON artifact_chunks (team_id, digest);

-- Names in the store that nothing stands for any more. Removing one may be
-- repeated for ever.
CREATE TABLE doomed_objects (
    key     text PRIMARY KEY, -- as artifact.Key writes it
    due_at  timestamptz NOT NULL -- later than any upload to it can last that was begun before
);
CREATE INDEX doomed_objects_due ON doomed_objects (due_at);

-- The key under which a team's artifacts are encrypted, sealed under
-- SKERRY_SECRET. The platform's own are not secret.
CREATE TABLE team_keys (
    team_id    uuid PRIMARY KEY REFERENCES teams (id),
    sealed     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Builds of engines, by what they say they are. A state with memory starts only
-- under the build that saved it.
CREATE TABLE engine_builds (
    team_id     uuid        NOT NULL REFERENCES teams (id), -- whose hosts may run it
    engine      text        NOT NULL,
    version     text        NOT NULL,
    arch        text        NOT NULL,
    digest      text        NOT NULL, -- SHA-256 of the program, hex
    artifact_id uuid REFERENCES artifacts (id),
    upload_at   timestamptz, -- when to try next to fetch it from a host that has it
    seen_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, engine, version, arch)
);

-- Which hosts have a copy of a saved state. The row is there before the bytes
-- are, and goes after they went.
CREATE TABLE state_copies (
    snapshot_id uuid        NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    host_id     uuid        NOT NULL REFERENCES hosts (id),
    made_at     timestamptz NOT NULL DEFAULT now(),
    ready_at    timestamptz, -- since when the bytes are there; NULL while they are saved or fetched
    used_at     timestamptz NOT NULL DEFAULT now(), -- of those in the store the longest unused go first
    drop_at     timestamptz, -- of one to be removed: when to try next
    PRIMARY KEY (snapshot_id, host_id)
);
CREATE INDEX state_copies_host ON state_copies (host_id, snapshot_id);
CREATE INDEX state_copies_dropping ON state_copies (drop_at) WHERE drop_at IS NOT NULL;
CREATE INDEX state_copies_coming ON state_copies (made_at) WHERE ready_at IS NULL;
INSERT INTO state_copies (snapshot_id, host_id, made_at, ready_at) SELECT id, host_id, created_at, ready_at FROM snapshots WHERE deleted_at IS NULL;

ALTER TABLE snapshots
    ADD COLUMN artifact_id uuid REFERENCES artifacts (id),
    ADD COLUMN upload_at   timestamptz, -- when to try next to bring it to the store; NULL when it is there, or need not be
    ADD COLUMN upload_error text NOT NULL DEFAULT '', -- why the last try failed
    ADD COLUMN arch         text NOT NULL DEFAULT ''; -- of the host it was made on
CREATE INDEX snapshots_upload ON snapshots (upload_at) WHERE upload_at IS NOT NULL;
CREATE INDEX snapshots_artifact ON snapshots (artifact_id) WHERE artifact_id IS NOT NULL;

-- Where saved states are: on hosts, and without a host in the store.
CREATE VIEW state_places AS
SELECT c.snapshot_id, c.host_id FROM state_copies c JOIN hosts h ON h.id = c.host_id AND h.deleted_at IS NULL
WHERE c.ready_at IS NOT NULL AND c.drop_at IS NULL
UNION ALL
SELECT p.id, NULL::uuid FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id AND a.status = 'ready';

-- A sandbox that went on elsewhere. What its former host holds of that
-- incarnation, paused with that state, is nothing any more.
CREATE TABLE departures (
    sandbox_id  uuid        NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    host_id     uuid        NOT NULL REFERENCES hosts (id),
    incarnation bigint      NOT NULL,
    state_id    uuid        NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    cleared_at  timestamptz, -- since when that host has nothing of it any more
    PRIMARY KEY (sandbox_id, host_id)
);
CREATE INDEX departures_host ON departures (host_id);

ALTER TABLE templates ADD COLUMN artifact_id uuid REFERENCES artifacts (id);
CREATE INDEX templates_artifact ON templates (artifact_id) WHERE artifact_id IS NOT NULL;
-- Bytes that no row describes cannot be served; the base is built anew.
UPDATE templates SET deleted_at = now(), updated_at = now() WHERE deleted_at IS NULL;

-- How long a team's paused sandboxes are kept; NULL is the platform's default.
ALTER TABLE sandboxes ADD COLUMN paused_ttl_sec integer CHECK (paused_ttl_sec > 0);
ALTER TABLE sandboxes ADD COLUMN ttl_warned_at timestamptz;

-- How far an operation is that moves bytes.
ALTER TABLE operations ADD COLUMN progress jsonb NOT NULL DEFAULT '{}';

GRANT SELECT, INSERT, UPDATE, DELETE ON artifacts, chunks, artifact_chunks, doomed_objects, team_keys, engine_builds, state_copies, departures TO skerry_app;
GRANT SELECT ON state_places TO skerry_app;
GRANT USAGE ON SEQUENCE store_objects TO skerry_app;

-- +goose Down
DROP VIEW state_places;
ALTER TABLE operations DROP COLUMN progress;
ALTER TABLE sandboxes DROP COLUMN ttl_warned_at, DROP COLUMN paused_ttl_sec;
ALTER TABLE templates DROP COLUMN artifact_id;
ALTER TABLE snapshots DROP COLUMN arch, DROP COLUMN upload_error, DROP COLUMN upload_at, DROP COLUMN artifact_id;
DROP TABLE departures, state_copies, engine_builds, team_keys, doomed_objects, artifact_chunks, chunks, artifacts;
DROP SEQUENCE store_objects;
