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

-- name: InsertHidden :one
-- An image that a build works with, or has made: it has a name only once it is
-- published.
INSERT INTO templates (id, team_id, name, status, image_digest, image_size_bytes, manifest_digest, artifact_id, arch, engine, cpu_millis, memory_mb, disk_mb,
    default_user, default_workdir, env, deleted_at)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(name), 'ready', sqlc.arg(image_digest), sqlc.arg(image_size_bytes), sqlc.arg(manifest_digest),
    sqlc.arg(artifact_id), sqlc.arg(arch), sqlc.arg(engine), sqlc.arg(cpu_millis), sqlc.arg(memory_mb), sqlc.arg(disk_mb),
    sqlc.arg(default_user), sqlc.arg(default_workdir), sqlc.arg(env), now())
RETURNING *;

-- name: Unhide :one
UPDATE templates SET deleted_at = NULL, updated_at = now(), created_at = now(), state_id = sqlc.narg(state_id), start_cmd = sqlc.arg(start_cmd),
    ready_cmd = sqlc.arg(ready_cmd), build_id = sqlc.arg(build_id)
WHERE id = sqlc.arg(id)
RETURNING *;

-- name: DeleteTemplate :execrows
UPDATE templates SET deleted_at = now(), updated_at = now() WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND deleted_at IS NULL;

-- name: RetireOfDeletedTeams :execrows
UPDATE templates SET deleted_at = now(), updated_at = now()
WHERE id IN (SELECT t.id FROM templates t JOIN teams m ON m.id = t.team_id WHERE t.deleted_at IS NULL AND m.deleted_at IS NOT NULL LIMIT sqlc.arg(max_rows));

-- name: PruneTemplates :execrows
-- Rows that nothing refers to any more.
DELETE FROM templates WHERE id IN (
    SELECT t.id FROM templates t
    WHERE t.deleted_at < now() - make_interval(secs => sqlc.arg(age_secs)::float8) AND t.artifact_id IS NULL
      AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.template_id = t.id)
      AND NOT EXISTS (SELECT FROM snapshots s WHERE s.template_id = t.id)
      AND NOT EXISTS (SELECT FROM builds b WHERE b.base_id = t.id OR b.template_id = t.id)
    LIMIT sqlc.arg(max_rows));

-- name: ListBuilderHosts :many
-- Hosts that a team's builds may run on: its own and only those, or the
-- platform's.
SELECT h.id, h.address, h.arch FROM hosts h
JOIN teams t ON t.id = sqlc.arg(team_id) AND t.deleted_at IS NULL
WHERE h.status = 'online' AND h.deleted_at IS NULL
  AND h.team_id = CASE WHEN t.is_byoc THEN t.id ELSE '00000000-0000-0000-0000-000000000000'::uuid END
ORDER BY random()
LIMIT 20;

-- name: CountOpenBuilds :one
SELECT count(*) FROM builds WHERE team_id = sqlc.arg(team_id) AND finished_at IS NULL;

-- name: HasName :one
SELECT EXISTS (SELECT FROM templates WHERE team_id = sqlc.arg(team_id) AND name = sqlc.arg(name) AND deleted_at IS NULL);

-- name: InsertBuild :one
INSERT INTO builds (id, team_id, name, status, recipe, secrets_sealed, context_id, tarball_id, steps, created_by_type, created_by_id, created_by_name)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(name), 'queued', sqlc.arg(recipe), sqlc.narg(secrets_sealed), sqlc.narg(context_id), sqlc.narg(tarball_id),
    sqlc.arg(steps), sqlc.arg(created_by_type), sqlc.arg(created_by_id), sqlc.arg(created_by_name))
RETURNING *;

-- name: GetBuild :one
SELECT * FROM builds WHERE id = sqlc.arg(id);

