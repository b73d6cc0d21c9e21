-- name: LockKey :exec
SELECT pg_advisory_xact_lock(sqlc.arg(key)::bigint);

-- name: FindReceipt :one
SELECT request_hash, receipt FROM idempotency_keys
WHERE caller = $1 AND key_hash = $2 AND created_at > now() - interval '24 hours';

-- name: SaveReceipt :exec
INSERT INTO idempotency_keys (caller, key_hash, request_hash, receipt) VALUES ($1, $2, $3, $4)
ON CONFLICT (caller, key_hash) DO UPDATE
SET request_hash = excluded.request_hash, receipt = excluded.receipt, created_at = now();

-- name: DeleteExpired :execrows
DELETE FROM idempotency_keys
WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM idempotency_keys k WHERE k.created_at <= now() - interval '24 hours' LIMIT 1000));
