-- name: LockCandidateHosts :many
-- Locks in the order of ids, so that two creates never wait for each other. The
-- lock is the weaker one: rows that merely refer to a host are not held up.
SELECT h.id, h.name, h.engines, h.arch, h.labels, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address,
    (SELECT coalesce(array_agg(i.image_digest), '{}') FROM host_images i WHERE i.host_id = h.id)::text[] AS images
FROM hosts h
JOIN teams t ON t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL
WHERE h.status = 'online' AND h.deleted_at IS NULL
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
ORDER BY h.id
FOR NO KEY UPDATE OF h;

-- name: PoolOf :one
-- Whose hosts a living team's sandboxes are put on: its own and only those, or
-- the platform's.
SELECT (CASE WHEN is_byoc THEN id ELSE '00000000-0000-0000-0000-000000000000'::uuid END)::uuid AS pool
FROM teams WHERE id = sqlc.arg(id) AND deleted_at IS NULL;

-- name: ViewPool :many
-- What a decision begins with; it holds only once the host taken was locked.
SELECT h.id, h.name, h.engines, h.arch, h.labels, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address,
    (SELECT coalesce(array_agg(i.image_digest), '{}') FROM host_images i WHERE i.host_id = h.id)::text[] AS images
FROM hosts h
WHERE h.status = 'online' AND h.deleted_at IS NULL AND h.team_id = sqlc.arg(pool)
ORDER BY h.id;

-- name: TryHost :many
-- One of the team's hosts, unless somebody else is just deciding on it.
SELECT h.id, h.name, h.engines, h.arch, h.labels, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address,
    (SELECT coalesce(array_agg(i.image_digest), '{}') FROM host_images i WHERE i.host_id = h.id)::text[] AS images
FROM hosts h
JOIN teams t ON t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL
WHERE h.id = sqlc.arg(id) AND h.status = 'online' AND h.deleted_at IS NULL
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
FOR NO KEY UPDATE OF h SKIP LOCKED;

-- name: LockHost :many
SELECT h.id, h.name, h.engines, h.arch, h.labels, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address,
    (SELECT coalesce(array_agg(i.image_digest), '{}') FROM host_images i WHERE i.host_id = h.id)::text[] AS images
FROM hosts h
JOIN teams t ON t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL
WHERE h.id = sqlc.arg(id) AND h.status = 'online' AND h.deleted_at IS NULL
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
FOR NO KEY UPDATE OF h;

-- name: NoteImage :many
-- Written once an hour at most: it is only a preference. fresh: nothing was started
-- from it there lately.
INSERT INTO host_images (host_id, image_digest) VALUES (sqlc.arg(host_id), sqlc.arg(image_digest))
ON CONFLICT (host_id, image_digest) DO UPDATE SET used_at = now() WHERE host_images.used_at < now() - interval '1 hour'
RETURNING (xmax = 0)::bool AS fresh;

-- name: ReservedByHost :many
-- A statement of its own, after the locks: it must see what those who held
-- them before have written.
WITH held AS (
    SELECT s.host_id,
        coalesce(sum(s.cpu_millis) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS cpu_millis,
        coalesce(sum(s.memory_mb) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS memory_mb,
        coalesce(sum(s.disk_mb), 0)::bigint AS disk_mb
    FROM sandboxes s
    WHERE s.host_id = ANY(sqlc.arg(hosts)::uuid[]) AND s.ended_at IS NULL
    GROUP BY s.host_id
), warm AS (
    SELECT w.host_id, sum(w.wanted * w.cpu_millis)::bigint AS cpu_millis, sum(w.wanted * w.memory_mb)::bigint AS memory_mb,
        jsonb_agg(jsonb_build_object('template', w.template_id, 'engine', w.engine, 'cpu', w.cpu_millis, 'memory', w.memory_mb, 'disk', w.disk_mb,
            'internet', w.internet, 'state', w.state_id, 'ready', w.there)) FILTER (WHERE w.there > 0) AS ready
    FROM host_warm w WHERE w.host_id = ANY(sqlc.arg(hosts)::uuid[]) GROUP BY w.host_id
)
SELECT coalesce(held.host_id, warm.host_id)::uuid AS host_id,
    coalesce(held.cpu_millis, 0)::bigint AS cpu_millis, coalesce(held.memory_mb, 0)::bigint AS memory_mb, coalesce(held.disk_mb, 0)::bigint AS disk_mb,
    coalesce(warm.cpu_millis, 0)::bigint AS warm_cpu_millis, coalesce(warm.memory_mb, 0)::bigint AS warm_memory_mb,
    coalesce(warm.ready, '[]')::jsonb AS warm
FROM held FULL JOIN warm ON warm.host_id = held.host_id;

-- name: InsertPending :one
-- With a lease its host is told next, by whoever holds the lease; without one it
-- waits for somebody to take it.
WITH placed AS (
    UPDATE hosts SET last_placed_at = clock_timestamp() WHERE hosts.id = sqlc.arg(host_id)
), op AS (
    INSERT INTO operations (id, sandbox_id, team_id, kind, incarnation, params, status, lease_owner, lease_until, deadline_at, attempts)
    VALUES (sqlc.arg(operation_id), sqlc.arg(id), sqlc.arg(team_id), 'create', 1, sqlc.arg(params), 'open', sqlc.narg(lease_owner)::uuid,
        now() + make_interval(secs => sqlc.narg(lease_secs)::float8), now() + make_interval(secs => sqlc.arg(limit_secs)::float8),
        CASE WHEN sqlc.narg(lease_owner)::uuid IS NULL THEN 0 ELSE 1 END)
), ev AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT sqlc.arg(id), sqlc.arg(team_id), e.kind, e.data
    FROM (VALUES (1, 'created', sqlc.arg(event_data)::jsonb), (2, 'starting', '{}'::jsonb)) AS e (n, kind, data)
    WHERE e.n = 1 OR sqlc.narg(lease_owner)::uuid IS NOT NULL
    ORDER BY e.n
), claimed AS ( -- the host takes the instance it has ready for just that, if it has one
    UPDATE host_warm w SET there = w.there - 1
    WHERE w.host_id = sqlc.arg(host_id) AND w.there > 0 AND w.template_id = sqlc.arg(template_id) AND w.engine = sqlc.arg(engine)
      AND w.cpu_millis = sqlc.arg(cpu_millis) AND w.memory_mb = sqlc.arg(memory_mb) AND w.disk_mb = sqlc.arg(disk_mb)
      AND w.internet = sqlc.arg(internet) AND w.state_id IS NOT DISTINCT FROM sqlc.narg(from_snapshot_id)
)
INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, incarnation, engine, engine_version,
    cpu_millis, memory_mb, disk_mb, internet, env_sealed, metadata, timeout_sec, on_timeout, idle_timeout_sec,
    checkpoint_interval_sec, paused_ttl_sec, auto_resume, from_snapshot_id, build_id, created_by_type, created_by_id, created_by_name)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(host_id), sqlc.arg(template_id), sqlc.arg(template_name), sqlc.arg(image_digest),
    CASE WHEN sqlc.narg(lease_owner)::uuid IS NULL THEN 'pending' ELSE 'starting' END, 1,
    sqlc.arg(engine), sqlc.arg(engine_version), sqlc.arg(cpu_millis), sqlc.arg(memory_mb), sqlc.arg(disk_mb), sqlc.arg(internet),
    sqlc.arg(env_sealed), sqlc.arg(metadata), sqlc.arg(timeout_sec), sqlc.arg(on_timeout), sqlc.narg(idle_timeout_sec),
    sqlc.narg(checkpoint_interval_sec), sqlc.narg(paused_ttl_sec), sqlc.arg(auto_resume), sqlc.narg(from_snapshot_id), sqlc.narg(build_id), sqlc.arg(created_by_type), sqlc.arg(created_by_id), sqlc.arg(created_by_name))
RETURNING *;

