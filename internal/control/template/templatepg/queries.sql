-- name: ResolveByName :one
-- The team's own shadows the platform's.
SELECT * FROM templates
WHERE name = sqlc.arg(name) AND deleted_at IS NULL
  AND team_id IN (sqlc.arg(team_id), '00000000-0000-0000-0000-000000000000'::uuid)
ORDER BY (team_id = sqlc.arg(team_id)) DESC
LIMIT 1;

-- name: ByID :one
SELECT * FROM templates WHERE id = sqlc.arg(id);

-- name: List :many
SELECT * FROM templates
WHERE deleted_at IS NULL AND team_id IN (sqlc.arg(team_id), '00000000-0000-0000-0000-000000000000'::uuid)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (created_at, id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY created_at DESC, id DESC
LIMIT sqlc.arg(max_rows);

-- name: LockTeam :exec
-- Of two builds that end at once one comes second, and retires the other's.
SELECT id FROM teams WHERE id = sqlc.arg(id) FOR NO KEY UPDATE;

-- name: RetireByName :exec
UPDATE templates SET deleted_at = now(), updated_at = now()
WHERE team_id = sqlc.arg(team_id) AND name = sqlc.arg(name) AND deleted_at IS NULL;

-- name: Insert :one
-- The image is for what the host is that built it.
INSERT INTO templates (id, team_id, name, status, image_digest, image_size_bytes, manifest_digest, artifact_id, arch)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(name), 'ready', sqlc.arg(image_digest), sqlc.arg(image_size_bytes), sqlc.arg(manifest_digest), sqlc.arg(artifact_id),
    coalesce((SELECT h.arch FROM hosts h WHERE h.id = sqlc.arg(built_on)::uuid), ''))
RETURNING *;
