-- name: InsertHost :one
INSERT INTO hosts (id, team_id, type, name, provider, availability_zone, labels, status, created_by)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(type), sqlc.arg(name), sqlc.arg(provider), sqlc.arg(availability_zone), sqlc.arg(labels),
    'pending', sqlc.narg(created_by))
RETURNING *;

-- name: ByocTeam :one
-- The switch is not turned off while a host is being made.
SELECT id FROM teams WHERE id = sqlc.arg(id) AND is_byoc AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: LockHost :one
-- A host is locked before its tokens and credentials, and before what is placed
-- on it. Of two who issue a token at once one comes second, and voids the
-- other's.
SELECT id, team_id, status, address, generation, (deleted_at IS NOT NULL)::bool AS deleted FROM hosts WHERE id = sqlc.arg(id) FOR NO KEY UPDATE;

-- name: RevokeTokens :exec
UPDATE host_registration_tokens SET revoked_at = now() WHERE host_id = sqlc.arg(host_id) AND revoked_at IS NULL;

-- name: InsertToken :one
INSERT INTO host_registration_tokens (id, host_id, token_hash, expires_at)
VALUES (sqlc.arg(id), sqlc.arg(host_id), sqlc.arg(token_hash), now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8))
RETURNING expires_at;

-- name: LockToken :one
SELECT sqlc.embed(t), (t.expires_at > now() AND t.revoked_at IS NULL)::bool AS valid,
    coalesce(t.used_at > now() - make_interval(secs => sqlc.arg(repeat_secs)::float8), false)::bool AS repeatable
FROM host_registration_tokens t
WHERE t.token_hash = sqlc.arg(token_hash)
FOR UPDATE OF t;

-- name: HostOfToken :one
SELECT host_id FROM host_registration_tokens WHERE token_hash = sqlc.arg(token_hash);

-- name: HostOfFamily :one
SELECT host_id FROM host_refresh_tokens WHERE id = sqlc.arg(id);

-- name: UseToken :exec
UPDATE host_registration_tokens SET used_at = now(), used_by = sqlc.arg(used_by) WHERE id = sqlc.arg(id);

-- name: RegisterHost :one
UPDATE hosts SET
    name = CASE WHEN name = '' OR name = sqlc.arg(placeholder)::text THEN sqlc.arg(name) ELSE name END,
    arch = sqlc.arg(arch), cpu_count = sqlc.arg(cpu_count), memory_bytes = sqlc.arg(memory_bytes), disk_bytes = sqlc.arg(disk_bytes),
    kernel = sqlc.arg(kernel), agent_version = sqlc.arg(agent_version), engines = sqlc.arg(engines), address = sqlc.arg(address),
    registered_at = now(), generation = 0, status_reason = '',
    status = CASE WHEN status IN ('online', 'draining') THEN 'unreachable' ELSE status END
WHERE id = sqlc.arg(id) AND deleted_at IS NULL
RETURNING *;

-- name: RevokeFamilies :exec
UPDATE host_refresh_tokens SET revoked_at = now() WHERE host_id = sqlc.arg(host_id) AND revoked_at IS NULL;

-- name: InsertFamily :one
INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, expires_at)
VALUES (sqlc.arg(id), sqlc.arg(host_id), sqlc.arg(public_key), sqlc.arg(token_hash), now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8))
RETURNING expires_at;

-- name: FamilyOfKey :one
SELECT * FROM host_refresh_tokens
WHERE host_id = sqlc.arg(host_id) AND public_key = sqlc.arg(public_key) AND revoked_at IS NULL
ORDER BY created_at DESC LIMIT 1;

-- name: LockFamily :one
SELECT sqlc.embed(f), (f.expires_at > now() AND f.revoked_at IS NULL)::bool AS valid
FROM host_refresh_tokens f
WHERE f.id = sqlc.arg(id)
FOR UPDATE OF f;

-- name: RotateFamily :one
UPDATE host_refresh_tokens SET counter = sqlc.arg(presented)::bigint + 1, previous_hash = sqlc.arg(presented_hash), token_hash = sqlc.arg(token_hash), rotated_at = now(),
    expires_at = now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8)
WHERE id = sqlc.arg(id)
RETURNING expires_at;

-- name: RevokeFamily :exec
UPDATE host_refresh_tokens SET revoked_at = now() WHERE id = sqlc.arg(id) AND revoked_at IS NULL;

-- name: FamilyAlive :one
SELECT f.host_id, (f.revoked_at IS NULL)::bool AS alive, (h.deleted_at IS NOT NULL)::bool AS deleted
FROM host_refresh_tokens f JOIN hosts h ON h.id = f.host_id
WHERE f.id = sqlc.arg(id);