-- name: Transition :one
-- A fresh one has just begun to run: its idle time and its checkpoints count
-- from now. Whatever runs has a deadline. With its end, whatever was being saved of it has failed; its other
-- saved states go only when drop_states says so.
WITH moved AS (
    UPDATE sandboxes SET
        status = sqlc.arg(to_status), updated_at = now(),
        engine_version = CASE WHEN sqlc.arg(engine_version)::text = '' THEN engine_version ELSE sqlc.arg(engine_version)::text END,
        end_reason = CASE WHEN sqlc.arg(end_reason)::text = '' THEN end_reason ELSE sqlc.arg(end_reason)::text END,
        error = CASE WHEN sqlc.arg(error)::text = '' THEN error ELSE sqlc.arg(error)::text END,
        started_at = CASE WHEN sqlc.arg(to_status) = 'running' THEN coalesce(started_at, now()) ELSE started_at END,
        deadline_at = CASE
            WHEN sqlc.arg(ended)::bool OR sqlc.arg(no_deadline)::bool THEN NULL
            WHEN sqlc.narg(deadline_secs)::float8 IS NOT NULL THEN now() + make_interval(secs => sqlc.narg(deadline_secs)::float8)
            WHEN sqlc.arg(to_status) = 'running' AND deadline_at IS NULL THEN now() + make_interval(secs => timeout_sec)
            ELSE deadline_at END,
        idle_check_at = CASE
            WHEN sqlc.arg(ended)::bool OR sqlc.arg(to_status) = 'paused' THEN NULL
            WHEN sqlc.arg(fresh)::bool THEN now() + make_interval(secs => idle_timeout_sec)
            WHEN sqlc.narg(retry_secs)::float8 IS NOT NULL THEN greatest(idle_check_at, now() + make_interval(secs => sqlc.narg(retry_secs)::float8))
            ELSE idle_check_at END,
        checkpoint_due_at = CASE
            WHEN sqlc.arg(ended)::bool OR sqlc.arg(to_status) = 'paused' THEN NULL
            WHEN sqlc.arg(fresh)::bool OR sqlc.arg(checkpointed)::bool THEN now() + make_interval(secs => checkpoint_interval_sec)
            ELSE checkpoint_due_at END,
        retry_at = now() + make_interval(secs => sqlc.narg(retry_secs)::float8),
        paused_at = CASE WHEN sqlc.arg(to_status) = 'paused' THEN coalesce(paused_at, now()) WHEN sqlc.arg(to_status) = 'running' THEN NULL ELSE paused_at END,
        paused_reason = CASE
            WHEN sqlc.arg(paused_reason)::text <> '' THEN sqlc.arg(paused_reason)::text
            WHEN sqlc.arg(to_status) = 'running' THEN ''
            ELSE paused_reason END,
        state_id = coalesce(sqlc.narg(newest_state)::uuid, state_id),
        state_at = CASE WHEN sqlc.narg(newest_state)::uuid IS NULL THEN state_at ELSE coalesce(sqlc.narg(newest_at)::timestamptz, now()) END,
        ttl_warned_at = CASE WHEN sqlc.arg(to_status) = 'running' THEN NULL ELSE ttl_warned_at END,
        ended_at = CASE WHEN sqlc.arg(ended)::bool THEN now() END
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.status = ANY(sqlc.arg(from_statuses)::text[]) AND sandboxes.incarnation = sqlc.arg(incarnation)
    RETURNING *
), closed AS (
    UPDATE operations o SET status = sqlc.arg(outcome), reason = sqlc.arg(reason), message = sqlc.arg(message), finished_at = now(),
        lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open' AND sqlc.arg(outcome)::text <> ''
), unmade AS (
    UPDATE snapshots p SET status = CASE WHEN p.status = 'creating' THEN 'failed' ELSE 'deleting' END,
        error = CASE WHEN p.status = 'creating' THEN 'The sandbox ended before this was complete.' ELSE p.error END
    FROM moved
    WHERE sqlc.arg(ended)::bool AND p.sandbox_id = moved.id
      AND (p.status = 'creating' OR (sqlc.arg(drop_states)::bool AND p.status = 'ready' AND p.kind IN ('pause', 'checkpoint')))
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, sqlc.arg(event)::text, sqlc.arg(event_data)::jsonb FROM moved WHERE sqlc.arg(event)::text <> ''
)
SELECT * FROM moved;

-- name: LockSandbox :one
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress,
    (coalesce(s.deadline_at < now(), false) AND coalesce(s.retry_at < now(), true))::bool AS expired,
    (h.status = 'draining' AND coalesce(h.drain_deadline_at > now(), true))::bool AS draining,
    coalesce(s.checkpoint_due_at < now(), false)::bool AS checkpoint_due
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
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
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE s.id = sqlc.arg(id);

-- name: GetSandboxWithUser :one
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress, t.default_user
FROM sandboxes s JOIN hosts h ON h.id = s.host_id JOIN templates t ON t.id = s.template_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE s.id = sqlc.arg(id);

-- name: SeenSandboxes :many
-- Those that are not as they were seen.
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE s.id IN (
    SELECT x.id FROM (SELECT unnest(sqlc.arg(ids)::uuid[]) AS id, unnest(sqlc.arg(seen)::timestamptz[]) AS seen) AS w JOIN sandboxes x ON x.id = w.id
    WHERE x.updated_at <> w.seen);

