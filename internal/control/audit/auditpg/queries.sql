-- name: LockHead :one
-- Locks the end of a team's chain, which begins at zero. The time grows along
-- the chain, because it is read under the lock.
INSERT INTO audit_heads AS h (team_id, seq, hash) VALUES ($1, 0, '\x0000000000000000000000000000000000000000000000000000000000000000')
ON CONFLICT (team_id) DO UPDATE SET seq = h.seq
RETURNING seq, hash, clock_timestamp()::timestamptz AS at;

-- name: InsertEntry :batchexec
-- Adds one entry at the end of a chain that is locked, and tells those who
-- watch.
WITH head AS (
    UPDATE audit_heads SET seq = @seq, hash = @hash WHERE team_id = @team_id
), event AS (
    INSERT INTO outbox (team_id, kind, resource, scope)
    VALUES (@team_id, sqlc.arg(resource_type)::text || '.' || sqlc.arg(action)::text, @resource_id, @scope)
)
INSERT INTO audit_logs (id, team_id, seq, hash, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status,
                        metadata, request_id, ip, created_at)
VALUES (@id, @team_id, @seq, @hash, @actor_type, @actor_id, @actor_name, @resource_type, @resource_id, @action, @scope, @status,
        @metadata, @request_id, @ip, @created_at);

-- name: ListTeam :many
-- Of one team, newest first; an empty filter takes all.
SELECT * FROM audit_logs
WHERE team_id = @team_id AND seq < sqlc.arg(before_seq)::bigint
  AND (sqlc.arg(admin_too)::boolean OR scope = 'team')
  AND (cardinality(sqlc.arg(resource_types)::text[]) = 0 OR resource_type = ANY(sqlc.arg(resource_types)::text[]))
  AND (cardinality(sqlc.arg(actions)::text[]) = 0 OR action = ANY(sqlc.arg(actions)::text[]))
ORDER BY seq DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: ListAll :many
-- Of all teams, newest first; an empty filter takes all.
SELECT * FROM audit_logs
WHERE (created_at, id) < (sqlc.arg(before_at)::timestamptz, sqlc.arg(before_id)::uuid)
  AND (cardinality(sqlc.arg(resource_types)::text[]) = 0 OR resource_type = ANY(sqlc.arg(resource_types)::text[]))
  AND (cardinality(sqlc.arg(actions)::text[]) = 0 OR action = ANY(sqlc.arg(actions)::text[]))
ORDER BY created_at DESC, id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: GetChain :one
-- Where a team's chain begins and ends, NULL when nothing was ever recorded.
SELECT h.anchor_seq, h.anchor_hash, h.seq, h.hash FROM teams t LEFT JOIN audit_heads h ON h.team_id = t.id WHERE t.id = $1;

-- name: ListFrom :many
-- Of one team, oldest first.
SELECT * FROM audit_logs WHERE team_id = @team_id AND seq > sqlc.arg(after_seq)::bigint ORDER BY seq LIMIT sqlc.arg(max_rows)::int;

-- name: ListPrunable :many
-- Teams whose oldest entry is old enough to go, in the order of their ids.
SELECT h.team_id FROM audit_heads h JOIN audit_logs l ON l.team_id = h.team_id AND l.seq = h.anchor_seq + 1
WHERE l.created_at < now() - make_interval(secs => sqlc.arg(keep_secs)::double precision) AND (sqlc.narg(after_team)::uuid IS NULL OR h.team_id > sqlc.narg(after_team)::uuid)
ORDER BY h.team_id LIMIT sqlc.arg(max_rows)::int;

-- name: Prune :one
SELECT removed::bigint AS removed, up_to::bigint AS up_to
FROM prune_audit_logs(@team, now() - make_interval(secs => sqlc.arg(keep_secs)::double precision), sqlc.arg(max_rows)::int);

-- name: AddRefusals :batchexec
INSERT INTO refusal_counts AS r (ip, minute, reason, count) VALUES (@ip, @minute, @reason, @count)
ON CONFLICT (minute, ip, reason) DO UPDATE SET count = r.count + excluded.count;

-- name: DeleteOldRefusals :execrows
DELETE FROM refusal_counts WHERE (minute, ip, reason) IN (
    SELECT minute, ip, reason FROM refusal_counts
    WHERE minute < now() - make_interval(secs => sqlc.arg(keep_secs)::double precision) ORDER BY minute LIMIT 10000);
