-- name: Insert :exec
INSERT INTO artifacts (id, team_id, kind, status, host_id, lease_until)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(kind), 'uploading', sqlc.narg(host_id), now() + make_interval(secs => sqlc.arg(lease_secs)::float8));

-- name: Again :execrows
-- An upload that was broken off goes on, by this host now.
UPDATE artifacts SET host_id = sqlc.narg(host_id), lease_until = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE id = sqlc.arg(id) AND status = 'uploading';

-- name: Use :one
-- Keeps it from being taken for nobody's until the caller's transaction ends.
SELECT id FROM artifacts WHERE id = sqlc.arg(id) AND status = 'ready' FOR KEY SHARE;

-- name: Abandon :exec
UPDATE artifacts SET lease_until = now() WHERE id = sqlc.arg(id) AND status = 'uploading';

-- name: Look :one
-- An artifact, and what there is to know of the host that asks.
SELECT a.*, coalesce(o.type = 'byoc', false)::bool AS made_on_byoc,
    coalesce(r.type, '')::text AS asker_type, coalesce(r.team_id, '00000000-0000-0000-0000-000000000000'::uuid)::uuid AS asker_team,
    (r.id IS NOT NULL AND r.deleted_at IS NULL AND (r.registered_at IS NULL
        OR EXISTS (SELECT FROM host_refresh_tokens f WHERE f.host_id = r.id AND f.revoked_at IS NULL)))::bool AS asker_trusted
FROM artifacts a
LEFT JOIN hosts o ON o.id = a.host_id
LEFT JOIN hosts r ON r.id = sqlc.narg(asker)::uuid
WHERE a.id = sqlc.arg(id);

-- name: LockArtifact :one
-- Those who change an artifact come one after the other; pointing at it goes on.
SELECT id FROM artifacts WHERE id = sqlc.arg(id) FOR NO KEY UPDATE;

-- name: Prolong :exec
UPDATE artifacts SET lease_until = greatest(lease_until, now() + make_interval(secs => sqlc.arg(lease_secs)::float8))
WHERE id = sqlc.arg(id) AND status = 'uploading';

-- name: Progress :exec
UPDATE artifacts SET sent_bytes = sqlc.arg(done), lease_until = greatest(lease_until, now() + make_interval(secs => sqlc.arg(lease_secs)::float8))
WHERE id = sqlc.arg(id) AND status = 'uploading';

-- name: CountClaims :one
SELECT count(*) FROM artifact_chunks WHERE artifact_id = sqlc.arg(artifact_id);

-- name: AddChunks :exec
-- Locks each, in the order of their digests, whether it is new or there; what
-- collects waits for that, and we for it. A size nobody has seen is not believed.
INSERT INTO chunks (team_id, digest, size_bytes)
SELECT sqlc.arg(team_id), c.digest, c.size
FROM (SELECT unnest(sqlc.arg(digests)::bytea[]) AS digest, unnest(sqlc.arg(sizes)::integer[]) AS size) AS c
ORDER BY c.digest
ON CONFLICT (team_id, digest) DO UPDATE SET size_bytes = excluded.size_bytes
WHERE NOT chunks.stored AND chunks.size_bytes <> excluded.size_bytes;

-- name: ClaimChunks :exec
INSERT INTO artifact_chunks (artifact_id, team_id, digest)
SELECT sqlc.arg(artifact_id), sqlc.arg(team_id), d FROM unnest(sqlc.arg(digests)::bytea[]) AS d
ON CONFLICT DO NOTHING;

-- name: ChunksOf :many
-- Those of these chunks that an artifact consists of.
SELECT c.team_id, c.digest, c.object, c.size_bytes, c.stored
FROM artifact_chunks p JOIN chunks c ON c.team_id = p.team_id AND c.digest = p.digest
WHERE p.artifact_id = sqlc.arg(artifact_id) AND p.digest = ANY(sqlc.arg(digests)::bytea[]);