-- name: ListBuilds :many
SELECT * FROM builds
WHERE team_id = sqlc.arg(team_id) AND (sqlc.arg(name)::text = '' OR name = sqlc.arg(name)::text)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (created_at, id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY created_at DESC, id DESC
LIMIT sqlc.arg(max_rows);

-- name: LockBuild :one
SELECT * FROM builds WHERE id = sqlc.arg(id) FOR NO KEY UPDATE;

-- name: AskCancel :one
-- One that waits for another try need not wait to end.
UPDATE builds SET cancel_asked_at = coalesce(cancel_asked_at, now()), lease_until = CASE WHEN lease_owner IS NOT NULL THEN lease_until END
WHERE id = sqlc.arg(id) RETURNING *;

-- name: TakeBuilds :many
UPDATE builds b SET lease_owner = sqlc.arg(owner)::uuid, lease_until = now() + make_interval(secs => sqlc.arg(lease_secs)::float8), attempts = attempts + 1,
    status = 'running', started_at = coalesce(started_at, now())
WHERE b.id IN (
    SELECT d.id FROM builds d
    WHERE d.finished_at IS NULL AND (d.lease_until IS NULL OR d.lease_until < now())
    ORDER BY d.lease_until NULLS FIRST, d.created_at
    LIMIT sqlc.arg(max_rows)
    FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: RenewBuilds :many
-- Those still held, and whether somebody wants them ended: a deleted team wants
-- nothing.
UPDATE builds b SET lease_until = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
FROM teams t
WHERE b.id = ANY(sqlc.arg(ids)::uuid[]) AND b.finished_at IS NULL AND b.lease_owner = sqlc.arg(owner)::uuid AND t.id = b.team_id
RETURNING b.id, (b.cancel_asked_at IS NOT NULL OR t.deleted_at IS NOT NULL)::bool AS canceled;

-- name: YieldBuild :exec
-- attempts counts those that failed: giving back for another reason is none.
UPDATE builds SET lease_owner = NULL, lease_until = now() + make_interval(secs => sqlc.arg(pause_secs)::float8),
    attempts = attempts - CASE WHEN sqlc.arg(counts)::bool THEN 0 ELSE 1 END
WHERE id = sqlc.arg(id) AND lease_owner = sqlc.arg(owner)::uuid AND finished_at IS NULL;

-- name: HoldBuild :one
-- Locks a build that the owner still drives.
SELECT * FROM builds WHERE id = sqlc.arg(id) AND lease_owner = sqlc.arg(owner)::uuid AND finished_at IS NULL FOR NO KEY UPDATE;

-- name: SetBuildStep :exec
UPDATE builds SET step = sqlc.arg(step), steps = sqlc.arg(steps) WHERE id = sqlc.arg(id);

-- name: SetBuildBase :exec
UPDATE builds SET base_id = sqlc.narg(base_id) WHERE id = sqlc.arg(id);

-- name: SetBuildSandbox :exec
UPDATE builds SET sandbox_id = sqlc.narg(sandbox_id) WHERE id = sqlc.arg(id);

-- name: FinishBuild :one
UPDATE builds SET status = sqlc.arg(status), reason = sqlc.arg(reason), error = sqlc.arg(error), template_id = sqlc.narg(template_id), finished_at = now(),
    started_at = coalesce(started_at, now()), lease_owner = NULL, lease_until = NULL, secrets_sealed = NULL, sandbox_id = NULL
WHERE id = sqlc.arg(id)
RETURNING *;

-- name: BuildSandboxes :many
-- What of a build's runs still.
SELECT x.id FROM sandboxes x WHERE x.build_id = sqlc.arg(build_id) AND x.ended_at IS NULL;

-- name: LeftSandboxes :many
-- What runs for builds that do not want it any more. One that starts has no name
-- in its build yet, and may have to wait for its image.
SELECT x.id FROM sandboxes x JOIN builds b ON b.id = x.build_id
WHERE x.ended_at IS NULL AND x.status <> 'stopping'
  AND (b.finished_at IS NOT NULL OR x.created_at < now() - interval '30 minutes' AND b.sandbox_id IS DISTINCT FROM x.id)
ORDER BY x.id
LIMIT sqlc.arg(max_rows);

-- name: LastLine :one
SELECT coalesce(max(seq), 0)::integer AS seq, coalesce(sum(octet_length(line)), 0)::bigint AS bytes FROM build_logs WHERE build_id = sqlc.arg(build_id);

-- name: InsertLines :exec
-- Whoever writes them again because no answer came has written them before.
INSERT INTO build_logs (build_id, seq, step, at, stream, line)
SELECT sqlc.arg(build_id), unnest(sqlc.arg(seqs)::integer[]), unnest(sqlc.arg(steps)::integer[]), unnest(sqlc.arg(ats)::timestamptz[]),
    unnest(sqlc.arg(streams)::text[]), unnest(sqlc.arg(lines)::text[])
ON CONFLICT (build_id, seq) DO NOTHING;

-- name: ListLines :many
SELECT * FROM build_logs WHERE build_id = sqlc.arg(build_id) AND seq > sqlc.arg(after) ORDER BY seq LIMIT sqlc.arg(max_rows);

-- name: BuildHeads :many
-- How far the logs are of those that somebody follows.
SELECT b.id, b.status, (SELECT coalesce(max(l.seq), 0) FROM build_logs l WHERE l.build_id = b.id)::integer AS seq
FROM builds b WHERE b.id = ANY(sqlc.arg(ids)::uuid[]);

-- name: PruneLogs :execrows
DELETE FROM build_logs l WHERE l.ctid = ANY(ARRAY(
    SELECT x.ctid FROM build_logs x JOIN builds b ON b.id = x.build_id
    WHERE b.finished_at < now() - make_interval(secs => sqlc.arg(age_secs)::float8) LIMIT sqlc.arg(max_rows)));

-- name: PruneBuilds :execrows
DELETE FROM builds WHERE id IN (
    SELECT b.id FROM builds b
    WHERE b.finished_at < now() - make_interval(secs => sqlc.arg(age_secs)::float8)
      AND NOT EXISTS (SELECT FROM build_logs l WHERE l.build_id = b.id)
      AND NOT EXISTS (SELECT FROM templates t WHERE t.build_id = b.id)
    LIMIT sqlc.arg(max_rows));

-- name: FindLayers :many
-- Those of the given layers that can be started from now.
SELECT l.key, l.snapshot_id FROM build_layers l
JOIN snapshots s ON s.id = l.snapshot_id
WHERE l.team_id = sqlc.arg(team_id) AND l.key = ANY(sqlc.arg(keys)::bytea[]) AND s.status = 'ready'
  AND (sqlc.narg(since)::timestamptz IS NULL OR s.created_at >= sqlc.narg(since)::timestamptz)
  AND EXISTS (SELECT FROM state_copies c JOIN hosts h ON h.id = c.host_id
    WHERE c.snapshot_id = s.id AND c.drop_at IS NULL AND h.status = 'online' AND h.deleted_at IS NULL);

-- name: UseLayers :exec
UPDATE build_layers SET used_at = now() WHERE team_id = sqlc.arg(team_id) AND key = ANY(sqlc.arg(keys)::bytea[]);

-- name: PutLayer :exec
-- The newest one stays; the one before goes with the others that nothing names.
INSERT INTO build_layers (team_id, key, snapshot_id) VALUES (sqlc.arg(team_id), sqlc.arg(key), sqlc.arg(snapshot_id))
ON CONFLICT (team_id, key) DO UPDATE SET snapshot_id = excluded.snapshot_id, used_at = now();

-- name: ForgetLayers :execrows
-- Of each team those beyond its share, the longest unused first, and what is old.
DELETE FROM build_layers l USING (
    SELECT team_id, key, used_at, row_number() OVER (PARTITION BY team_id ORDER BY used_at DESC, key) AS n FROM build_layers
) r
WHERE l.team_id = r.team_id AND l.key = r.key AND (r.n > sqlc.arg(share)::integer OR r.used_at < now() - make_interval(secs => sqlc.arg(age_secs)::float8));

-- name: LeftStates :many
-- States of builds that nothing names: layers that were forgotten or replaced,
-- and what templates started from that are no more. One that a build has just
-- made is left alone.
SELECT s.id, s.team_id FROM snapshots s
WHERE s.kind IN ('layer', 'template') AND s.status IN ('ready', 'failed') AND s.created_at < now() - make_interval(secs => sqlc.arg(age_secs)::float8)
  AND NOT EXISTS (SELECT FROM build_layers l WHERE l.snapshot_id = s.id)
  AND NOT EXISTS (SELECT FROM templates t WHERE t.state_id = s.id AND (t.deleted_at IS NULL OR t.deleted_at > now() - make_interval(secs => sqlc.arg(age_secs)::float8)))
  AND NOT EXISTS (SELECT FROM sandboxes x WHERE x.from_snapshot_id = s.id AND x.status IN ('pending', 'starting'))
  AND NOT EXISTS (SELECT FROM sandboxes x JOIN builds b ON b.id = x.build_id WHERE x.id = s.sandbox_id AND b.finished_at IS NULL)
LIMIT sqlc.arg(max_rows);

-- name: CountContexts :one
SELECT count(*) FROM build_contexts WHERE team_id = sqlc.arg(team_id) AND expires_at > now();

-- name: InsertContext :exec
INSERT INTO build_contexts (id, team_id, artifact_id, expires_at)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(artifact_id), now() + make_interval(secs => sqlc.arg(life_secs)::float8));

-- name: CompleteContext :one
UPDATE build_contexts SET size_bytes = sqlc.arg(size_bytes), digest = sqlc.arg(digest), expires_at = now() + make_interval(secs => sqlc.arg(life_secs)::float8)
WHERE id = sqlc.arg(id)
RETURNING *;

-- name: GetContext :one
SELECT * FROM build_contexts WHERE id = sqlc.arg(id) AND digest <> '';

-- name: KeepContext :one
-- Locks one that is complete, so that it is there for as long as the build.
SELECT * FROM build_contexts WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND digest <> '' AND expires_at > now() FOR UPDATE;

-- name: DropContext :exec
DELETE FROM build_contexts WHERE id = sqlc.arg(id);

-- name: DropContexts :execrows
DELETE FROM build_contexts WHERE id IN (
    SELECT c.id FROM build_contexts c
    WHERE c.expires_at < now() AND NOT EXISTS (SELECT FROM builds b WHERE (b.context_id = c.id OR b.tarball_id = c.id) AND b.finished_at IS NULL)
    LIMIT sqlc.arg(max_rows) FOR UPDATE SKIP LOCKED);
