-- name: LockSandbox :one
-- Accesses of one sandbox are made one after the other, and none once it ends.
SELECT team_id, status FROM sandboxes WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND build_id IS NULL FOR NO KEY UPDATE;

-- name: DropExpired :exec
DELETE FROM port_access WHERE sandbox_id = sqlc.arg(sandbox_id) AND expires_at <= now();

-- name: CountAccess :one
SELECT count(*) FROM port_access WHERE sandbox_id = sqlc.arg(sandbox_id);

-- name: InsertAccess :one
INSERT INTO port_access (id, team_id, sandbox_id, port, token_hash, name, created_by_type, created_by_id, created_by_name, expires_at)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(sandbox_id), sqlc.arg(port), sqlc.narg(token_hash), sqlc.arg(name), sqlc.arg(created_by_type),
        sqlc.arg(created_by_id), sqlc.arg(created_by_name), now() + sqlc.narg(lasts)::bigint * interval '1 second')
RETURNING created_at, expires_at;

-- name: ListAccess :many
SELECT id, port, (token_hash IS NULL)::boolean AS public, name, created_by_name, created_at, expires_at
FROM port_access
WHERE sandbox_id = sqlc.arg(sandbox_id) AND (expires_at IS NULL OR expires_at > now())
  AND (created_at, id) < (sqlc.arg(before_at)::timestamptz, sqlc.arg(before_id)::uuid)
ORDER BY created_at DESC, id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: Revoke :one
DELETE FROM port_access WHERE id = sqlc.arg(id) AND sandbox_id = sqlc.arg(sandbox_id) AND team_id = sqlc.arg(team_id) RETURNING port, name;

-- name: Admit :one
-- An access that is for everybody comes before one that is for a token.
SELECT a.id, a.team_id, (a.token_hash IS NULL)::boolean AS public, a.expires_at
FROM port_access a JOIN teams t ON t.id = a.team_id
WHERE a.sandbox_id = sqlc.arg(sandbox_id) AND a.port = sqlc.arg(port) AND (a.expires_at IS NULL OR a.expires_at > now()) AND t.deleted_at IS NULL
  AND (a.token_hash IS NULL OR a.token_hash = sqlc.narg(token_hash))
ORDER BY a.token_hash NULLS FIRST
LIMIT 1;

-- name: TeamOf :one
SELECT s.team_id FROM sandboxes s JOIN teams t ON t.id = s.team_id
WHERE s.id = sqlc.arg(id) AND s.build_id IS NULL AND s.ended_at IS NULL AND t.deleted_at IS NULL;

-- name: Living :many
-- Admit for many at once.
SELECT a.id FROM port_access a JOIN teams t ON t.id = a.team_id
WHERE a.id = ANY(sqlc.arg(ids)::uuid[]) AND (a.expires_at IS NULL OR a.expires_at > now()) AND t.deleted_at IS NULL;