-- name: SetStored :exec
-- By its object too: it may have been collected and claimed anew since.
WITH seen AS (
    SELECT c.team_id, c.digest FROM chunks c
    JOIN (SELECT unnest(sqlc.arg(digests)::bytea[]) AS digest, unnest(sqlc.arg(objects)::bigint[]) AS object) AS w ON w.digest = c.digest AND w.object = c.object
    JOIN artifact_chunks p ON p.artifact_id = sqlc.arg(artifact_id) AND p.team_id = c.team_id AND p.digest = c.digest
    WHERE c.stored <> sqlc.arg(stored)::bool
    ORDER BY c.digest
    FOR NO KEY UPDATE OF c
)
UPDATE chunks SET stored = sqlc.arg(stored)::bool FROM seen WHERE chunks.team_id = seen.team_id AND chunks.digest = seen.digest;

-- name: NameManifest :one
-- Another name gets another object: the former one is being removed.
UPDATE artifacts SET manifest_digest = sqlc.arg(digest)::text,
    manifest_object = CASE WHEN manifest_digest IN ('', sqlc.arg(digest)::text) THEN manifest_object ELSE nextval('store_objects') END,
    lease_until = greatest(lease_until, now() + make_interval(secs => sqlc.arg(lease_secs)::float8))
WHERE id = sqlc.arg(id) AND status = 'uploading'
RETURNING manifest_object;

-- name: CountGood :one
-- How many of a manifest's chunks are claimed and were seen in their size.
SELECT count(*) FROM (SELECT unnest(sqlc.arg(digests)::bytea[]) AS digest, unnest(sqlc.arg(sizes)::integer[]) AS size) AS w
JOIN artifact_chunks p ON p.artifact_id = sqlc.arg(artifact_id) AND p.digest = w.digest
JOIN chunks c ON c.team_id = p.team_id AND c.digest = p.digest AND c.size_bytes = w.size AND c.stored;

-- name: Surplus :many
-- Claimed chunks that the manifest does not name.
SELECT p.digest FROM artifact_chunks p
WHERE p.artifact_id = sqlc.arg(artifact_id) AND NOT p.digest = ANY(sqlc.arg(digests)::bytea[])
ORDER BY p.digest;

-- name: SetReady :exec
UPDATE artifacts SET status = 'ready', lease_until = NULL, ready_at = now(),
    size_bytes = sqlc.arg(size_bytes), sent_bytes = sqlc.arg(size_bytes), stored_bytes = sqlc.arg(stored_bytes)
WHERE id = sqlc.arg(id) AND status = 'uploading';

-- name: LockChunks :exec
SELECT digest FROM chunks WHERE team_id = sqlc.arg(team_id) AND digest = ANY(sqlc.arg(digests)::bytea[]) ORDER BY digest FOR UPDATE;

-- name: Unclaim :exec
DELETE FROM artifact_chunks WHERE artifact_id = sqlc.arg(artifact_id) AND digest = ANY(sqlc.arg(digests)::bytea[]);

-- name: DeleteUnclaimed :many
-- A statement of its own, after the locks: it must see what those who held them
-- have claimed.
DELETE FROM chunks c
WHERE c.team_id = sqlc.arg(team_id) AND c.digest = ANY(sqlc.arg(digests)::bytea[])
  AND NOT EXISTS (SELECT FROM artifact_chunks p WHERE p.team_id = c.team_id AND p.digest = c.digest)
RETURNING c.team_id, c.digest, c.object;

-- name: Doom :exec
INSERT INTO doomed_objects (key, due_at)
SELECT k, now() + make_interval(secs => sqlc.arg(linger_secs)::float8) FROM unnest(sqlc.arg(keys)::text[]) AS k
ON CONFLICT (key) DO NOTHING;

