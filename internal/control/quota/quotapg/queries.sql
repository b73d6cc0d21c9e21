-- name: LockTeam :one
-- Whoever makes something that counts comes one after the other, team by team.
SELECT id FROM teams WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: GetLimits :one
-- A living team's overrides and, of what is asked for, its use. A statement of
-- its own, after the lock: it must see what those who held it have written. A
-- part that is not asked for is not looked at.
SELECT l.sandboxes AS max_sandboxes, l.cpu_millis AS max_cpu_millis, l.memory_mb AS max_memory_mb, l.disk_mb AS max_disk_mb,
    l.stored_mb AS max_stored_mb, l.api_keys AS max_api_keys, l.hosts AS max_hosts, l.templates AS max_templates,
    live.sandboxes, live.cpu_millis, live.memory_mb, live.disk_mb,
    ((saved.bytes + own.bytes + 1048575) / 1048576)::bigint AS stored_mb,
    keys.n AS api_keys, brought.n AS hosts, own.n AS templates
FROM teams t
LEFT JOIN team_limits l ON l.team_id = t.id
CROSS JOIN LATERAL (
    SELECT count(*) AS sandboxes, coalesce(sum(s.cpu_millis), 0)::bigint AS cpu_millis, coalesce(sum(s.memory_mb), 0)::bigint AS memory_mb,
        coalesce(sum(s.disk_mb), 0)::bigint AS disk_mb
    FROM sandboxes s WHERE sqlc.arg(of_sandboxes)::bool AND s.team_id = t.id AND s.ended_at IS NULL) live
CROSS JOIN LATERAL (
    SELECT coalesce(sum(n.size_bytes), 0)::bigint AS bytes
    FROM snapshots n WHERE sqlc.arg(of_stored)::bool AND n.team_id = t.id AND n.deleted_at IS NULL) saved
CROSS JOIN LATERAL (
    SELECT count(*) AS n
    FROM team_api_keys k
    WHERE sqlc.arg(of_keys)::bool AND k.team_id = t.id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())) keys
CROSS JOIN LATERAL (
    SELECT count(*) AS n FROM hosts h WHERE sqlc.arg(of_hosts)::bool AND h.team_id = t.id AND h.deleted_at IS NULL) brought
CROSS JOIN LATERAL (
    SELECT count(*) AS n, coalesce(sum(p.image_size_bytes), 0)::bigint AS bytes
    FROM templates p WHERE (sqlc.arg(of_templates)::bool OR sqlc.arg(of_stored)::bool) AND p.team_id = t.id AND p.deleted_at IS NULL) own
WHERE t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL;

-- name: SetLimits :exec
INSERT INTO team_limits (team_id, sandboxes, cpu_millis, memory_mb, disk_mb, stored_mb, api_keys, hosts, templates)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (team_id) DO UPDATE SET sandboxes = excluded.sandboxes, cpu_millis = excluded.cpu_millis, memory_mb = excluded.memory_mb,
    disk_mb = excluded.disk_mb, stored_mb = excluded.stored_mb, api_keys = excluded.api_keys, hosts = excluded.hosts,
    templates = excluded.templates, updated_at = now();
