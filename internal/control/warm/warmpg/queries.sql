-- name: TryTurn :one
-- One server decides at a time, until its transaction ends.
SELECT pg_try_advisory_xact_lock(hashtext('skerry.warm'));

-- name: Hosts :many
-- Those that can be called, with what sandboxes hold of each.
SELECT h.id, h.team_id, h.status, h.address, h.generation, h.engines, h.arch, h.cpu_count, h.memory_bytes, h.disk_bytes,
    coalesce(r.cpu_millis, 0)::bigint AS cpu_millis, coalesce(r.memory_mb, 0)::bigint AS memory_mb, coalesce(r.disk_mb, 0)::bigint AS disk_mb
FROM hosts h
LEFT JOIN (
    SELECT s.host_id,
        coalesce(sum(s.cpu_millis) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS cpu_millis,
        coalesce(sum(s.memory_mb) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS memory_mb,
        coalesce(sum(s.disk_mb), 0)::bigint AS disk_mb
    FROM sandboxes s WHERE s.ended_at IS NULL GROUP BY s.host_id
) r ON r.host_id = h.id
WHERE h.deleted_at IS NULL AND h.status IN ('online', 'draining')
ORDER BY h.id;

-- name: Base :one
SELECT id, image_digest, engine, arch, cpu_millis, memory_mb, disk_mb
FROM templates
WHERE team_id = '00000000-0000-0000-0000-000000000000' AND name = sqlc.arg(name) AND status = 'ready' AND deleted_at IS NULL AND state_id IS NULL;

-- name: Demands :many
-- What was started since, of templates that can be started still: booted, or from
-- what the template was saved as. Ids of sandboxes grow with time.
SELECT (CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END)::uuid AS pool,
    s.template_id, s.engine, s.image_digest, p.arch, s.cpu_millis, s.memory_mb, s.disk_mb, s.internet, p.state_id, count(*)::integer AS count
FROM sandboxes s
JOIN teams t ON t.id = s.team_id AND t.deleted_at IS NULL
JOIN templates p ON p.id = s.template_id AND p.deleted_at IS NULL AND p.status = 'ready' AND p.image_digest = s.image_digest
WHERE s.id >= sqlc.arg(since)::uuid AND s.build_id IS NULL AND s.from_snapshot_id IS NOT DISTINCT FROM p.state_id
GROUP BY 1, s.template_id, s.engine, s.image_digest, p.arch, s.cpu_millis, s.memory_mb, s.disk_mb, s.internet, p.state_id
ORDER BY count(*) DESC, s.template_id LIMIT 200;

-- name: Copies :many
SELECT host_id, snapshot_id FROM state_copies
WHERE snapshot_id = ANY(sqlc.arg(states)::uuid[]) AND ready_at IS NOT NULL AND drop_at IS NULL;

-- name: Drop :exec
-- What is wanted no more.
DELETE FROM host_warm w WHERE NOT EXISTS (
    SELECT FROM (SELECT unnest(sqlc.arg(hosts)::uuid[]) AS host_id, unnest(sqlc.arg(keys)::bytea[]) AS key) k
    WHERE k.host_id = w.host_id AND k.key = w.key
);

-- name: Put :exec
-- What is wanted, all at once; the zero state is none.
INSERT INTO host_warm (host_id, key, template_id, image_digest, engine, cpu_millis, memory_mb, disk_mb, internet, state_id, wanted)
SELECT n.host_id, n.key, n.template_id, n.image_digest, n.engine, n.cpu_millis, n.memory_mb, n.disk_mb, n.internet,
    nullif(n.state_id, '00000000-0000-0000-0000-000000000000'), n.wanted
FROM (SELECT unnest(sqlc.arg(hosts)::uuid[]) AS host_id, unnest(sqlc.arg(keys)::bytea[]) AS key, unnest(sqlc.arg(templates)::uuid[]) AS template_id,
    unnest(sqlc.arg(images)::text[]) AS image_digest, unnest(sqlc.arg(engines)::text[]) AS engine, unnest(sqlc.arg(cpu_millis)::integer[]) AS cpu_millis,
    unnest(sqlc.arg(memory_mb)::integer[]) AS memory_mb, unnest(sqlc.arg(disk_mb)::integer[]) AS disk_mb, unnest(sqlc.arg(internet)::boolean[]) AS internet,
    unnest(sqlc.arg(states)::uuid[]) AS state_id, unnest(sqlc.arg(wanted)::integer[]) AS wanted) n
ON CONFLICT (host_id, key) DO UPDATE SET wanted = excluded.wanted, updated_at = now() WHERE host_warm.wanted <> excluded.wanted;

-- name: Lacking :many
-- Hosts that have less than they are to keep, as far as is known.
SELECT DISTINCT host_id FROM host_warm WHERE there < wanted;

-- name: Found :exec
UPDATE host_warm w SET there = f.there, updated_at = now()
FROM (SELECT unnest(sqlc.arg(keys)::bytea[]) AS key, unnest(sqlc.arg(there)::integer[]) AS there) f
WHERE w.host_id = sqlc.arg(host_id) AND w.key = f.key AND w.there <> f.there;