-- name: ExpireUploads :execrows
UPDATE artifacts SET status = 'deleting', lease_until = NULL
WHERE id IN (SELECT a.id FROM artifacts a WHERE a.status = 'uploading' AND a.lease_until < now()
    ORDER BY a.lease_until LIMIT sqlc.arg(max_rows) FOR UPDATE SKIP LOCKED);

-- name: LockUnreferenced :many
-- The lock keeps anybody from pointing at them meanwhile; who was about to is
-- left out.
SELECT a.id FROM artifacts a
WHERE a.status = 'ready' AND a.ready_at < now() - make_interval(secs => sqlc.arg(grace_secs)::float8)
  AND NOT EXISTS (SELECT FROM artifact_referents r WHERE r.artifact_id = a.id)
ORDER BY a.ready_at LIMIT sqlc.arg(max_rows) FOR UPDATE OF a SKIP LOCKED;

-- name: SetUnreferencedDeleting :execrows
-- Looks again, after the locks.
UPDATE artifacts a SET status = 'deleting'
WHERE a.id = ANY(sqlc.arg(ids)::uuid[]) AND a.status = 'ready'
  AND NOT EXISTS (SELECT FROM artifact_referents r WHERE r.artifact_id = a.id);

-- name: TakeDeleting :one
SELECT id, team_id, manifest_digest, manifest_object FROM artifacts
WHERE status = 'deleting' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED;

-- name: SomeClaims :many
SELECT digest FROM artifact_chunks WHERE artifact_id = sqlc.arg(artifact_id) ORDER BY digest LIMIT sqlc.arg(max_rows);

-- name: ForgetInSnapshots :exec
UPDATE snapshots SET artifact_id = NULL WHERE artifact_id = sqlc.arg(artifact_id);

-- name: ForgetInTemplates :exec
UPDATE templates SET artifact_id = NULL WHERE artifact_id = sqlc.arg(artifact_id);

-- name: ForgetInEngineBuilds :exec
UPDATE engine_builds SET artifact_id = NULL WHERE artifact_id = sqlc.arg(artifact_id);

-- name: ForgetInContexts :exec
UPDATE build_contexts SET artifact_id = NULL WHERE artifact_id = sqlc.arg(artifact_id);

-- name: DeleteArtifact :exec
DELETE FROM artifacts WHERE id = sqlc.arg(id) AND status = 'deleting';

-- name: TakeDoomed :many
-- Who dies with them in hand leaves them to the next after a while.
UPDATE doomed_objects SET due_at = now() + make_interval(secs => sqlc.arg(lease_secs)::float8)
WHERE key IN (SELECT d.key FROM doomed_objects d WHERE d.due_at <= now() ORDER BY d.due_at LIMIT sqlc.arg(max_rows) FOR UPDATE SKIP LOCKED)
RETURNING key;

-- name: Removed :exec
DELETE FROM doomed_objects WHERE key = ANY(sqlc.arg(keys)::text[]);

-- name: BringStatesAgain :execrows
-- Saved states of which the store has lost something, while a host in reach has
-- them still: they are uploaded as if they never had been, and what they share
-- with others is there again for all.
UPDATE snapshots SET artifact_id = NULL, upload_at = now()
WHERE id IN (
    SELECT p.id FROM snapshots p
    WHERE p.status = 'ready' AND p.artifact_id IN (
            SELECT a.id FROM chunks k JOIN artifact_chunks q ON q.team_id = k.team_id AND q.digest = k.digest
            JOIN artifacts a ON a.id = q.artifact_id AND a.status = 'ready'
            WHERE NOT k.stored)
      AND EXISTS (SELECT FROM state_copies c JOIN hosts h ON h.id = c.host_id
          WHERE c.snapshot_id = p.id AND c.ready_at IS NOT NULL AND c.drop_at IS NULL AND h.status IN ('online', 'draining'))
    ORDER BY p.id LIMIT sqlc.arg(max_rows) FOR NO KEY UPDATE SKIP LOCKED);

