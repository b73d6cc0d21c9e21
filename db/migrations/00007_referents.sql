-- +goose Up

-- What points at artifacts, and is there: an artifact without a line here is
-- nobody's. A replaced template counts as long as a sandbox or a saved state
-- consists of it.
CREATE VIEW artifact_referents AS
SELECT s.artifact_id FROM snapshots s WHERE s.artifact_id IS NOT NULL AND s.deleted_at IS NULL
UNION ALL
SELECT t.artifact_id FROM templates t
WHERE t.artifact_id IS NOT NULL
  AND (t.deleted_at IS NULL OR t.deleted_at > now() - interval '10 minutes' -- whoever resolved it may be about to use it
    OR EXISTS (SELECT FROM sandboxes x WHERE x.template_id = t.id AND x.ended_at IS NULL)
    OR EXISTS (SELECT FROM snapshots s WHERE s.template_id = t.id AND s.deleted_at IS NULL)
    OR EXISTS (SELECT FROM builds b WHERE b.base_id = t.id AND b.finished_at IS NULL))
UNION ALL
SELECT e.artifact_id FROM engine_builds e WHERE e.artifact_id IS NOT NULL
UNION ALL
SELECT c.artifact_id FROM build_contexts c
WHERE c.artifact_id IS NOT NULL
  AND (c.expires_at > now() OR EXISTS (SELECT FROM builds b WHERE (b.context_id = c.id OR b.tarball_id = c.id) AND b.finished_at IS NULL));

CREATE INDEX sandboxes_template_live ON sandboxes (template_id) WHERE ended_at IS NULL;
CREATE INDEX snapshots_template ON snapshots (template_id) WHERE deleted_at IS NULL;
CREATE INDEX engine_builds_artifact ON engine_builds (artifact_id) WHERE artifact_id IS NOT NULL;
CREATE INDEX artifacts_ready ON artifacts (ready_at) WHERE status = 'ready';
GRANT SELECT ON artifact_referents TO skerry_app;

-- +goose Down
DROP INDEX artifacts_ready, engine_builds_artifact, snapshots_template, sandboxes_template_live;
DROP VIEW artifact_referents;