-- name: TakeOut :exec
-- Its credentials are void: what is said over them is believed no longer.
UPDATE hosts SET status = CASE WHEN status IN ('online', 'draining') THEN 'unreachable' ELSE status END, status_reason = sqlc.arg(reason)
WHERE id = sqlc.arg(id) AND deleted_at IS NULL;

-- name: Heartbeat :one
-- A new start of the agent or a new address takes the host out of service until
-- it was reached there. What it offers is what it says now. Nothing happens when
-- the credentials it came with are not its own, or void.
WITH before AS (
    SELECT hosts.id, hosts.status, hosts.generation
    FROM hosts JOIN host_refresh_tokens f ON f.host_id = hosts.id AND f.id = sqlc.arg(family) AND f.revoked_at IS NULL
    WHERE hosts.id = sqlc.arg(id) AND hosts.deleted_at IS NULL
    FOR NO KEY UPDATE OF hosts
)
UPDATE hosts SET last_heartbeat_at = now(), agent_version = sqlc.arg(agent_version), load = sqlc.arg(load), address = sqlc.arg(address),
    generation = sqlc.arg(generation), engines = coalesce(sqlc.narg(engines)::jsonb, hosts.engines),
    status = CASE WHEN hosts.status IN ('online', 'draining') AND (hosts.generation <> sqlc.arg(generation) OR hosts.address <> sqlc.arg(address))
        THEN 'unreachable' ELSE hosts.status END
FROM before
WHERE hosts.id = before.id AND before.generation <= sqlc.arg(generation)
RETURNING hosts.id, hosts.team_id, hosts.name, hosts.status, hosts.address, hosts.generation, before.status AS was;

-- name: MarkOnline :one
-- One that is to be emptied goes on being emptied.
UPDATE hosts SET status = CASE WHEN drain_requested_at IS NULL THEN 'online' ELSE 'draining' END, status_reason = ''
WHERE id = sqlc.arg(id) AND generation = sqlc.arg(generation) AND address = sqlc.arg(address) AND status IN ('pending', 'unreachable')
  AND deleted_at IS NULL
RETURNING team_id;

-- name: SetReason :exec
UPDATE hosts SET status_reason = sqlc.arg(reason) WHERE id = sqlc.arg(id) AND status IN ('pending', 'unreachable');