-- name: BringEnginesAgain :execrows
-- The same of builds that a host has said lately it has.
UPDATE engine_builds SET artifact_id = NULL, upload_at = NULL
WHERE (team_id, engine, version, arch) IN (
    SELECT b.team_id, b.engine, b.version, b.arch FROM engine_builds b
    WHERE b.seen_at > now() - interval '2 hours' AND b.artifact_id IN (
        SELECT a.id FROM chunks k JOIN artifact_chunks q ON q.team_id = k.team_id AND q.digest = k.digest
        JOIN artifacts a ON a.id = q.artifact_id AND a.status = 'ready'
        WHERE NOT k.stored)
    ORDER BY b.seen_at LIMIT sqlc.arg(max_rows) FOR NO KEY UPDATE SKIP LOCKED);

-- name: Doubt :execrows
-- What a look at the store found to be missing or damaged.
UPDATE chunks c SET stored = false
FROM (SELECT unnest(sqlc.arg(teams)::uuid[]) AS team_id, unnest(sqlc.arg(digests)::bytea[]) AS digest, unnest(sqlc.arg(objects)::bigint[]) AS object) w
WHERE c.team_id = w.team_id AND c.digest = w.digest AND c.object = w.object AND c.stored;

-- name: AddTeamKey :exec
INSERT INTO team_keys (team_id, sealed) VALUES (sqlc.arg(team_id), sqlc.arg(sealed)) ON CONFLICT DO NOTHING;

-- name: PruneTeamKeys :execrows
-- Of teams that were deleted, once there is nothing left under them.
DELETE FROM team_keys WHERE team_id IN (
    SELECT k.team_id FROM team_keys k JOIN teams t ON t.id = k.team_id
    WHERE t.deleted_at IS NOT NULL AND NOT EXISTS (SELECT FROM artifacts a WHERE a.team_id = k.team_id)
    ORDER BY k.team_id LIMIT sqlc.arg(max_rows));

-- name: TeamKey :one
SELECT sealed FROM team_keys WHERE team_id = sqlc.arg(team_id);

-- name: RecordEngines :exec
-- What hosts say they have, each for those who may run it. Of two programs that
-- call themselves the same version the first one counts.
INSERT INTO engine_builds (team_id, engine, version, arch, digest)
SELECT DISTINCT ON (h.team_id, e.engine, b.version, h.arch) h.team_id, e.engine, b.version, h.arch, b.digest
FROM hosts h
CROSS JOIN LATERAL (SELECT x->>'name' AS engine, x AS line FROM jsonb_array_elements(h.engines) AS x) e
CROSS JOIN LATERAL (
    SELECT e.line->>'version' AS version, e.line->>'digest' AS digest
    UNION ALL
    SELECT k->>'version', k->>'digest' FROM jsonb_array_elements(CASE jsonb_typeof(e.line->'builds') WHEN 'array' THEN e.line->'builds' ELSE '[]' END) AS k
) b
WHERE h.deleted_at IS NULL AND h.arch <> '' AND e.engine <> '' AND b.version <> '' AND b.digest ~ '^[0-9a-f]{64}$'
ORDER BY h.team_id, e.engine, b.version, h.arch, b.digest
ON CONFLICT (team_id, engine, version, arch) DO UPDATE SET seen_at = now()
WHERE engine_builds.seen_at < now() - interval '1 hour';

