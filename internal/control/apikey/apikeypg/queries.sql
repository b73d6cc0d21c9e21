-- name: InsertKey :one
INSERT INTO team_api_keys (id, team_id, name, key_hash, key_prefix, scopes, created_by, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
RETURNING created_at;

-- name: ListKeys :many
SELECT k.id, k.team_id, k.name, k.key_prefix, k.scopes, k.created_at, k.expires_at, k.last_used_at, k.created_by,
       coalesce(u.name, '')::text AS creator
FROM team_api_keys k LEFT JOIN users u ON u.id = k.created_by
WHERE k.team_id = @team_id AND k.revoked_at IS NULL
  AND (k.created_at, k.id) < (sqlc.arg(before_at)::timestamptz, sqlc.arg(before_id)::uuid)
ORDER BY k.created_at DESC, k.id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: HoldRole :one
-- Neither membership nor team goes before this transaction has ended.
SELECT m.role FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = sqlc.arg(user_id) AND m.team_id = sqlc.arg(team_id) AND t.deleted_at IS NULL
FOR SHARE OF m;

-- name: LockKey :one
SELECT name, created_by FROM team_api_keys WHERE id = $1 AND team_id = $2 AND revoked_at IS NULL FOR NO KEY UPDATE;

-- name: RevokeKey :exec
UPDATE team_api_keys SET revoked_at = now() WHERE id = $1;

-- name: Authenticate :one
SELECT k.id, k.team_id, k.name, k.scopes,
       (k.last_used_at IS NULL OR k.last_used_at < now() - interval '1 minute')::boolean AS stale
FROM team_api_keys k JOIN teams t ON t.id = k.team_id
WHERE k.key_hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.deleted_at IS NULL;

-- name: ByID :one
SELECT k.id, k.team_id, k.name, k.scopes
FROM team_api_keys k JOIN teams t ON t.id = k.team_id
WHERE k.id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.deleted_at IS NULL;

-- name: LivingKeys :many
-- Authenticate for many at once.
SELECT k.id FROM team_api_keys k JOIN teams t ON t.id = k.team_id
WHERE k.id = ANY(sqlc.arg(ids)::uuid[]) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AND t.deleted_at IS NULL;

-- name: Touch :exec
UPDATE team_api_keys SET last_used_at = now()
WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute');