-- name: ListSandboxes :many
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE s.team_id = sqlc.arg(team_id) AND s.build_id IS NULL
  AND (sqlc.arg(live_only)::bool = false OR s.ended_at IS NULL)
  AND (cardinality(sqlc.arg(statuses)::text[]) = 0 OR s.status = ANY(sqlc.arg(statuses)::text[]))
  AND (sqlc.arg(template_name)::text = '' OR s.template_name = sqlc.arg(template_name)::text)
  AND (sqlc.narg(template_id)::uuid IS NULL OR s.template_id = sqlc.narg(template_id)::uuid)
  AND (sqlc.arg(metadata)::jsonb = '{}'::jsonb OR s.metadata @> sqlc.arg(metadata)::jsonb)
  AND (sqlc.narg(since)::timestamptz IS NULL OR s.created_at >= sqlc.narg(since)::timestamptz)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (s.created_at, s.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY s.created_at DESC, s.id DESC
LIMIT sqlc.arg(max_rows);

-- name: ListSandboxesOldestFirst :many
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE s.team_id = sqlc.arg(team_id) AND s.build_id IS NULL
  AND (sqlc.arg(live_only)::bool = false OR s.ended_at IS NULL)
  AND (cardinality(sqlc.arg(statuses)::text[]) = 0 OR s.status = ANY(sqlc.arg(statuses)::text[]))
  AND (sqlc.arg(template_name)::text = '' OR s.template_name = sqlc.arg(template_name)::text)
  AND (sqlc.narg(template_id)::uuid IS NULL OR s.template_id = sqlc.narg(template_id)::uuid)
  AND (sqlc.arg(metadata)::jsonb = '{}'::jsonb OR s.metadata @> sqlc.arg(metadata)::jsonb)
  AND (sqlc.narg(since)::timestamptz IS NULL OR s.created_at >= sqlc.narg(since)::timestamptz)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (s.created_at, s.id) > (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY s.created_at, s.id
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
-- Those to be paused only where their host can be told. One that its host paused
-- by itself keeps its deadline, for the case that it was to be killed. Nothing is
-- killed on a host in reach that was not looked at lately: this database may be
-- older than what runs there.
SELECT s.id, s.on_timeout FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.ended_at IS NULL AND s.deadline_at < now() AND coalesce(s.retry_at < now(), true)
  AND ((s.status = 'running' AND (s.on_timeout = 'kill' OR h.status IN ('online', 'draining'))) OR (s.status = 'paused' AND s.on_timeout = 'kill'))
  AND (s.on_timeout <> 'kill' OR h.status NOT IN ('online', 'draining') OR coalesce(h.reconciled_at > now() - make_interval(secs => sqlc.arg(looked_secs)::float8), true))
ORDER BY s.deadline_at
LIMIT sqlc.arg(max_rows);

-- name: TakeIdle :many
-- Leased by moving the time of the next check.
UPDATE sandboxes SET idle_check_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE sandboxes.id IN (
    SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id
    WHERE s.status = 'running' AND s.idle_check_at < now() AND h.status IN ('online', 'draining')
    ORDER BY s.idle_check_at
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF s SKIP LOCKED)
RETURNING sandboxes.*, (SELECT h.address FROM hosts h WHERE h.id = sandboxes.host_id) AS address;

-- name: PostponeIdle :exec
-- Unless somebody pinged meanwhile.
UPDATE sandboxes SET idle_check_at = now() + make_interval(secs => sqlc.arg(secs)::float8)
WHERE id = sqlc.arg(id) AND status = 'running' AND idle_check_at = sqlc.arg(leased)::timestamptz;

-- name: CheckpointsDue :many
SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.status = 'running' AND s.checkpoint_due_at < now() AND h.status IN ('online', 'draining')
ORDER BY s.checkpoint_due_at
LIMIT sqlc.arg(max_rows);

-- name: PausedTooLong :many
-- Like a kill, only once its host was looked at lately, where that can be.
SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id
WHERE s.status = 'paused' AND s.paused_at < now() - interval '1 hour'
  AND s.paused_at < now() - make_interval(secs => coalesce(s.paused_ttl_sec, sqlc.arg(limit_secs)::integer))
  AND (h.status NOT IN ('online', 'draining') OR coalesce(h.reconciled_at > now() - make_interval(secs => sqlc.arg(looked_secs)::float8), true))
ORDER BY s.paused_at
LIMIT sqlc.arg(max_rows);

-- name: WarnExpiring :many
-- Those that go within a day, or within half of their time where that is shorter.
WITH soon AS (
    UPDATE sandboxes SET ttl_warned_at = now()
    WHERE sandboxes.id IN (
        SELECT s.id FROM sandboxes s
        WHERE s.status = 'paused' AND s.ttl_warned_at IS NULL AND s.paused_at < now() - interval '30 minutes'
          AND s.paused_at < now() - make_interval(secs => coalesce(s.paused_ttl_sec, sqlc.arg(limit_secs)::integer)
              - least(86400, coalesce(s.paused_ttl_sec, sqlc.arg(limit_secs)::integer) / 2))
        ORDER BY s.paused_at
        LIMIT sqlc.arg(max_rows)
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING sandboxes.id, sandboxes.team_id,
        sandboxes.paused_at + make_interval(secs => coalesce(sandboxes.paused_ttl_sec, sqlc.arg(limit_secs)::integer)) AS expires_at
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT soon.id, soon.team_id, 'expiring', jsonb_build_object('expires_at', soon.expires_at) FROM soon
)
SELECT soon.id FROM soon;

-- name: MissingTooLong :many
SELECT id, incarnation FROM sandboxes
WHERE status = 'missing' AND updated_at < now() - make_interval(secs => sqlc.arg(limit_secs)::float8)
ORDER BY updated_at
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

-- name: MarksOnHost :many
SELECT id, status, incarnation, updated_at FROM sandboxes WHERE host_id = sqlc.arg(host_id) AND ended_at IS NULL;

-- name: OnHost :many
SELECT sqlc.embed(s), h.address, h.status AS host_status, st.size_bytes AS state_bytes, st.status AS state_status,
    coalesce((SELECT a.status FROM artifacts a WHERE a.id = st.artifact_id), '')::text AS state_artifact,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = s.state_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS state_copies,
    (SELECT o.progress FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open') AS progress
FROM sandboxes s JOIN hosts h ON h.id = s.host_id LEFT JOIN snapshots st ON st.id = s.state_id
WHERE (s.host_id = sqlc.arg(host_id) AND s.ended_at IS NULL) OR s.id = ANY(sqlc.arg(named)::uuid[]);

-- name: BeginOperation :one
-- The row was locked by LockSandbox in this transaction. What goes on elsewhere
-- leaves its state of before behind.
WITH moved AS (
    UPDATE sandboxes SET status = sqlc.arg(to_status), incarnation = incarnation + sqlc.arg(step)::bigint,
        host_id = coalesce(sqlc.narg(to_host)::uuid, host_id), updated_at = now()
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.status = sqlc.arg(from_status)
    RETURNING *
), left_behind AS (
    INSERT INTO departures (sandbox_id, host_id, incarnation, state_id)
    SELECT moved.id, sqlc.arg(from_host), moved.incarnation - sqlc.arg(step)::bigint, moved.state_id FROM moved
    WHERE moved.host_id <> sqlc.arg(from_host) AND moved.state_id IS NOT NULL
    ON CONFLICT (sandbox_id, host_id) DO UPDATE SET incarnation = excluded.incarnation, state_id = excluded.state_id, at = now(), cleared_at = NULL
), placed AS (
    UPDATE hosts SET last_placed_at = clock_timestamp() FROM moved WHERE hosts.id = moved.host_id AND moved.host_id <> sqlc.arg(from_host)
), op AS (
    INSERT INTO operations (id, sandbox_id, team_id, kind, incarnation, params, status, lease_owner, lease_until, deadline_at, attempts)
    SELECT sqlc.arg(operation_id), moved.id, moved.team_id, sqlc.arg(kind), moved.incarnation, sqlc.arg(params), 'open', sqlc.narg(lease_owner)::uuid,
        now() + make_interval(secs => sqlc.narg(lease_secs)::float8), now() + make_interval(secs => sqlc.arg(limit_secs)::float8),
        CASE WHEN sqlc.narg(lease_owner)::uuid IS NULL THEN 0 ELSE 1 END
    FROM moved
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, sqlc.arg(event)::text, sqlc.arg(event_data)::jsonb FROM moved WHERE sqlc.arg(event)::text <> ''
)
SELECT * FROM moved;

-- name: GetOperation :one
SELECT id, kind, status, reason, message, params FROM operations WHERE id = sqlc.arg(id);

-- name: OpenOperation :one
SELECT id FROM operations WHERE sandbox_id = sqlc.arg(sandbox_id) AND status = 'open';

-- name: HoldBack :exec
-- Nobody needs to look at the copies before their state is there.
UPDATE operations SET lease_until = now() + make_interval(secs => sqlc.arg(secs)::float8)
WHERE sandbox_id = ANY(sqlc.arg(ids)::uuid[]) AND status = 'open' AND kind = 'create';

-- name: LetGo :exec
UPDATE operations o SET lease_until = NULL
FROM sandboxes c
WHERE c.from_snapshot_id = sqlc.arg(snapshot_id)::uuid AND c.status = 'pending' AND o.sandbox_id = c.id AND o.status = 'open' AND o.lease_owner IS NULL;

-- name: SetDeadline :one
-- With later_only it is put off, never brought forward.
UPDATE sandboxes SET deadline_at = greatest(now() + make_interval(secs => sqlc.arg(secs)::float8), CASE WHEN sqlc.arg(later_only)::bool THEN deadline_at END),
    retry_at = NULL, updated_at = now()
WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND status IN ('running', 'snapshotting')
RETURNING id;

-- name: Ping :one
UPDATE sandboxes SET idle_check_at = now() + make_interval(secs => idle_timeout_sec)
WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND status IN ('running', 'snapshotting')
RETURNING id;

-- name: InsertState :exec
WITH made AS (
    INSERT INTO snapshots (id, team_id, kind, name, status, sandbox_id, incarnation, host_id, arch, template_id, template_name, image_digest, engine,
        engine_version, memory, cpu_millis, memory_mb, disk_mb, internet, env_sealed, created_by_type, created_by_id, created_by_name)
    SELECT sqlc.arg(id), s.team_id, sqlc.arg(kind), sqlc.narg(name), 'creating', s.id, s.incarnation, s.host_id, h.arch, s.template_id, s.template_name, s.image_digest,
        s.engine, s.engine_version, sqlc.arg(memory), s.cpu_millis, s.memory_mb, s.disk_mb, s.internet, sqlc.arg(env_sealed),
        sqlc.arg(created_by_type), sqlc.arg(created_by_id), sqlc.arg(created_by_name)
    FROM sandboxes s JOIN hosts h ON h.id = s.host_id WHERE s.id = sqlc.arg(sandbox_id)
    RETURNING id, host_id
)
INSERT INTO state_copies (snapshot_id, host_id) SELECT made.id, made.host_id FROM made;

-- name: AdoptState :one
-- A state that a host says it has of this sandbox, known before or not. What is
-- in the store under another digest is another state.
WITH adopted AS (
    INSERT INTO snapshots (id, team_id, kind, status, sandbox_id, incarnation, host_id, arch, template_id, template_name, image_digest, engine,
        engine_version, cpu_features, memory, cpu_millis, memory_mb, disk_mb, internet, env_sealed, size_bytes, digest,
        created_by_type, created_by_id, created_by_name, ready_at, upload_at)
    SELECT sqlc.arg(id), s.team_id, 'pause', 'ready', s.id, s.incarnation, s.host_id, h.arch, s.template_id, s.template_name, s.image_digest, s.engine,
        sqlc.arg(engine_version), sqlc.arg(cpu_features)::text[], sqlc.arg(memory), s.cpu_millis, s.memory_mb, s.disk_mb, s.internet, sqlc.arg(env_sealed),
        sqlc.arg(size_bytes), sqlc.arg(digest), 'system', sqlc.arg(created_by), sqlc.arg(created_by), now(), now()
    FROM sandboxes s JOIN hosts h ON h.id = s.host_id WHERE s.id = sqlc.arg(sandbox_id)
    ON CONFLICT (id) DO UPDATE SET status = 'ready', engine_version = excluded.engine_version, cpu_features = excluded.cpu_features,
        memory = excluded.memory, size_bytes = excluded.size_bytes, digest = excluded.digest, error = '', ready_at = now(), deleted_at = NULL, drop_at = NULL,
        upload_at = now(), artifact_id = CASE WHEN snapshots.digest = excluded.digest THEN snapshots.artifact_id END
    WHERE snapshots.sandbox_id = excluded.sandbox_id AND snapshots.kind IN ('pause', 'checkpoint')
      AND (snapshots.host_id = excluded.host_id OR EXISTS (SELECT FROM state_copies k WHERE k.snapshot_id = snapshots.id AND k.host_id = excluded.host_id))
    RETURNING id
)
INSERT INTO state_copies (snapshot_id, host_id, ready_at)
SELECT adopted.id, s.host_id, now() FROM adopted JOIN sandboxes s ON s.id = sqlc.arg(sandbox_id)
ON CONFLICT (snapshot_id, host_id) DO UPDATE SET ready_at = coalesce(state_copies.ready_at, now()), drop_at = NULL
RETURNING snapshot_id;

-- name: RecoverFrom :one
WITH moved AS (
    UPDATE sandboxes SET state_id = sqlc.arg(state_id)::uuid, state_at = now(), updated_at = now()
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.ended_at IS NOT NULL AND sandboxes.end_reason = 'lost'
    RETURNING sandboxes.id, sandboxes.team_id
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'recoverable', jsonb_build_object('snapshot_id', sqlc.arg(state_id)::uuid, 'seen_by', 'inventory') FROM moved
)
SELECT moved.id FROM moved;

-- name: TeamDeleted :one
SELECT (deleted_at IS NOT NULL)::bool FROM teams WHERE id = sqlc.arg(id);

-- name: NotLost :exec
-- It was given up as lost, and is not wanted any more.
UPDATE sandboxes SET end_reason = sqlc.arg(end_reason) WHERE id = sqlc.arg(id) AND end_reason = 'lost';

-- name: CompleteState :one
-- From now on it is on its way to the store, unless it is for a moment only.
WITH complete AS (
    UPDATE snapshots SET status = 'ready', engine_version = sqlc.arg(engine_version), cpu_features = sqlc.arg(cpu_features)::text[], memory = sqlc.arg(memory),
        size_bytes = sqlc.arg(size_bytes), digest = sqlc.arg(digest), error = '', ready_at = now(),
        upload_at = CASE WHEN kind NOT IN ('fork', 'layer') THEN now() END
    WHERE snapshots.id = sqlc.arg(id) AND snapshots.status = 'creating'
    RETURNING snapshots.id, snapshots.host_id
)
INSERT INTO state_copies (snapshot_id, host_id, ready_at) SELECT complete.id, complete.host_id, now() FROM complete
ON CONFLICT (snapshot_id, host_id) DO UPDATE SET ready_at = now(), drop_at = NULL
RETURNING snapshot_id;

-- name: FailState :exec
UPDATE snapshots SET status = 'failed', error = sqlc.arg(error) WHERE id = sqlc.arg(id) AND status = 'creating';

-- name: FailUnmade :exec
UPDATE snapshots SET status = 'failed', error = sqlc.arg(error) WHERE sandbox_id = sqlc.arg(sandbox_id) AND status = 'creating';

-- name: Supplant :exec
-- What this sandbox's newest state, or the new one of a name, takes the place of.
UPDATE snapshots old SET status = 'deleting'
FROM snapshots new
WHERE new.id = sqlc.arg(id) AND old.id <> new.id AND old.status = 'ready'
  AND ((new.kind IN ('pause', 'checkpoint') AND old.kind IN ('pause', 'checkpoint') AND old.sandbox_id = new.sandbox_id AND old.deleted_at IS NULL)
    OR (new.kind = 'snapshot' AND old.team_id = new.team_id AND old.name = new.name));

-- name: NameTaken :one
SELECT EXISTS (SELECT FROM snapshots WHERE team_id = sqlc.arg(team_id) AND name = sqlc.arg(name)::text AND status = 'ready');

-- name: ShareState :one
-- Keeps a state from being removed until this transaction has written who
-- starts from it.
SELECT * FROM snapshots WHERE id = sqlc.arg(id) FOR SHARE;

-- name: GetState :one
SELECT sqlc.embed(p), h.address, h.status AS host_status, coalesce(a.status, '')::text AS artifact_status,
    coalesce(a.stored_bytes, 0)::bigint AS stored_bytes, coalesce(a.sent_bytes, 0)::bigint AS sent_bytes,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = p.id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS copies
FROM snapshots p JOIN hosts h ON h.id = p.host_id LEFT JOIN artifacts a ON a.id = p.artifact_id WHERE p.id = sqlc.arg(id);

-- name: NamedState :one
SELECT sqlc.embed(p), h.address, h.status AS host_status, coalesce(a.status, '')::text AS artifact_status,
    coalesce(a.stored_bytes, 0)::bigint AS stored_bytes, coalesce(a.sent_bytes, 0)::bigint AS sent_bytes,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = p.id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS copies
FROM snapshots p JOIN hosts h ON h.id = p.host_id LEFT JOIN artifacts a ON a.id = p.artifact_id
WHERE p.team_id = sqlc.arg(team_id) AND p.name = sqlc.arg(name)::text AND p.deleted_at IS NULL AND p.status IN ('creating', 'ready')
ORDER BY p.status DESC
LIMIT 1;

-- name: ListNamedStates :many
SELECT sqlc.embed(p), h.address, h.status AS host_status, coalesce(a.status, '')::text AS artifact_status,
    coalesce(a.stored_bytes, 0)::bigint AS stored_bytes, coalesce(a.sent_bytes, 0)::bigint AS sent_bytes,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = p.id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS copies
FROM snapshots p JOIN hosts h ON h.id = p.host_id LEFT JOIN artifacts a ON a.id = p.artifact_id
WHERE p.team_id = sqlc.arg(team_id) AND p.kind = 'snapshot' AND p.deleted_at IS NULL
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (p.created_at, p.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY p.created_at DESC, p.id DESC
LIMIT sqlc.arg(max_rows);

-- name: ListStates :many
SELECT sqlc.embed(p), h.address, h.status AS host_status, coalesce(a.status, '')::text AS artifact_status,
    coalesce(a.stored_bytes, 0)::bigint AS stored_bytes, coalesce(a.sent_bytes, 0)::bigint AS sent_bytes,
    ARRAY(SELECT c.host_id FROM state_copies c WHERE c.snapshot_id = p.id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL ORDER BY c.host_id)::uuid[] AS copies
FROM snapshots p JOIN hosts h ON h.id = p.host_id LEFT JOIN artifacts a ON a.id = p.artifact_id
WHERE p.team_id = sqlc.arg(team_id) AND p.deleted_at IS NULL
  AND (sqlc.arg(kind)::text = '' OR p.kind = sqlc.arg(kind)::text)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (p.created_at, p.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY p.created_at DESC, p.id DESC
LIMIT sqlc.arg(max_rows);

-- name: LockState :one
SELECT * FROM snapshots WHERE id = sqlc.arg(id) FOR NO KEY UPDATE;

-- name: LivesFrom :one
-- Whether a living sandbox has nothing else to go on from, or a template is
-- started from it.
SELECT (EXISTS (SELECT FROM sandboxes WHERE state_id = sqlc.arg(snapshot_id)::uuid AND ended_at IS NULL)
    OR EXISTS (SELECT FROM templates WHERE state_id = sqlc.arg(snapshot_id)::uuid AND deleted_at IS NULL))::bool;

-- name: MarkDeleting :exec
UPDATE snapshots SET status = 'deleting' WHERE id = sqlc.arg(id) AND status IN ('ready', 'failed');

-- name: DropStatesOf :exec
UPDATE snapshots SET status = 'deleting'
WHERE sandbox_id = ANY(sqlc.arg(ids)::uuid[]) AND kind IN ('pause', 'checkpoint') AND status = 'ready';

-- name: DropForks :exec
-- The state of a fork goes when the last copy has left its create.
UPDATE snapshots p SET status = 'deleting'
WHERE p.kind = 'fork' AND p.status = 'ready'
  AND NOT EXISTS (SELECT FROM sandboxes c WHERE c.from_snapshot_id = p.id AND c.status IN ('pending', 'starting'));

-- name: LeftStates :many
-- What deleted teams have left and no sandbox goes on from any more.
SELECT p.id, p.team_id, p.name FROM snapshots p
WHERE p.team_id IN (SELECT t.id FROM teams t WHERE t.deleted_at IS NOT NULL) AND p.deleted_at IS NULL AND p.status = 'ready' AND p.kind <> 'fork'
  AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.state_id = p.id AND s.ended_at IS NULL)
  AND NOT EXISTS (SELECT FROM templates t WHERE t.state_id = p.id AND t.deleted_at IS NULL)
ORDER BY p.id
LIMIT sqlc.arg(max_rows);

-- name: TakeDropping :many
-- Copies that hosts in reach are to remove: of states that are not wanted any
-- more, and single ones. Leased by the time of the next try. What somebody is
-- about to start from waits for them.
UPDATE state_copies SET drop_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE (state_copies.snapshot_id, state_copies.host_id) IN (
    SELECT c.snapshot_id, c.host_id FROM state_copies c
    WHERE (c.snapshot_id, c.host_id) IN (
        (SELECT k.snapshot_id, k.host_id FROM snapshots p JOIN state_copies k ON k.snapshot_id = p.id JOIN hosts h ON h.id = k.host_id
         WHERE p.status IN ('failed', 'deleting') AND (k.drop_at IS NULL OR k.drop_at < now()) AND h.status IN ('online', 'draining')
           AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = p.id AND x.status IN ('pending', 'starting'))
         ORDER BY k.drop_at NULLS FIRST LIMIT sqlc.arg(max_rows))
        UNION ALL
        (SELECT k.snapshot_id, k.host_id FROM state_copies k JOIN hosts h ON h.id = k.host_id
         WHERE k.drop_at < now() AND h.status IN ('online', 'draining')
           AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = k.snapshot_id AND x.host_id = k.host_id AND x.status IN ('pending', 'starting'))
         ORDER BY k.drop_at LIMIT sqlc.arg(max_rows)))
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF c SKIP LOCKED)
  AND (state_copies.drop_at IS NULL OR state_copies.drop_at < now())
RETURNING state_copies.snapshot_id, state_copies.host_id, (SELECT h.address FROM hosts h WHERE h.id = state_copies.host_id) AS address;

-- name: Dropped :exec
-- A copy that was fetched again meanwhile is another one.
DELETE FROM state_copies WHERE snapshot_id = sqlc.arg(snapshot_id) AND host_id = sqlc.arg(host_id) AND drop_at IS NOT NULL;

-- name: SettleDropped :exec
-- What is not wanted leaves the store once nobody starts from it any more, and is
-- gone with its last copy.
UPDATE snapshots SET artifact_id = NULL, upload_at = NULL,
    status = CASE WHEN copies.there THEN snapshots.status ELSE 'deleted' END, deleted_at = CASE WHEN copies.there THEN NULL ELSE now() END
FROM (
    SELECT p.id, EXISTS (SELECT FROM state_copies c WHERE c.snapshot_id = p.id) AS there
    FROM snapshots p
    WHERE p.status IN ('failed', 'deleting')
      AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = p.id AND x.status IN ('pending', 'starting'))
      AND (p.artifact_id IS NOT NULL OR p.upload_at IS NOT NULL OR NOT EXISTS (SELECT FROM state_copies c WHERE c.snapshot_id = p.id))
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF p SKIP LOCKED
) copies
WHERE snapshots.id = copies.id;

-- name: Redrop :exec
-- A host in whose pool the team is has what was removed, or has a copy that
-- nobody wrote down. One of a living state counts only when it is the same.
INSERT INTO state_copies (snapshot_id, host_id, ready_at, drop_at)
SELECT p.id, h.id, now(), CASE WHEN p.status <> 'ready' THEN now() END
FROM (SELECT unnest(sqlc.arg(ids)::uuid[]) AS id, unnest(sqlc.arg(digests)::text[]) AS digest) u
JOIN snapshots p ON p.id = u.id
JOIN hosts h ON h.id = sqlc.arg(host_id) AND h.deleted_at IS NULL
JOIN teams t ON t.id = p.team_id
WHERE (h.id = p.host_id OR h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END)
  AND (p.status IN ('failed', 'deleting', 'deleted') OR p.status = 'ready' AND p.digest = u.digest)
ON CONFLICT (snapshot_id, host_id) DO UPDATE SET ready_at = now()
WHERE state_copies.ready_at IS NULL AND state_copies.drop_at IS NULL AND state_copies.made_at < now() - interval '1 hour';

-- name: CopiesOnHost :many
-- The copies that a host is said to have.
SELECT snapshot_id FROM state_copies WHERE host_id = sqlc.arg(host_id) AND ready_at < now() - make_interval(secs => sqlc.arg(older_secs)::float8) AND drop_at IS NULL;

-- name: LostCopies :exec
-- Of copies that are not there those are forgotten of which the state is
-- elsewhere too. While something is being started from one there it stays: a host
-- that was never said to have it was never told to start it.
DELETE FROM state_copies c
WHERE c.host_id = sqlc.arg(host_id) AND c.snapshot_id = ANY(sqlc.arg(ids)::uuid[]) AND c.drop_at IS NULL
  AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.state_id = c.snapshot_id AND x.host_id = c.host_id AND x.status = 'resuming')
  AND (EXISTS (SELECT FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id WHERE p.id = c.snapshot_id AND a.status = 'ready')
    OR EXISTS (SELECT FROM state_copies o WHERE o.snapshot_id = c.snapshot_id AND o.host_id <> c.host_id AND o.ready_at IS NOT NULL AND o.drop_at IS NULL));

-- name: AbandonedCopies :exec
-- What was being fetched and is not any more.
UPDATE state_copies SET drop_at = now()
WHERE (snapshot_id, host_id) IN (
    SELECT c.snapshot_id, c.host_id FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id
    WHERE c.ready_at IS NULL AND c.drop_at IS NULL AND c.made_at < now() - interval '1 hour' AND p.status <> 'creating'
      AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.host_id = c.host_id AND x.ended_at IS NULL
          AND (x.from_snapshot_id = p.id AND x.status IN ('pending', 'starting') OR x.state_id = p.id AND x.status = 'resuming'))
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF c SKIP LOCKED);