-- name: TakeEngineUpload :one
-- One that the store lacks and a host in reach has. The platform's come first: what
-- teams' machines say of themselves does not hold them up.
SELECT b.team_id, b.engine, b.version, b.arch, b.digest, b.artifact_id, h.id AS host_id, h.address, h.generation
FROM engine_builds b
JOIN LATERAL (
    SELECT h.id, h.address, h.generation FROM hosts h
    WHERE h.team_id = b.team_id AND h.arch = b.arch AND h.status IN ('online', 'draining') AND h.deleted_at IS NULL
      AND (h.engines @> jsonb_build_array(jsonb_build_object('name', b.engine, 'version', b.version, 'digest', b.digest))
        OR h.engines @> jsonb_build_array(jsonb_build_object('name', b.engine,
            'builds', jsonb_build_array(jsonb_build_object('version', b.version, 'digest', b.digest)))))
    ORDER BY random() LIMIT 1
) h ON true
WHERE (b.upload_at IS NULL OR b.upload_at <= now())
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.id = b.artifact_id AND a.status = 'ready')
ORDER BY (b.team_id = '00000000-0000-0000-0000-000000000000') DESC, b.upload_at NULLS FIRST LIMIT 1 FOR UPDATE OF b SKIP LOCKED;

-- name: SetEngineUpload :exec
UPDATE engine_builds SET artifact_id = sqlc.narg(artifact_id), upload_at = now() + make_interval(secs => sqlc.arg(secs)::float8)
WHERE team_id = sqlc.arg(team_id) AND engine = sqlc.arg(engine) AND version = sqlc.arg(version) AND arch = sqlc.arg(arch);

-- name: EngineUploaded :exec
UPDATE engine_builds SET upload_at = CASE WHEN sqlc.arg(secs)::float8 > 0 THEN now() + make_interval(secs => sqlc.arg(secs)::float8) END
WHERE team_id = sqlc.arg(team_id) AND engine = sqlc.arg(engine) AND version = sqlc.arg(version) AND arch = sqlc.arg(arch)
  AND artifact_id = sqlc.narg(artifact_id);

-- name: PruneEngines :execrows
DELETE FROM engine_builds WHERE (team_id, engine, version, arch) IN (
    SELECT b.team_id, b.engine, b.version, b.arch FROM engine_builds b
    WHERE b.seen_at < now() - make_interval(secs => sqlc.arg(unseen_secs)::float8)
      AND NOT EXISTS (SELECT FROM snapshots s WHERE s.deleted_at IS NULL AND s.memory AND s.engine = b.engine AND s.engine_version = b.version
          AND (s.team_id = b.team_id OR b.team_id = '00000000-0000-0000-0000-000000000000'))
    ORDER BY b.seen_at LIMIT sqlc.arg(max_rows) FOR UPDATE SKIP LOCKED);

-- name: StoredChunks :many
SELECT team_id, digest, object, size_bytes FROM chunks
WHERE stored AND (team_id, digest) > (sqlc.arg(after_team)::uuid, sqlc.arg(after_digest)::bytea)
ORDER BY team_id, digest LIMIT sqlc.arg(max_rows);

-- name: ReadyManifests :many
SELECT id, team_id, manifest_digest, manifest_object FROM artifacts
WHERE status = 'ready' AND id > sqlc.arg(after_id)::uuid ORDER BY id LIMIT sqlc.arg(max_rows);

-- name: TeamsAfter :many
SELECT id FROM teams WHERE id > sqlc.arg(after_id)::uuid OR sqlc.arg(first)::bool ORDER BY id LIMIT sqlc.arg(max_rows);

-- name: KnownObjects :many
-- Those of these blobs of one team that a row stands for, or that are about to
-- be removed.
SELECT w.key::text AS key
FROM (SELECT unnest(sqlc.arg(keys)::text[]) AS key, unnest(sqlc.arg(digests)::bytea[]) AS digest, unnest(sqlc.arg(objects)::bigint[]) AS object) AS w
WHERE EXISTS (SELECT FROM chunks c WHERE c.team_id = sqlc.arg(team_id) AND c.digest = w.digest AND c.object = w.object)
   OR EXISTS (SELECT FROM artifacts a WHERE a.team_id = sqlc.arg(team_id) AND a.manifest_digest = encode(w.digest, 'hex') AND a.manifest_object = w.object)
   OR EXISTS (SELECT FROM doomed_objects d WHERE d.key = w.key);
