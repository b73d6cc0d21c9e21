-- +goose Up

-- A host that is to be emptied: since when, and until when that is tried. It is
-- draining while it can be reached.
ALTER TABLE hosts
    ADD COLUMN drain_requested_at timestamptz,
    ADD COLUMN drain_deadline_at  timestamptz, -- NULL for as long as it takes
    ADD CONSTRAINT hosts_drain_deadline CHECK (drain_deadline_at IS NULL OR drain_requested_at IS NOT NULL),
    ADD CONSTRAINT hosts_draining CHECK (status NOT IN ('online', 'draining') OR (status = 'draining') = (drain_requested_at IS NOT NULL)),
    ADD CONSTRAINT hosts_deleted CHECK ((status = 'deleted') = (deleted_at IS NOT NULL));
CREATE INDEX hosts_in_drain ON hosts (id) WHERE status = 'draining';

-- What is kept on a host.
CREATE INDEX snapshots_host ON snapshots (host_id, id) WHERE deleted_at IS NULL;

-- +goose Down
DROP INDEX snapshots_host;
DROP INDEX hosts_in_drain;
ALTER TABLE hosts
    DROP CONSTRAINT hosts_deleted,
    DROP CONSTRAINT hosts_draining,
    DROP CONSTRAINT hosts_drain_deadline;
UPDATE hosts SET status = 'online' WHERE status = 'draining';
ALTER TABLE hosts DROP COLUMN drain_deadline_at, DROP COLUMN drain_requested_at;
