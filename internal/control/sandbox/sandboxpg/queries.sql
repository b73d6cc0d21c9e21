-- name: LockCandidateHosts :many
-- Locks in the order of ids, so that two creates never wait for each other. The
-- lock is the weaker one: rows that merely refer to a host are not held up.
SELECT h.id, h.name, h.engines, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address
FROM hosts h
JOIN teams t ON t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL
WHERE h.status = 'online' AND h.deleted_at IS NULL
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
ORDER BY h.id
FOR NO KEY UPDATE OF h;

-- name: ReservedByHost :many
-- A statement of its own, after the locks: it must see what those who held
-- them before have written.
SELECT host_id,
    coalesce(sum(cpu_millis) FILTER (WHERE status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS cpu_millis,
    coalesce(sum(memory_mb) FILTER (WHERE status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS memory_mb,
    coalesce(sum(disk_mb), 0)::bigint AS disk_mb
FROM sandboxes
WHERE host_id = ANY(sqlc.arg(hosts)::uuid[]) AND ended_at IS NULL
GROUP BY host_id;

-- name: InsertPending :one
WITH placed AS (
    UPDATE hosts SET last_placed_at = clock_timestamp() WHERE hosts.id = sqlc.arg(host_id)
), op AS (
    INSERT INTO operations (id, sandbox_id, team_id, kind, incarnation, status, lease_owner, lease_until, deadline_at, attempts)
    VALUES (sqlc.arg(operation_id), sqlc.arg(id), sqlc.arg(team_id), 'create', 1, 'open', sqlc.narg(lease_owner)::uuid,
        now() + make_interval(secs => sqlc.narg(lease_secs)::float8), now() + make_interval(secs => sqlc.arg(limit_secs)::float8),
        CASE WHEN sqlc.narg(lease_owner)::uuid IS NULL THEN 0 ELSE 1 END)
), ev AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    VALUES (sqlc.arg(id), sqlc.arg(team_id), 'created', sqlc.arg(event_data))
)
INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, incarnation, engine, engine_version,
    cpu_millis, memory_mb, disk_mb, internet, env_sealed, metadata, timeout_sec, on_timeout, idle_timeout_sec,
    created_by_type, created_by_id, created_by_name)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(host_id), sqlc.arg(template_id), sqlc.arg(template_name), sqlc.arg(image_digest), 'pending', 1,
    sqlc.arg(engine), sqlc.arg(engine_version), sqlc.arg(cpu_millis), sqlc.arg(memory_mb), sqlc.arg(disk_mb), sqlc.arg(internet),
    sqlc.arg(env_sealed), sqlc.arg(metadata), sqlc.arg(timeout_sec), sqlc.arg(on_timeout), sqlc.narg(idle_timeout_sec),
    sqlc.arg(created_by_type), sqlc.arg(created_by_id), sqlc.arg(created_by_name))
RETURNING *;

-- name: Transition :one
WITH moved AS (
    UPDATE sandboxes SET
        status = sqlc.arg(to_status), updated_at = now(),
        engine_version = CASE WHEN sqlc.arg(engine_version)::text = '' THEN engine_version ELSE sqlc.arg(engine_version)::text END,
        end_reason = CASE WHEN sqlc.arg(end_reason)::text = '' THEN end_reason ELSE sqlc.arg(end_reason)::text END,
        error = CASE WHEN sqlc.arg(error)::text = '' THEN error ELSE sqlc.arg(error)::text END,
        started_at = CASE WHEN sqlc.arg(to_status) = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
        deadline_at = CASE
            WHEN sqlc.arg(ended)::bool THEN NULL
            WHEN sqlc.arg(to_status) = 'running' AND started_at IS NULL THEN now() + make_interval(secs => timeout_sec)
            ELSE deadline_at END,
        ended_at = CASE WHEN sqlc.arg(ended)::bool THEN now() END
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.status = sqlc.arg(from_status) AND sandboxes.incarnation = sqlc.arg(incarnation)
    RETURNING *
), closed AS (
    UPDATE operations o SET status = sqlc.arg(outcome), reason = sqlc.arg(reason), message = sqlc.arg(message), finished_at = now(),
        lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open' AND sqlc.arg(outcome)::text <> ''
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, sqlc.arg(event)::text, sqlc.arg(event_data)::jsonb FROM moved WHERE sqlc.arg(event)::text <> ''
)
SELECT * FROM moved;

-- name: LockSandbox :one
SELECT sqlc.embed(s), h.address, h.status AS host_status, coalesce(s.deadline_at < now(), false)::bool AS expired
FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.id = sqlc.arg(id)
FOR NO KEY UPDATE OF s;

-- name: BeginDelete :one
-- The row was locked by LockSandbox in this transaction. The new operation is
-- inserted only once the old one is closed: one may be open at a time.
WITH moved AS (
    UPDATE sandboxes SET status = 'stopping', incarnation = incarnation + 1, end_reason = sqlc.arg(end_reason), updated_at = now()
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.status = ANY(sqlc.arg(from_statuses)::text[])
    RETURNING *
), superseded AS (
    UPDATE operations o SET status = 'superseded', reason = sqlc.arg(end_reason), finished_at = now(), lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open'
    RETURNING o.id
), op AS (
    INSERT INTO operations (id, sandbox_id, team_id, kind, incarnation, status, lease_owner, lease_until, deadline_at, attempts)
    SELECT sqlc.arg(operation_id), moved.id, moved.team_id, 'delete', moved.incarnation, 'open', sqlc.narg(lease_owner)::uuid,
        now() + make_interval(secs => sqlc.narg(lease_secs)::float8), now() + make_interval(secs => sqlc.arg(limit_secs)::float8),
        CASE WHEN sqlc.narg(lease_owner)::uuid IS NULL THEN 0 ELSE 1 END
    FROM moved, (SELECT count(*) FROM superseded) AS before
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'stopping', sqlc.arg(event_data)::jsonb FROM moved
)
SELECT * FROM moved;

-- name: GetSandbox :one
SELECT sqlc.embed(s), h.address, h.status AS host_status
FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.id = sqlc.arg(id);

-- name: GetSandboxWithUser :one
SELECT sqlc.embed(s), h.address, h.status AS host_status, t.default_user
FROM sandboxes s JOIN hosts h ON h.id = s.host_id JOIN templates t ON t.id = s.template_id
WHERE s.id = sqlc.arg(id);

-- name: SeenSandboxes :many
-- Those that are not as they were seen.
SELECT sqlc.embed(s), h.address, h.status AS host_status
FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.id IN (
    SELECT x.id FROM (SELECT unnest(sqlc.arg(ids)::uuid[]) AS id, unnest(sqlc.arg(seen)::timestamptz[]) AS seen) AS w JOIN sandboxes x ON x.id = w.id
    WHERE x.updated_at <> w.seen);

-- name: ListSandboxes :many
SELECT sqlc.embed(s), h.address, h.status AS host_status
FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.team_id = sqlc.arg(team_id)
  AND (sqlc.arg(live_only)::bool = false OR s.ended_at IS NULL)
  AND (cardinality(sqlc.arg(statuses)::text[]) = 0 OR s.status = ANY(sqlc.arg(statuses)::text[]))
  AND (sqlc.arg(template_name)::text = '' OR s.template_name = sqlc.arg(template_name)::text)
  AND (sqlc.narg(template_id)::uuid IS NULL OR s.template_id = sqlc.narg(template_id)::uuid)
  AND (sqlc.arg(metadata)::jsonb = '{}'::jsonb OR s.metadata @> sqlc.arg(metadata)::jsonb)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (s.created_at, s.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY s.created_at DESC, s.id DESC
LIMIT sqlc.arg(max_rows);

-- name: ListEvents :many
SELECT id, kind, at, data FROM sandbox_events
WHERE sandbox_id = sqlc.arg(sandbox_id) AND (sqlc.arg(before)::bigint = 0 OR id < sqlc.arg(before)::bigint)
ORDER BY id DESC
LIMIT sqlc.arg(max_rows);

-- name: TakeDue :many
UPDATE operations SET lease_owner = sqlc.arg(owner)::uuid, lease_until = now() + make_interval(secs => sqlc.arg(lease_secs)::float8),
    attempts = attempts + 1
WHERE id IN (
    SELECT id FROM operations
    WHERE status = 'open' AND (lease_until IS NULL OR lease_until < now())
    ORDER BY lease_until NULLS FIRST
    LIMIT sqlc.arg(max_rows)
    FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: RenewLeases :many
UPDATE operations SET lease_until = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE id = ANY(sqlc.arg(ids)::uuid[]) AND status = 'open' AND lease_owner = sqlc.arg(owner)::uuid
RETURNING id;

-- name: YieldLease :exec
UPDATE operations SET lease_owner = NULL, lease_until = now() + make_interval(secs => sqlc.arg(pause_secs)::float8)
WHERE id = sqlc.arg(id) AND status = 'open' AND lease_owner = sqlc.arg(owner)::uuid;

-- name: ExpiredSandboxes :many
SELECT id FROM sandboxes
WHERE ended_at IS NULL AND deadline_at < now() AND on_timeout = 'kill' AND status = 'running'
ORDER BY deadline_at
LIMIT sqlc.arg(max_rows);

-- name: PruneEnded :many
SELECT id FROM sandboxes
WHERE ended_at < now() - make_interval(secs => sqlc.arg(retention_secs)::float8)
ORDER BY ended_at
LIMIT sqlc.arg(max_rows)
FOR UPDATE SKIP LOCKED;

-- name: DeleteEvents :exec
DELETE FROM sandbox_events WHERE sandbox_id = ANY(sqlc.arg(ids)::uuid[]);

-- name: DeleteOperations :exec
DELETE FROM operations WHERE sandbox_id = ANY(sqlc.arg(ids)::uuid[]);

-- name: DeleteSandboxes :exec
DELETE FROM sandboxes WHERE id = ANY(sqlc.arg(ids)::uuid[]);

-- name: InsertReport :execrows
INSERT INTO sandbox_events (sandbox_id, team_id, kind, data, at, host_id, generation, seq)
SELECT s.id, s.team_id, sqlc.arg(kind), sqlc.arg(data), sqlc.arg(at), sqlc.arg(host_id), sqlc.arg(generation), sqlc.arg(seq)
FROM sandboxes s WHERE s.id = sqlc.arg(sandbox_id) AND s.host_id = sqlc.arg(host_id)
ON CONFLICT (host_id, generation, seq) DO NOTHING;

-- name: InsertEvent :exec
INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
SELECT s.id, s.team_id, sqlc.arg(kind), sqlc.arg(data) FROM sandboxes s WHERE s.id = sqlc.arg(sandbox_id);

-- name: OnHost :many
SELECT sqlc.embed(s), h.address, h.status AS host_status
FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE (s.host_id = sqlc.arg(host_id) AND s.ended_at IS NULL) OR s.id = ANY(sqlc.arg(named)::uuid[]);