-- name: MarkStale :many
UPDATE hosts SET status = 'unreachable', status_reason = sqlc.arg(reason)
WHERE id IN (
    SELECT h.id FROM hosts h
    WHERE h.status IN ('online', 'draining') AND h.deleted_at IS NULL
      AND coalesce(h.last_heartbeat_at, h.registered_at, h.created_at) < now() - make_interval(secs => sqlc.arg(after_secs)::float8)
    ORDER BY h.id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id, team_id, name;

-- name: ListActiveHosts :many
-- Those in reach.
SELECT id, address, generation, status FROM hosts WHERE status IN ('online', 'draining') AND deleted_at IS NULL ORDER BY id LIMIT sqlc.arg(max_rows);

-- name: ListBuilders :many
SELECT id, address, generation FROM hosts
WHERE status = 'online' AND type = 'regular' AND deleted_at IS NULL
ORDER BY id LIMIT sqlc.arg(max_rows);

-- name: AwaitLooks :exec
-- A restore leaves hosts that are to be waited for; how long counts from the first
-- start of a server.
UPDATE hosts SET awaited_until = now() + make_interval(secs => sqlc.arg(secs)::float8)
WHERE awaited_until > now() + interval '1 day';

-- name: SetReconciled :exec
UPDATE hosts SET reconciled_at = now() WHERE id = sqlc.arg(id);

-- name: ListHosts :many
-- Newest first, or the one that is named.
SELECT sqlc.embed(h), t.name AS team_name, r.sandboxes, r.active, r.cpu_millis, r.memory_mb, r.disk_mb,
    (h.registered_at IS NOT NULL AND NOT EXISTS (
        SELECT FROM host_refresh_tokens f WHERE f.host_id = h.id AND f.revoked_at IS NULL AND f.expires_at > now()))::bool AS needs_registration,
    coalesce(CASE WHEN h.drain_requested_at IS NOT NULL THEN (
        SELECT o.message FROM sandboxes x JOIN operations o ON o.sandbox_id = x.id
        WHERE x.host_id = h.id AND x.ended_at IS NULL AND x.status = 'running' AND o.kind = 'pause' AND o.status = 'failed'
          AND o.params->>'reason' = sqlc.arg(drain_reason)::text AND o.created_at >= h.drain_requested_at
        ORDER BY o.finished_at DESC LIMIT 1) END, '')::text AS drain_error,
    coalesce(CASE WHEN h.drain_requested_at IS NOT NULL THEN (
        SELECT count(*) FROM state_copies c JOIN snapshots p ON p.id = c.snapshot_id
        WHERE c.host_id = h.id AND p.status = 'ready' AND p.kind NOT IN ('fork', 'layer')
          AND NOT EXISTS (SELECT FROM state_places k WHERE k.snapshot_id = p.id AND (k.host_id IS NULL OR k.host_id <> h.id))) END, 0)::bigint AS only_here
FROM hosts h JOIN teams t ON t.id = h.team_id
CROSS JOIN LATERAL (
    SELECT count(*)::bigint AS sandboxes, count(*) FILTER (WHERE s.status <> 'paused')::bigint AS active,
        coalesce(sum(s.cpu_millis) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS cpu_millis,
        coalesce(sum(s.memory_mb) FILTER (WHERE s.status = ANY(sqlc.arg(compute)::text[])), 0)::bigint AS memory_mb,
        coalesce(sum(s.disk_mb), 0)::bigint AS disk_mb
    FROM sandboxes s WHERE s.host_id = h.id AND s.ended_at IS NULL
) r
WHERE h.deleted_at IS NULL
  AND (sqlc.narg(id)::uuid IS NULL OR h.id = sqlc.narg(id)::uuid)
  AND (sqlc.narg(team_id)::uuid IS NULL OR h.team_id = sqlc.narg(team_id)::uuid)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (h.created_at, h.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY h.created_at DESC, h.id DESC
LIMIT sqlc.arg(max_rows);

-- name: UpdateHost :exec
UPDATE hosts SET name = coalesce(sqlc.narg(name)::text, name), provider = coalesce(sqlc.narg(provider)::text, provider),
    availability_zone = coalesce(sqlc.narg(availability_zone)::text, availability_zone), labels = coalesce(sqlc.narg(labels)::jsonb, labels)
WHERE id = sqlc.arg(id);

-- name: DrainHost :exec
-- One out of reach is emptied when it is back.
UPDATE hosts SET status = CASE WHEN status = 'online' THEN 'draining' ELSE status END, drain_requested_at = coalesce(drain_requested_at, now()),
    drain_deadline_at = now() + make_interval(secs => sqlc.narg(deadline_secs)::float8)
WHERE id = sqlc.arg(id);

-- name: UndrainHost :exec
UPDATE hosts SET status = CASE WHEN status = 'draining' THEN 'online' ELSE status END, drain_requested_at = NULL, drain_deadline_at = NULL
WHERE id = sqlc.arg(id);

-- name: DeletingAlone :exec
-- One host is deleted after the other, until the caller's transaction ends: each
-- may be the last that has what the other has too.
SELECT pg_advisory_xact_lock(hashtext('skerry.hosts.delete'));

-- name: EnginesOnlyOn :many
-- Builds of engines that no other host has, nor the store, and that saved states
-- need which are elsewhere too.
SELECT DISTINCT b.engine, b.version
FROM hosts h JOIN engine_builds b ON b.team_id = h.team_id AND b.arch = h.arch
WHERE h.id = sqlc.arg(host_id)
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.id = b.artifact_id AND a.status = 'ready')
  AND EXISTS (SELECT FROM snapshots p JOIN state_places k ON k.snapshot_id = p.id AND (k.host_id IS NULL OR k.host_id <> h.id)
      WHERE p.status = 'ready' AND p.memory AND p.kind <> 'fork' AND p.engine = b.engine AND p.engine_version = b.version AND p.arch IN ('', b.arch)
        AND (p.team_id = b.team_id OR b.team_id = '00000000-0000-0000-0000-000000000000'))
  AND ARRAY[h.id] = ARRAY(SELECT o.id FROM hosts o
      WHERE o.team_id = b.team_id AND o.arch = b.arch AND o.deleted_at IS NULL
        AND (o.engines @> jsonb_build_array(jsonb_build_object('name', b.engine, 'version', b.version, 'digest', b.digest))
          OR o.engines @> jsonb_build_array(jsonb_build_object('name', b.engine,
              'builds', jsonb_build_array(jsonb_build_object('version', b.version, 'digest', b.digest))))))
ORDER BY b.engine, b.version;

-- name: DeleteHost :exec
UPDATE hosts SET status = 'deleted', deleted_at = now(), status_reason = '', drain_requested_at = NULL, drain_deadline_at = NULL
WHERE id = sqlc.arg(id);

-- name: Standings :many
SELECT h.id, h.registered_at, (h.deleted_at IS NOT NULL)::bool AS deleted,
    (h.registered_at IS NOT NULL AND NOT EXISTS (SELECT FROM host_refresh_tokens f WHERE f.host_id = h.id AND f.revoked_at IS NULL))::bool AS revoked
FROM hosts h WHERE h.id = ANY(sqlc.arg(ids)::uuid[]);
