-- name: LockHead :one
-- Locks the end of a team's chain, which begins at zero. The time grows along
-- the chain, because it is read under the lock.
INSERT INTO audit_heads AS h (team_id, seq, hash) VALUES ($1, 0, '\x0000000000000000000000000000000000000000000000000000000000000000')
ON CONFLICT (team_id) DO UPDATE SET seq = h.seq
RETURNING seq, hash, clock_timestamp()::timestamptz AS at;

-- name: InsertEntry :batchexec
INSERT INTO audit_logs (id, team_id, seq, hash, actor_type, actor_id, actor_name, resource_type, resource_id, action, scope, status,
                        metadata, request_id, ip, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16);

-- name: MoveHead :exec
UPDATE audit_heads SET seq = $2, hash = $3 WHERE team_id = $1;