-- name: PruneStates :execrows
DELETE FROM snapshots WHERE id IN (
    SELECT p.id FROM snapshots p
    WHERE p.deleted_at < now() - make_interval(secs => sqlc.arg(retention_secs)::float8)
      AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.from_snapshot_id = p.id)
      AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.state_id = p.id)
      AND NOT EXISTS (SELECT FROM templates t WHERE t.state_id = p.id)
    ORDER BY p.deleted_at
    LIMIT sqlc.arg(max_rows)
    FOR UPDATE SKIP LOCKED);

-- name: InsertSamples :exec
-- Only of the host's own sandboxes, and of times that can be true.
INSERT INTO sandbox_samples (sandbox_id, at, cpu_millis, memory_bytes, disk_bytes, processes)
SELECT s.id, u.at, u.cpu, u.memory, u.disk, u.processes
FROM (SELECT unnest(sqlc.arg(ids)::uuid[]) AS id, unnest(sqlc.arg(ats)::timestamptz[]) AS at, unnest(sqlc.arg(cpus)::int[]) AS cpu,
        unnest(sqlc.arg(memories)::bigint[]) AS memory, unnest(sqlc.arg(disks)::bigint[]) AS disk, unnest(sqlc.arg(processes)::int[]) AS processes) u
JOIN sandboxes s ON s.id = u.id AND s.host_id = sqlc.arg(host_id)
WHERE u.at BETWEEN now() - interval '1 day' AND now() + interval '1 minute'
ON CONFLICT DO NOTHING;

