-- name: ListKeys :many
SELECT kid, kind, sealed, public, created_at FROM platform_keys WHERE retired_at IS NULL ORDER BY created_at, kid;

-- name: ListPublic :many
SELECT kid, public FROM platform_keys WHERE kind = $1 ORDER BY created_at, kid;

-- name: LockKeys :exec
-- One server at a time makes keys; the others then find them.
SELECT pg_advisory_xact_lock(hashtext('skerry.platform_keys'));

-- name: InsertKey :exec
INSERT INTO platform_keys (kid, kind, sealed, public) VALUES ($1, $2, $3, $4);
