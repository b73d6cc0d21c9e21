-- name: OutboxEnd :one
-- All that committed so far is before this transaction id, or is still to be
-- read after it.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS tx;

-- name: OutboxAfter :many
-- What came after a position, up to the first transaction that may still add
-- something.
SELECT tx::text::bigint AS tx, id, team_id, kind, resource, scope, at
FROM outbox
WHERE (tx, id) > (sqlc.arg(tx)::bigint::text::xid8, sqlc.arg(id)::bigint) AND tx < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY outbox.tx, outbox.id
LIMIT sqlc.arg(max_rows);

-- name: OutboxBetween :many
-- One team's part of what lies after one position and up to another.
SELECT tx::text::bigint AS tx, id, team_id, kind, resource, scope, at
FROM outbox
WHERE team_id = sqlc.arg(team_id)
  AND (tx, id) > (sqlc.arg(tx)::bigint::text::xid8, sqlc.arg(id)::bigint)
  AND (tx, id) <= (sqlc.arg(to_tx)::bigint::text::xid8, sqlc.arg(to_id)::bigint)
ORDER BY outbox.tx, outbox.id
LIMIT sqlc.arg(max_rows);

-- name: OutboxBetweenAll :many
-- What lies after one position and up to another.
SELECT tx::text::bigint AS tx, id, team_id, kind, resource, scope, at
FROM outbox
WHERE (tx, id) > (sqlc.arg(tx)::bigint::text::xid8, sqlc.arg(id)::bigint)
  AND (tx, id) <= (sqlc.arg(to_tx)::bigint::text::xid8, sqlc.arg(to_id)::bigint)
ORDER BY outbox.tx, outbox.id
LIMIT sqlc.arg(max_rows);

-- name: OutboxKept :one
-- Whether something as old as a position is still there: then nothing after it
-- was pruned.
SELECT EXISTS (
    SELECT 1 FROM outbox WHERE (tx, id) <= (sqlc.arg(tx)::bigint::text::xid8, sqlc.arg(id)::bigint))::boolean;

-- name: PruneOutbox :execrows
DELETE FROM outbox WHERE id IN (
    SELECT o.id FROM outbox o
    WHERE o.at < now() - make_interval(secs => sqlc.arg(keep_secs)::float8)
    ORDER BY o.tx, o.id LIMIT 5000
    FOR UPDATE SKIP LOCKED);

-- name: InsertTicket :one
INSERT INTO stream_tickets (ticket_hash, operation, resource, session_id, api_key_id, expires_at)
VALUES (sqlc.arg(ticket_hash), sqlc.arg(operation), sqlc.arg(resource), sqlc.narg(session_id), sqlc.narg(api_key_id),
    now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8))
RETURNING expires_at;

-- name: SpendTicket :one
DELETE FROM stream_tickets
WHERE ticket_hash = sqlc.arg(ticket_hash) AND operation = sqlc.arg(operation) AND resource = sqlc.arg(resource)
RETURNING session_id, api_key_id, (expires_at > now())::boolean AS fresh;

-- name: PruneTickets :execrows
DELETE FROM stream_tickets WHERE expires_at < now() - interval '1 minute';