-- name: ListSamples :many
-- The newest first; one query whatever the span.
SELECT at, cpu_millis, memory_bytes, disk_bytes, processes FROM sandbox_samples
WHERE sandbox_id = sqlc.arg(sandbox_id) AND at > sqlc.arg(since)::timestamptz
ORDER BY at DESC
LIMIT sqlc.arg(max_rows);

-- name: PruneSamples :execrows
DELETE FROM sandbox_samples WHERE (sandbox_id, at) IN (
    SELECT o.sandbox_id, o.at FROM sandbox_samples o WHERE o.at < now() - interval '1 day' ORDER BY o.at LIMIT sqlc.arg(max_rows));

-- name: HostView :many
-- One host for what can only go there, locked as candidates are.
SELECT h.id, h.name, h.engines, h.arch, h.labels, h.cpu_count, h.memory_bytes, h.disk_bytes, h.last_placed_at, h.address,
    (SELECT coalesce(array_agg(i.image_digest), '{}') FROM host_images i WHERE i.host_id = h.id)::text[] AS images
FROM hosts h
WHERE h.id = sqlc.arg(id) AND h.status = 'online' AND h.deleted_at IS NULL
FOR NO KEY UPDATE OF h;

-- name: StrayStates :many
-- Of the states that a host has those that nobody ever knew, of sandboxes of
-- that host that have ended.
SELECT u.state::uuid AS state FROM (SELECT unnest(sqlc.arg(states)::uuid[]) AS state, unnest(sqlc.arg(sandboxes)::uuid[]) AS sandbox) u
JOIN sandboxes s ON s.id = u.sandbox AND s.host_id = sqlc.arg(host_id) AND s.ended_at IS NOT NULL
WHERE NOT EXISTS (SELECT FROM snapshots p WHERE p.id = u.state);

-- name: LockOnHost :many
-- What lives on a host, and what is paused elsewhere and can go on from there
-- alone, locked in the order of ids. The host was locked before.
SELECT s.id FROM sandboxes s
WHERE s.ended_at IS NULL AND (s.host_id = sqlc.arg(host_id)
    OR s.status = 'paused' AND s.state_id IN (SELECT c.snapshot_id FROM state_copies c WHERE c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL)
      AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = s.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
ORDER BY s.id FOR NO KEY UPDATE OF s;

-- name: PutBackOnHost :many
-- What was about to go on there from a state that is elsewhere too is paused as
-- before. The rows were locked by LockOnHost in this transaction.
WITH moved AS (
    UPDATE sandboxes SET status = 'paused', incarnation = incarnation + 1, updated_at = now(), paused_at = coalesce(paused_at, now())
    WHERE sandboxes.host_id = sqlc.arg(host_id) AND sandboxes.status = 'resuming' AND EXISTS (
        SELECT FROM state_places k WHERE k.snapshot_id = sandboxes.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id)))
    RETURNING *
), closed AS (
    UPDATE operations o SET status = 'failed', reason = sqlc.arg(reason), message = sqlc.arg(message), finished_at = now(),
        lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open'
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'resume_failed', jsonb_build_object('reason', sqlc.arg(reason)::text, 'message', sqlc.arg(message)::text) FROM moved
)
SELECT moved.id FROM moved;

-- name: EndOnHost :many
-- What is paused with a state that is elsewhere too stays so; what is paused with
-- one that is here alone does not, wherever it ran. The rows were locked by
-- LockOnHost in this transaction. A new incarnation: no command that is under way
-- counts any more.
WITH moved AS (
    UPDATE sandboxes SET status = 'stopped', incarnation = incarnation + 1, ended_at = now(), updated_at = now(),
        end_reason = CASE WHEN end_reason = '' THEN sqlc.arg(reason)::text ELSE end_reason END,
        deadline_at = NULL, idle_check_at = NULL, checkpoint_due_at = NULL, retry_at = NULL
    WHERE sandboxes.ended_at IS NULL AND (sandboxes.host_id = sqlc.arg(host_id)
      AND NOT (sandboxes.status = 'paused' AND EXISTS (
          SELECT FROM state_places k WHERE k.snapshot_id = sandboxes.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
      OR sandboxes.status = 'paused' AND sandboxes.state_id IN (SELECT c.snapshot_id FROM state_copies c WHERE c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL)
      AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = sandboxes.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
    RETURNING *
), closed AS (
    UPDATE operations o SET status = 'superseded', reason = sqlc.arg(reason), message = sqlc.arg(message), finished_at = now(),
        lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open'
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'stopped', jsonb_build_object('reason', sqlc.arg(reason)::text, 'message', sqlc.arg(message)::text) FROM moved
)
SELECT id, team_id, incarnation, end_reason FROM moved ORDER BY id;

-- name: DropCopiesOnHost :exec
-- Nothing that a deleted host kept is left there, and nothing waits for it.
WITH gone AS (DELETE FROM departures d WHERE d.host_id = sqlc.arg(host_id))
DELETE FROM state_copies c WHERE c.host_id = sqlc.arg(host_id);

-- name: DropStatesOnHost :many
-- Of what a deleted host kept that goes of which there is nothing elsewhere. Its
-- copies are gone already.
UPDATE snapshots SET status = 'deleted', deleted_at = now(), drop_at = NULL, upload_at = NULL, artifact_id = NULL,
    error = CASE WHEN status = 'creating' THEN sqlc.arg(message)::text ELSE error END
WHERE snapshots.id IN (
    SELECT p.id FROM snapshots p
    WHERE p.deleted_at IS NULL AND p.id = ANY(sqlc.arg(ids)::uuid[])
      AND NOT EXISTS (SELECT FROM state_copies c WHERE c.snapshot_id = p.id)
      AND (p.status <> 'ready' OR NOT EXISTS (SELECT FROM artifacts a WHERE a.id = p.artifact_id AND a.status = 'ready')))
RETURNING id, team_id, kind, name;

-- name: StatesOnHost :many
-- What has a copy on a host, or was made there and has none.
SELECT c.snapshot_id::uuid AS id FROM state_copies c WHERE c.host_id = sqlc.arg(host_id)
UNION
SELECT p.id::uuid FROM snapshots p WHERE p.host_id = sqlc.arg(host_id) AND p.deleted_at IS NULL;

-- name: LostWithHost :many
-- What is being ended anyway is no loss, nor is what is paused or saved and is in
-- the store or on another host too.
SELECT l.kind, l.id, l.team_id, t.name AS team_name, l.name, l.status, l.created_at
FROM (
    SELECT 'sandbox'::text AS kind, s.id::uuid AS id, s.team_id, coalesce(nullif(s.metadata->>'name', ''), s.template_name) AS name, s.status, s.created_at
    FROM sandboxes s
    WHERE s.ended_at IS NULL AND s.status <> 'stopping' AND (s.host_id = sqlc.arg(host_id)
      AND NOT (s.status = 'paused' AND EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = s.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
      OR s.status = 'paused' AND s.state_id IN (SELECT c.snapshot_id FROM state_copies c WHERE c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL)
      AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = s.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
    UNION ALL
    SELECT 'snapshot'::text, p.id::uuid, p.team_id, coalesce(p.name, ''), p.status, p.created_at
    FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id
    WHERE c.host_id = sqlc.arg(host_id) AND p.kind = 'snapshot' AND p.status = 'ready' AND p.deleted_at IS NULL
      AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = p.id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id)))
) l JOIN teams t ON t.id = l.team_id
WHERE sqlc.narg(after)::uuid IS NULL OR l.id > sqlc.narg(after)::uuid
ORDER BY l.id
LIMIT sqlc.arg(max_rows);

-- name: CountLostWithHost :one
SELECT (SELECT count(*) FROM sandboxes s
     WHERE s.ended_at IS NULL AND s.status <> 'stopping' AND (s.host_id = sqlc.arg(host_id)
       AND NOT (s.status = 'paused' AND EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = s.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))
       OR s.status = 'paused' AND s.state_id IN (SELECT c.snapshot_id FROM state_copies c WHERE c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL)
      AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = s.state_id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id)))))::bigint AS sandboxes,
    (SELECT count(*) FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id
     WHERE c.host_id = sqlc.arg(host_id) AND p.kind = 'snapshot' AND p.status = 'ready' AND p.deleted_at IS NULL
       AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = p.id AND (k.host_id IS NULL OR k.host_id <> sqlc.arg(host_id))))::bigint AS snapshots;

