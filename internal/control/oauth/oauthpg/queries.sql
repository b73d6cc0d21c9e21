-- name: BeginLogin :exec
INSERT INTO oauth_logins (state_hash, provider, sealed, link_user, user_code, expires_at)
VALUES (sqlc.arg(state_hash), sqlc.arg(provider), sqlc.arg(sealed), sqlc.narg(link_user), sqlc.arg(user_code),
    now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8));

-- name: SpendLogin :one
DELETE FROM oauth_logins WHERE state_hash = $1
RETURNING provider, sealed, link_user, user_code, (expires_at > now())::boolean AS fresh;

-- name: PruneLogins :execrows
DELETE FROM oauth_logins WHERE expires_at < now();

-- name: UserOfIdentity :one
UPDATE user_identities SET email = sqlc.arg(email) WHERE provider = sqlc.arg(provider) AND subject = sqlc.arg(subject)
RETURNING user_id;

-- name: LockUser :one
SELECT u.email, (u.password_hash IS NOT NULL)::boolean AS has_password, u.is_active FROM users u WHERE u.id = $1 FOR NO KEY UPDATE;

-- name: HoldSession :execrows
-- While the transaction lasts it does not end.
SELECT 1 FROM sessions WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > now() FOR SHARE;

-- name: InsertIdentity :execrows
INSERT INTO user_identities (provider, subject, user_id, email) VALUES ($1, $2, $3, $4) ON CONFLICT (provider, subject) DO NOTHING;

-- name: IdentityOwner :one
SELECT user_id FROM user_identities WHERE provider = $1 AND subject = $2;

-- name: ProveEmail :exec
UPDATE users SET email_proven_at = now(), updated_at = now() WHERE id = $1 AND email = $2 AND email_proven_at IS NULL;

-- name: ListIdentities :many
SELECT provider, subject, email, created_at FROM user_identities WHERE user_id = $1 ORDER BY provider;

-- name: DeleteIdentity :execrows
DELETE FROM user_identities WHERE user_id = $1 AND provider = $2;