-- name: TakeDraining :many
-- Some that run on hosts to be emptied, leased by the time of the next try; as
-- many a host as are not being paused there already.
UPDATE sandboxes SET retry_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE sandboxes.id IN (
    SELECT s.id FROM sandboxes s
    WHERE s.status = 'running' AND s.ended_at IS NULL AND s.id = ANY(ARRAY(
        SELECT due.id FROM (
            SELECT r.id, r.host_id, row_number() OVER (PARTITION BY r.host_id ORDER BY r.id) AS turn
            FROM hosts h JOIN sandboxes r ON r.host_id = h.id AND r.ended_at IS NULL
            WHERE h.status = 'draining' AND coalesce(h.drain_deadline_at > now(), true)
              AND r.status = 'running' AND coalesce(r.retry_at < now(), true)
        ) due
        WHERE due.turn <= sqlc.arg(at_once)::bigint
            - (SELECT count(*) FROM sandboxes b WHERE b.host_id = due.host_id AND b.status = 'pausing' AND b.ended_at IS NULL)))
    ORDER BY s.id
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF s SKIP LOCKED)
  AND sandboxes.status = 'running'
RETURNING sandboxes.id, (
    SELECT count(*) FROM operations o JOIN hosts h ON h.id = sandboxes.host_id
    WHERE o.sandbox_id = sandboxes.id AND o.kind = 'pause' AND o.status = 'failed' AND o.params->>'reason' = sqlc.arg(reason)::text
      AND o.created_at >= h.drain_requested_at)::bigint AS failed;

-- name: MarkMissing :many
-- What runs on hosts that have been silent for the whole window and are out of
-- service for it.
WITH gone AS (
    SELECT s.id FROM sandboxes s JOIN hosts h ON h.id = s.host_id
    WHERE s.status = 'running' AND s.ended_at IS NULL AND h.status = 'unreachable' AND h.deleted_at IS NULL
      AND coalesce(h.last_heartbeat_at, h.registered_at, h.created_at) < now() - make_interval(secs => sqlc.arg(after_secs)::float8)
    ORDER BY s.id
    LIMIT sqlc.arg(max_rows)
    FOR NO KEY UPDATE OF s SKIP LOCKED
), moved AS (
    UPDATE sandboxes SET status = 'missing', updated_at = now()
    FROM gone WHERE sandboxes.id = gone.id AND sandboxes.status = 'running'
    RETURNING sandboxes.*
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'missing', jsonb_build_object('reason', sqlc.arg(reason)::text) FROM moved
)
SELECT * FROM moved;

-- name: BringForward :one
-- The row was locked by LockSandbox in this transaction. Its deadline was that of
-- an earlier life; what it is now is decided next.
WITH moved AS (
    UPDATE sandboxes SET status = 'missing', incarnation = sqlc.arg(to_incarnation), deadline_at = NULL, updated_at = now()
    WHERE sandboxes.id = sqlc.arg(id) AND sandboxes.status = sqlc.arg(from_status) AND sandboxes.incarnation = sqlc.arg(incarnation)
      AND sandboxes.incarnation < sqlc.arg(to_incarnation)
    RETURNING *
), closed AS (
    UPDATE operations o SET status = 'superseded', reason = 'brought_forward', message = sqlc.arg(message), finished_at = now(),
        lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open'
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'brought_forward', sqlc.arg(event_data)::jsonb FROM moved
)
SELECT * FROM moved;

-- name: Reconciled :exec
-- The end of a look at a host: strays that it holds no more are forgotten, claims
-- to others' sandboxes after a day. settled: all that it holds and should not is
-- written down.
WITH gone AS (
    DELETE FROM host_strays s
    WHERE s.host_id = sqlc.arg(host_id) AND NOT s.sandbox_id = ANY(sqlc.arg(held)::uuid[])
      AND (s.kind = 'unknown' OR s.last_seen_at < now() - interval '1 day')
)
UPDATE hosts SET reconciled_at = now(), awaited_until = CASE WHEN sqlc.arg(settled)::bool THEN NULL ELSE awaited_until END
WHERE hosts.id = sqlc.arg(host_id);

-- name: NoteStrays :many
-- Their number is bounded: a host may claim anything. new says that the trail is
-- to hear of it.
INSERT INTO host_strays (host_id, sandbox_id, incarnation, kind, phase, state_id, paused_at, destroy_at)
SELECT sqlc.arg(host_id), u.sandbox, u.incarnation, u.kind, u.phase, u.state, CASE WHEN u.phase = 'paused' THEN now() END,
    CASE WHEN u.kind = 'unknown' THEN now() + make_interval(secs => sqlc.arg(keep_secs)::float8) END
FROM (SELECT unnest(sqlc.arg(sandboxes)::uuid[]) AS sandbox, unnest(sqlc.arg(incarnations)::bigint[]) AS incarnation,
        unnest(sqlc.arg(kinds)::text[]) AS kind, unnest(sqlc.arg(phases)::text[]) AS phase, unnest(sqlc.arg(states)::uuid[]) AS state) u
WHERE EXISTS (SELECT FROM host_strays k WHERE k.host_id = sqlc.arg(host_id) AND k.sandbox_id = u.sandbox)
   OR (SELECT count(*) FROM host_strays k WHERE k.host_id = sqlc.arg(host_id)) < sqlc.arg(most)::bigint
ON CONFLICT (host_id, sandbox_id) DO UPDATE SET incarnation = excluded.incarnation, kind = excluded.kind, last_seen_at = now(),
    phase = CASE WHEN excluded.phase = '' THEN host_strays.phase ELSE excluded.phase END,
    paused_at = CASE WHEN excluded.phase = 'paused' THEN coalesce(host_strays.paused_at, now()) WHEN excluded.phase = '' THEN host_strays.paused_at END,
    destroy_at = CASE WHEN host_strays.kind = excluded.kind THEN host_strays.destroy_at ELSE excluded.destroy_at END,
    told_at = CASE
        WHEN host_strays.kind <> excluded.kind OR excluded.kind = 'foreign' AND host_strays.told_at < now() - interval '1 day' THEN now()
        ELSE host_strays.told_at END
RETURNING sqlc.embed(host_strays), (told_at = now())::bool AS new;

-- name: CountTales :one
-- How many entries of a host's claims there are today, with these.
INSERT INTO host_tales (host_id, day, told) VALUES (sqlc.arg(host_id), (now() AT TIME ZONE 'UTC')::date, sqlc.arg(more))
ON CONFLICT (host_id) DO UPDATE SET day = excluded.day,
    told = CASE WHEN host_tales.day = excluded.day THEN host_tales.told ELSE 0 END + excluded.told
RETURNING told;

-- name: DueStrays :many
SELECT * FROM host_strays
WHERE host_id = sqlc.arg(host_id) AND destroy_at <= now()
ORDER BY destroy_at
LIMIT sqlc.arg(max_rows);

-- name: TeamOfHost :one
SELECT team_id FROM hosts WHERE id = sqlc.arg(id);

-- name: NotOfHost :many
-- Of the named sandboxes those whose row is another host's.
-- A former host may still tell of what went on elsewhere.
SELECT s.id FROM sandboxes s WHERE s.id = ANY(sqlc.arg(ids)::uuid[]) AND s.host_id <> sqlc.arg(host_id)
  AND NOT EXISTS (SELECT FROM departures d WHERE d.sandbox_id = s.id AND d.host_id = sqlc.arg(host_id));

-- name: StrayPaused :execrows
UPDATE host_strays SET paused_at = now(), phase = 'paused'
WHERE host_id = sqlc.arg(host_id) AND sandbox_id = sqlc.arg(sandbox_id) AND paused_at IS NULL;

-- name: DropStray :execrows
DELETE FROM host_strays WHERE host_id = sqlc.arg(host_id) AND sandbox_id = sqlc.arg(sandbox_id);

-- name: AskStrayGone :execrows
UPDATE host_strays SET destroy_at = least(destroy_at, now()) WHERE host_id = sqlc.arg(host_id) AND sandbox_id = sqlc.arg(sandbox_id);

-- name: ListStrays :many
SELECT * FROM host_strays
WHERE host_id = sqlc.arg(host_id) AND (sqlc.narg(after)::uuid IS NULL OR sandbox_id > sqlc.narg(after)::uuid)
ORDER BY sandbox_id
LIMIT sqlc.arg(max_rows);

-- name: UnnamedStates :many
-- Of the given ones those that no row places on this host.
SELECT u.state::uuid AS state FROM (SELECT unnest(sqlc.arg(states)::uuid[]) AS state) u
WHERE NOT EXISTS (SELECT FROM state_copies c WHERE c.snapshot_id = u.state AND c.host_id = sqlc.arg(host_id))
  AND NOT EXISTS (SELECT FROM snapshots p WHERE p.id = u.state AND p.host_id = sqlc.arg(host_id));

-- name: PruneImages :execrows
DELETE FROM host_images WHERE (host_id, image_digest) IN (
    SELECT i.host_id, i.image_digest FROM host_images i WHERE i.used_at < now() - interval '7 days' ORDER BY i.used_at LIMIT sqlc.arg(max_rows));

-- name: PruneTokens :execrows
-- Registration tokens that were over long ago. The newest of a host stays: who
-- shows that of a deleted host is told so.
DELETE FROM host_registration_tokens WHERE id IN (
    SELECT t.id FROM host_registration_tokens t
    WHERE t.expires_at < now() - interval '30 days'
      AND EXISTS (SELECT FROM host_registration_tokens n WHERE n.host_id = t.host_id AND (n.created_at, n.id) > (t.created_at, t.id))
    ORDER BY t.expires_at LIMIT sqlc.arg(max_rows));

-- name: PruneFamilies :execrows
-- Credentials that were void long ago, but for the newest of a host, as above.
DELETE FROM host_refresh_tokens WHERE id IN (
    SELECT f.id FROM host_refresh_tokens f
    WHERE f.revoked_at < now() - interval '30 days'
      AND EXISTS (SELECT FROM host_refresh_tokens n WHERE n.host_id = f.host_id AND (n.created_at, n.id) > (f.created_at, f.id))
    ORDER BY f.revoked_at LIMIT sqlc.arg(max_rows));

-- name: PruneStrays :execrows
-- Of hosts that were deleted.
DELETE FROM host_strays WHERE (host_id, sandbox_id) IN (
    SELECT s.host_id, s.sandbox_id FROM host_strays s JOIN hosts h ON h.id = s.host_id
    WHERE h.deleted_at IS NOT NULL ORDER BY s.last_seen_at LIMIT sqlc.arg(max_rows));

-- name: PruneDepartures :execrows
-- From hosts that were deleted: what they hold is nobody's any more.
DELETE FROM departures WHERE (sandbox_id, host_id) IN (
    SELECT d.sandbox_id, d.host_id FROM departures d JOIN hosts h ON h.id = d.host_id
    WHERE h.deleted_at IS NOT NULL ORDER BY d.sandbox_id LIMIT sqlc.arg(max_rows));

-- name: TakeUpload :one
-- A state that is due to be brought to the store by a host that has it and is in
-- reach: of hosts to be emptied first.
SELECT p.id, p.team_id, p.digest, p.size_bytes, p.artifact_id, coalesce(a.status, '')::text AS artifact_status, a.host_id AS artifact_host,
    h.id AS host_id, h.address
FROM snapshots p JOIN state_copies c ON c.snapshot_id = p.id JOIN hosts h ON h.id = c.host_id LEFT JOIN artifacts a ON a.id = p.artifact_id
WHERE p.upload_at <= now() AND p.status = 'ready' AND c.ready_at IS NOT NULL AND c.drop_at IS NULL
  AND h.status IN ('online', 'draining') AND NOT h.id = ANY(sqlc.arg(busy)::uuid[])
  AND (p.kind IN ('snapshot', 'template') OR h.status = 'draining'
    OR p.kind IN ('pause', 'checkpoint') AND p.ready_at <= now() - make_interval(secs => sqlc.narg(after_secs)::float8))
ORDER BY (h.status = 'draining') DESC, p.upload_at, (a.host_id IS NOT DISTINCT FROM h.id) DESC, (h.id = p.host_id) DESC
LIMIT 1
FOR NO KEY UPDATE OF p SKIP LOCKED;

-- name: SetUpload :exec
UPDATE snapshots SET artifact_id = sqlc.arg(artifact_id), upload_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8) WHERE id = sqlc.arg(id);

-- name: RenewUpload :execrows
-- Nobody brings to the store what something newer has taken the place of.
UPDATE snapshots SET upload_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE id = sqlc.arg(id) AND artifact_id = sqlc.arg(artifact_id) AND status = 'ready' AND upload_at IS NOT NULL;

-- name: Uploaded :execrows
WITH stored AS (
    UPDATE snapshots p SET upload_at = NULL, upload_error = ''
    FROM artifacts a WHERE p.id = sqlc.arg(id) AND p.artifact_id = sqlc.arg(artifact_id) AND a.id = p.artifact_id AND a.status = 'ready'
      AND p.upload_at IS NOT NULL
    RETURNING p.id, p.sandbox_id, a.stored_bytes
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT s.id, s.team_id, 'stored', jsonb_build_object('snapshot_id', 'snap-' || stored.id, 'stored_bytes', stored.stored_bytes)
    FROM stored JOIN sandboxes s ON s.id = stored.sandbox_id
)
SELECT stored.id FROM stored;

-- name: UploadFailed :exec
UPDATE snapshots SET upload_at = now() + make_interval(secs => sqlc.arg(pause_secs)::float8), upload_error = sqlc.arg(error)
WHERE id = sqlc.arg(id) AND artifact_id = sqlc.arg(artifact_id) AND upload_at IS NOT NULL;

-- name: EngineArches :many
-- For which machines an engine's build can be fetched by hosts of a team's pool.
SELECT DISTINCT b.arch FROM engine_builds b JOIN artifacts a ON a.id = b.artifact_id AND a.status = 'ready' JOIN teams t ON t.id = sqlc.arg(team_id)
WHERE b.engine = sqlc.arg(engine) AND b.version = sqlc.arg(version)
  AND (b.team_id = '00000000-0000-0000-0000-000000000000' OR t.is_byoc AND b.team_id = t.id);

-- name: HeldBack :many
-- Hosts that may still hold another life of a sandbox, or did so when they were
-- last looked at.
SELECT d.host_id::uuid AS host_id FROM departures d WHERE d.sandbox_id = sqlc.arg(sandbox_id) AND d.cleared_at IS NULL
UNION
SELECT k.host_id::uuid FROM host_strays k WHERE k.sandbox_id = sqlc.arg(sandbox_id);

-- name: LaterLives :many
-- Hosts of a sandbox's pool that say they have a later life of it than its row
-- knows. Lives are written down before a host hears of them: the row is of an
-- older database, from before the sandbox went there.
SELECT k.host_id FROM host_strays k
JOIN sandboxes s ON s.id = k.sandbox_id JOIN teams t ON t.id = s.team_id JOIN hosts h ON h.id = k.host_id AND h.deleted_at IS NULL
WHERE k.sandbox_id = sqlc.arg(sandbox_id) AND k.kind = 'foreign' AND k.incarnation > s.incarnation
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
ORDER BY k.host_id;

-- name: Awaited :one
-- Whether a host of a sandbox's pool was not yet looked at since a backup was
-- restored: it may have a later life of it.
SELECT EXISTS (SELECT FROM hosts h, sandboxes s JOIN teams t ON t.id = s.team_id
    WHERE s.id = sqlc.arg(sandbox_id) AND h.awaited_until > now() AND h.deleted_at IS NULL
      AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END);

-- name: NeedsOf :one
-- What a host lacks to start from a state.
WITH used AS (
    UPDATE state_copies SET used_at = now() WHERE snapshot_id = sqlc.arg(snapshot_id) AND host_id = sqlc.arg(host_id)
    RETURNING (ready_at IS NOT NULL AND drop_at IS NULL) AS here
)
SELECT p.status, p.engine, p.engine_version, p.digest, p.size_bytes, p.memory, h.engines, h.arch, h.team_id,
    coalesce((SELECT used.here FROM used), false)::bool AS here,
    p.artifact_id, EXISTS (SELECT FROM artifacts a WHERE a.id = p.artifact_id AND a.status = 'ready') AS stored
FROM snapshots p JOIN hosts h ON h.id = sqlc.arg(host_id)
WHERE p.id = sqlc.arg(snapshot_id);

-- name: EngineBuild :one
-- Where a host finds a build of an engine.
SELECT b.digest, a.id AS artifact_id FROM engine_builds b JOIN artifacts a ON a.id = b.artifact_id AND a.status = 'ready'
WHERE b.team_id IN (sqlc.arg(team_id), '00000000-0000-0000-0000-000000000000') AND b.engine = sqlc.arg(engine) AND b.version = sqlc.arg(version) AND b.arch = sqlc.arg(arch)
ORDER BY (b.team_id = sqlc.arg(team_id)) DESC
LIMIT 1;

-- name: BringCopy :execrows
-- A copy that is about to be fetched: from here on it is removed where it is not
-- wanted. One that somebody else has just brought stays said to be there.
INSERT INTO state_copies (snapshot_id, host_id)
SELECT p.id, h.id FROM snapshots p JOIN hosts h ON h.id = sqlc.arg(host_id) AND h.deleted_at IS NULL
WHERE p.id = sqlc.arg(snapshot_id) AND p.status IN ('ready', 'deleting')
ON CONFLICT (snapshot_id, host_id) DO UPDATE SET ready_at = CASE WHEN state_copies.drop_at IS NULL THEN state_copies.ready_at END,
    drop_at = NULL, made_at = now(), used_at = now();

-- name: CopyMade :exec
UPDATE state_copies SET ready_at = now() WHERE snapshot_id = sqlc.arg(snapshot_id) AND host_id = sqlc.arg(host_id) AND drop_at IS NULL;

-- name: CopyLost :exec
UPDATE state_copies SET ready_at = NULL, made_at = now() WHERE snapshot_id = sqlc.arg(snapshot_id) AND host_id = sqlc.arg(host_id);

-- name: Progress :execrows
UPDATE operations SET progress = sqlc.arg(progress), deadline_at = greatest(deadline_at, now() + make_interval(secs => sqlc.arg(limit_secs)::float8))
WHERE id = sqlc.arg(id) AND status = 'open';

-- name: DeparturesOf :many
SELECT d.sandbox_id, d.incarnation, d.state_id
FROM departures d JOIN sandboxes s ON s.id = d.sandbox_id WHERE d.host_id = sqlc.arg(host_id) AND d.cleared_at IS NULL;

-- name: Departed :exec
UPDATE departures SET cleared_at = now() WHERE sandbox_id = sqlc.arg(sandbox_id) AND host_id = sqlc.arg(host_id) AND incarnation = sqlc.arg(incarnation);

-- name: GoHome :exec
-- A resume elsewhere that came to nothing before its state was there: the sandbox
-- is where it was about to leave, while that has its state. Whatever the other
-- host may show of it all the same is set aside.
WITH back AS (
    DELETE FROM departures d USING sandboxes s, hosts h, state_copies c
    WHERE s.id = sqlc.arg(id) AND s.status = 'paused' AND d.sandbox_id = s.id AND d.host_id <> s.host_id
      AND d.incarnation = s.incarnation - 1 AND d.state_id = s.state_id AND d.cleared_at IS NULL
      AND h.id = d.host_id AND h.deleted_at IS NULL
      AND c.snapshot_id = d.state_id AND c.host_id = d.host_id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL
      AND NOT EXISTS (SELECT FROM state_copies k WHERE k.snapshot_id = s.state_id AND k.host_id = s.host_id AND k.ready_at IS NOT NULL AND k.drop_at IS NULL)
    RETURNING d.sandbox_id, d.host_id, d.state_id
), left_behind AS (
    INSERT INTO departures (sandbox_id, host_id, incarnation, state_id)
    SELECT x.id, x.host_id, x.incarnation, back.state_id FROM back JOIN sandboxes x ON x.id = back.sandbox_id JOIN hosts o ON o.id = x.host_id AND o.deleted_at IS NULL
    ON CONFLICT (sandbox_id, host_id) DO UPDATE SET incarnation = excluded.incarnation, state_id = excluded.state_id, at = now(), cleared_at = NULL
)
UPDATE sandboxes SET host_id = back.host_id FROM back WHERE sandboxes.id = back.sandbox_id;

-- name: Recoverable :many
-- Hosts in reach that have a sandbox's newest state, its own first.
SELECT h.id FROM sandboxes s JOIN state_copies c ON c.snapshot_id = s.state_id JOIN hosts h ON h.id = c.host_id
WHERE s.id = sqlc.arg(id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL AND h.status IN ('online', 'draining')
ORDER BY (h.id = s.host_id) DESC, h.id;

-- name: BringBack :one
-- The row was locked by LockSandbox in this transaction. What its host may still
-- hold of it is another life.
WITH before AS (SELECT b.id, b.host_id, b.incarnation, b.state_id FROM sandboxes b WHERE b.id = sqlc.arg(id)
), moved AS (
    UPDATE sandboxes SET status = 'paused', incarnation = incarnation + 1, host_id = sqlc.arg(host_id), ended_at = NULL, end_reason = '', error = '',
        deadline_at = NULL, idle_check_at = NULL, checkpoint_due_at = NULL, retry_at = NULL, paused_at = now(), paused_reason = sqlc.arg(reason),
        ttl_warned_at = NULL, updated_at = now()
    WHERE sandboxes.id = sqlc.arg(id)
    RETURNING *
), closed AS (
    UPDATE operations o SET status = 'superseded', reason = sqlc.arg(reason), finished_at = now(), lease_owner = NULL, lease_until = NULL
    FROM moved WHERE o.sandbox_id = moved.id AND o.status = 'open'
), left_behind AS (
    INSERT INTO departures (sandbox_id, host_id, incarnation, state_id)
    SELECT before.id, before.host_id, before.incarnation, before.state_id FROM before JOIN hosts h ON h.id = before.host_id AND h.deleted_at IS NULL
    ON CONFLICT (sandbox_id, host_id) DO UPDATE SET incarnation = excluded.incarnation, state_id = excluded.state_id, at = now(), cleared_at = NULL
), noted AS (
    INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
    SELECT moved.id, moved.team_id, 'recovered', sqlc.arg(event_data)::jsonb FROM moved
)
SELECT * FROM moved;

-- name: FullHosts :many
-- Hosts whose disk is fuller than it may be.
SELECT h.id, (h.disk_bytes * sqlc.arg(share)::float8 - (h.load->>'disk_free_bytes')::float8)::bigint AS lacking_bytes
FROM hosts h
WHERE h.status IN ('online', 'draining') AND h.disk_bytes > 0 AND h.load ? 'disk_free_bytes' AND h.last_heartbeat_at > now() - interval '2 minutes'
  AND (h.load->>'disk_free_bytes')::float8 < h.disk_bytes * sqlc.arg(share)::float8
  AND NOT EXISTS (SELECT FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id WHERE c.host_id = h.id AND c.drop_at IS NOT NULL AND p.status = 'ready')
ORDER BY h.id
LIMIT sqlc.arg(max_rows);

-- name: Spare :many
-- The longest unused copies on a host of what is in the store, and that nothing
-- there is running from or about to. As long as the store lacks the engine's build
-- that a memory was saved under, its copy keeps that on the host.
SELECT c.snapshot_id, p.size_bytes
FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id JOIN artifacts a ON a.id = p.artifact_id AND a.status = 'ready'
LEFT JOIN sandboxes s ON s.state_id = p.id AND s.host_id = c.host_id AND s.ended_at IS NULL
WHERE c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL AND p.status = 'ready' AND p.upload_at IS NULL
  AND (s.id IS NULL OR s.status = 'paused')
  AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = p.id AND x.host_id = c.host_id AND x.status IN ('pending', 'starting'))
  AND NOT EXISTS (SELECT FROM hosts h JOIN engine_builds b ON b.team_id = h.team_id AND b.arch = h.arch
      WHERE h.id = c.host_id AND p.memory AND b.engine = p.engine AND b.version = p.engine_version
        AND NOT EXISTS (SELECT FROM artifacts e WHERE e.id = b.artifact_id AND e.status = 'ready'))
ORDER BY c.used_at
LIMIT sqlc.arg(max_rows);

-- name: GiveUpCopy :execrows
-- Only while it is still spare; the sandbox that is paused with it is locked.
UPDATE state_copies c SET drop_at = now()
WHERE c.snapshot_id = sqlc.arg(snapshot_id) AND c.host_id = sqlc.arg(host_id) AND c.ready_at IS NOT NULL AND c.drop_at IS NULL
  AND EXISTS (SELECT FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id AND a.status = 'ready' WHERE p.id = c.snapshot_id AND p.status = 'ready')
  AND NOT EXISTS (SELECT FROM snapshots p JOIN hosts h ON h.id = c.host_id JOIN engine_builds b ON b.team_id = h.team_id AND b.arch = h.arch
      WHERE p.id = c.snapshot_id AND p.memory AND b.engine = p.engine AND b.version = p.engine_version
        AND NOT EXISTS (SELECT FROM artifacts e WHERE e.id = b.artifact_id AND e.status = 'ready'))
  AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = c.snapshot_id AND x.host_id = c.host_id AND x.status IN ('pending', 'starting'))
  AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.state_id = c.snapshot_id AND s.host_id = c.host_id AND s.ended_at IS NULL AND s.status <> 'paused');

-- name: LockLivingFrom :many
-- And those that could be recovered from it.
SELECT id FROM sandboxes WHERE state_id = sqlc.arg(snapshot_id)::uuid AND host_id = sqlc.arg(host_id) ORDER BY id FOR NO KEY UPDATE;

-- name: DepartFrom :exec
-- What is paused on a host with a copy that is given up is nothing there any more;
-- nor is what has ended and could be recovered from it: its host would never let
-- go of the copy.
WITH gone AS (
    INSERT INTO departures (sandbox_id, host_id, incarnation, state_id)
    SELECT s.id, s.host_id, s.incarnation, s.state_id FROM sandboxes s
    WHERE s.state_id = sqlc.arg(snapshot_id)::uuid AND s.host_id = sqlc.arg(host_id) AND (s.status = 'paused' OR s.ended_at IS NOT NULL)
    ON CONFLICT (sandbox_id, host_id) DO UPDATE SET incarnation = excluded.incarnation, state_id = excluded.state_id, at = now(), cleared_at = NULL
    RETURNING sandbox_id, host_id
)
INSERT INTO sandbox_events (sandbox_id, team_id, kind, data)
SELECT s.id, s.team_id, 'copy_given_up', jsonb_build_object('host', 'host-' || s.host_id, 'snapshot_id', 'snap-' || s.state_id)
FROM gone JOIN sandboxes s ON s.id = gone.sandbox_id;
