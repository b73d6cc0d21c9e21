-- name: InsertUser :one
INSERT INTO users (id, email, name, password_hash, is_admin, email_proven_at)
VALUES (@id, @email, @name, @password_hash, @is_admin, CASE WHEN sqlc.arg(proven)::boolean THEN now() END)
RETURNING created_at;

-- name: InsertTeam :one
INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3) RETURNING created_at;

-- name: InsertMembership :exec
INSERT INTO users_teams (user_id, team_id, role, is_default) VALUES ($1, $2, $3, $4);

-- name: InsertSession :exec
INSERT INTO sessions (id, user_id, team_id, user_agent, ip, refresh_hash, expires_at)
VALUES (@id, @user_id, @team_id, @user_agent, @ip, @refresh_hash, now() + make_interval(secs => sqlc.arg(lifetime_seconds)::float8));

-- name: GetUserByEmail :one
SELECT id, email, name, password_hash, is_admin, is_active FROM users WHERE email = $1;

-- name: GetUserByID :one
SELECT id, email, name, password_hash, is_admin, is_active FROM users WHERE id = $1;

-- name: HoldUser :execrows
-- While the transaction lasts nobody disables the user or changes the password.
SELECT 1 FROM users WHERE id = $1 AND is_active FOR SHARE;

-- name: HoldCredentials :execrows
-- The same, for a user whose password is still the one that was checked.
SELECT 1 FROM users WHERE id = @id AND is_active AND password_hash = sqlc.arg(old_hash)::text FOR SHARE;

-- name: RenewPasswordHash :execrows
-- Only while nobody else changed it.
UPDATE users SET password_hash = sqlc.arg(new_hash)::text, updated_at = now()
WHERE id = @id AND is_active AND password_hash = sqlc.arg(old_hash)::text;

-- name: ChangePassword :execrows
UPDATE users SET password_hash = sqlc.arg(new_hash)::text, updated_at = now()
WHERE id = @id AND is_active AND coalesce(password_hash, '') = sqlc.arg(old_hash)::text;

-- name: Rename :execrows
UPDATE users SET name = @name, updated_at = now() WHERE id = @id AND name <> @name;

-- name: LockOwnedTeams :many
-- The living teams that a user owns, while nobody joins them.
SELECT t.id, t.name FROM teams t JOIN users_teams m ON m.team_id = t.id
WHERE m.user_id = sqlc.arg(user_id) AND m.role = 'owner' AND t.deleted_at IS NULL
ORDER BY t.id FOR NO KEY UPDATE OF t;

-- name: CountOthers :one
SELECT count(*) FROM users_teams WHERE team_id = sqlc.arg(team_id) AND user_id <> sqlc.arg(user_id);

-- name: LockUser :one
SELECT email FROM users WHERE id = $1 FOR UPDATE;

-- name: LockMemberships :many
SELECT m.team_id, m.role FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND t.deleted_at IS NULL
ORDER BY m.team_id FOR UPDATE OF m;

-- name: EndTeam :exec
UPDATE teams SET deleted_at = now(), updated_at = now() WHERE id = $1;

-- name: RevokeKeysOfTeam :execrows
UPDATE team_api_keys SET revoked_at = now() WHERE team_id = sqlc.arg(team_id) AND revoked_at IS NULL;

-- name: RevokeInvitationsOfTeam :execrows
UPDATE team_invitations SET revoked_at = now() WHERE team_id = sqlc.arg(team_id) AND revoked_at IS NULL AND accepted_at IS NULL;

-- name: DeleteUser :execrows
DELETE FROM users WHERE id = $1;

-- name: LockForAdmin :one
SELECT is_admin, is_active FROM users WHERE id = $1 FOR UPDATE;

-- name: MakeAdmin :exec
UPDATE users SET is_admin = true, is_active = true, updated_at = now() WHERE id = $1;

-- name: RevokeKeysOfOwner :many
-- The keys of the teams that a user owns.
UPDATE team_api_keys k SET revoked_at = now() FROM users_teams m
WHERE m.user_id = sqlc.arg(user_id) AND m.role = 'owner' AND k.team_id = m.team_id AND k.revoked_at IS NULL
RETURNING k.id, k.team_id, k.name;

-- name: RevokeInvitationsOfOwner :exec
UPDATE team_invitations i SET revoked_at = now() FROM users_teams m
WHERE m.user_id = sqlc.arg(user_id) AND m.role = 'owner' AND i.team_id = m.team_id AND i.revoked_at IS NULL AND i.accepted_at IS NULL;

-- name: DeleteIdentities :exec
DELETE FROM user_identities WHERE user_id = sqlc.arg(user_id);

-- name: DeleteOAuthLinks :exec
DELETE FROM oauth_logins WHERE link_user = sqlc.arg(user_id);

-- name: ReplacePassword :execrows
UPDATE users SET password_hash = sqlc.arg(new_hash)::text, updated_at = now() WHERE id = sqlc.arg(id) AND is_active;

-- name: EndSessionsOf :execrows
-- All of a user's sessions but one; the zero id for none.
UPDATE sessions SET ended_at = now(), end_reason = @end_reason
WHERE user_id = sqlc.arg(user_id) AND id <> @but AND ended_at IS NULL;

-- name: DropPendingLogins :exec
-- What was approved and not fetched yet would be a new session.
UPDATE device_logins SET denied_at = now() WHERE user_id = sqlc.arg(user_id)::uuid AND session_id IS NULL AND denied_at IS NULL;

-- name: DropResetLinks :exec
UPDATE account_tokens SET used_at = now() WHERE user_id = sqlc.arg(user_id) AND kind = 'password_reset' AND used_at IS NULL;

-- name: DeleteOldSessions :execrows
-- A bounded number of those that ended or expired long ago.
DELETE FROM sessions WHERE id IN (
    SELECT s.id FROM sessions s
    WHERE coalesce(s.ended_at, s.expires_at) < now() - make_interval(secs => sqlc.arg(keep_secs)::float8)
    ORDER BY s.id LIMIT 1000
    FOR UPDATE SKIP LOCKED);

-- name: GetDefaultTeamForUser :one
-- The default membership whose team is alive, else the earliest-joined living
-- team.
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND t.deleted_at IS NULL
ORDER BY m.is_default DESC, m.created_at, m.team_id
LIMIT 1;

-- name: GetSessionPrincipal :one
-- All that a request needs to know about a session, in one look by primary
-- keys.
SELECT u.id AS user_id, u.email, u.name, u.is_admin,
       (t.id IS NOT NULL)::boolean AS has_team, s.team_id, coalesce(m.role, '')::text AS role
FROM sessions s
JOIN users u ON u.id = s.user_id
LEFT JOIN users_teams m ON m.user_id = s.user_id AND m.team_id = s.team_id
LEFT JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL
WHERE s.id = $1 AND s.ended_at IS NULL AND s.expires_at > now() AND u.is_active;

-- name: LivingSessions :many
-- GetSessionPrincipal for many at once, as far as it may have changed.
SELECT s.id, (t.id IS NOT NULL)::boolean AS has_team, s.team_id, coalesce(m.role, '')::text AS role, u.is_admin
FROM sessions s
JOIN users u ON u.id = s.user_id
LEFT JOIN users_teams m ON m.user_id = s.user_id AND m.team_id = s.team_id
LEFT JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL
WHERE s.id = ANY(sqlc.arg(ids)::uuid[]) AND s.ended_at IS NULL AND s.expires_at > now() AND u.is_active;

-- name: EndSession :execrows
UPDATE sessions SET ended_at = now(), end_reason = @end_reason WHERE id = @id AND user_id = @user_id AND ended_at IS NULL;

-- name: ListSessions :many
SELECT id, user_agent, ip, created_at, refreshed_at, expires_at FROM sessions
WHERE user_id = @user_id AND ended_at IS NULL AND expires_at > now()
  AND (created_at, id) < (sqlc.arg(before_at)::timestamptz, sqlc.arg(before_id)::uuid)
ORDER BY created_at DESC, id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: AdvanceRefresh :execrows
-- Makes the presented token the one before the current one.
UPDATE sessions s
SET refresh_counter = s.refresh_counter + 1, refresh_hash = sqlc.arg(next_hash)::bytea, refreshed_at = now(),
    expires_at = now() + make_interval(secs => sqlc.arg(lifetime_seconds)::float8)
FROM users u
WHERE s.id = @id AND s.refresh_counter = sqlc.arg(presented)::bigint AND s.refresh_hash = sqlc.arg(presented_hash)::bytea
  AND s.ended_at IS NULL AND s.expires_at > now() AND u.id = s.user_id AND u.is_active;

-- name: GetRefreshing :one
SELECT u.id AS user_id, u.email, u.name, u.is_admin, s.refresh_counter, s.team_id
FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.id = $1 AND s.ended_at IS NULL AND s.expires_at > now() AND u.is_active;

-- name: TeamLives :one
SELECT EXISTS (SELECT 1 FROM teams WHERE id = $1 AND deleted_at IS NULL);

-- name: SwitchTeam :execrows
UPDATE sessions SET team_id = sqlc.arg(team_id)::uuid WHERE id = @id AND user_id = @user_id AND ended_at IS NULL;

-- name: HoldMembership :one
-- Whoever removes the member meanwhile waits.
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND m.team_id = $2 AND t.deleted_at IS NULL
FOR SHARE OF m;

-- name: GetMembership :one
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND m.team_id = $2 AND t.deleted_at IS NULL;

-- name: InsertAccountToken :one
INSERT INTO account_tokens (token_hash, kind, user_id, email, expires_at)
VALUES (@token_hash, @kind, @user_id, @email, now() + make_interval(secs => sqlc.arg(lifetime_seconds)::float8))
RETURNING expires_at;

-- name: GetAccountToken :one
-- Only while it is of use, and its user's address is still the one it was made for.
SELECT a.user_id, a.email FROM account_tokens a JOIN users u ON u.id = a.user_id
WHERE a.token_hash = @token_hash AND a.kind = @kind AND a.used_at IS NULL AND a.expires_at > now() AND u.is_active AND u.email = a.email;

-- name: UseAccountToken :execrows
UPDATE account_tokens SET used_at = now() WHERE token_hash = @token_hash AND used_at IS NULL AND expires_at > now();

-- name: ProveEmail :execrows
UPDATE users SET email_proven_at = now(), updated_at = now() WHERE id = $1 AND email_proven_at IS NULL;

-- name: IsProven :one
SELECT id, (email_proven_at IS NOT NULL)::boolean AS proven FROM users WHERE email = $1;

-- name: DropIdentitiesOfUnproven :exec
-- Whoever made the account may not have been whose address it has.
DELETE FROM user_identities i USING users u WHERE u.id = i.user_id AND u.id = $1 AND u.email_proven_at IS NULL;

-- name: DeleteOldTokens :execrows
DELETE FROM account_tokens WHERE token_hash IN (
    SELECT a.token_hash FROM account_tokens a WHERE a.expires_at < now() - interval '1 day' LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: InsertDeviceLogin :one
INSERT INTO device_logins (id, device_hash, user_code, client_name, ip, expires_at)
VALUES (@id, @device_hash, @user_code, @client_name, @ip, now() + make_interval(secs => sqlc.arg(lifetime_seconds)::float8))
RETURNING expires_at;

-- name: PendingDeviceLogin :one
SELECT id, user_code, client_name, ip, created_at, expires_at FROM device_logins
WHERE user_code = $1 AND approved_at IS NULL AND denied_at IS NULL AND expires_at > now();

-- name: ApproveDeviceLogin :one
UPDATE device_logins SET user_id = sqlc.arg(user_id)::uuid, approved_at = now()
WHERE user_code = @user_code AND approved_at IS NULL AND denied_at IS NULL AND expires_at > now()
RETURNING client_name;

-- name: DenyDeviceLogin :one
UPDATE device_logins SET denied_at = now()
WHERE user_code = @user_code AND approved_at IS NULL AND denied_at IS NULL AND expires_at > now()
RETURNING client_name;

-- name: GetDeviceLogin :one
SELECT id, user_id, (denied_at IS NOT NULL)::boolean AS denied, (approved_at IS NOT NULL)::boolean AS approved
FROM device_logins WHERE device_hash = $1 AND session_id IS NULL AND expires_at > now();

-- name: SpendDeviceLogin :execrows
UPDATE device_logins SET session_id = sqlc.arg(session_id)::uuid
WHERE device_hash = @device_hash AND user_id = sqlc.arg(user_id)::uuid AND approved_at IS NOT NULL AND denied_at IS NULL
  AND session_id IS NULL AND expires_at > now();

-- name: DeleteOldDeviceLogins :execrows
DELETE FROM device_logins WHERE id IN (
    SELECT d.id FROM device_logins d WHERE d.expires_at < now() - interval '1 day' LIMIT 1000 FOR UPDATE SKIP LOCKED);

-- name: ListUsers :many
SELECT u.id, u.email, u.name, u.is_admin, u.is_active, (u.email_proven_at IS NOT NULL)::boolean AS email_proven, u.created_at,
       coalesce((SELECT max(s.created_at) FROM sessions s WHERE s.user_id = u.id), 'epoch')::timestamptz AS last_login_at
FROM users u
WHERE (sqlc.arg(search)::text = '' OR strpos(u.email, lower(sqlc.arg(search)::text)) > 0 OR strpos(lower(u.name), lower(sqlc.arg(search)::text)) > 0)
  AND (u.created_at, u.id) < (sqlc.arg(before_at)::timestamptz, sqlc.arg(before_id)::uuid)
ORDER BY u.created_at DESC, u.id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: GetAdminUser :one
SELECT u.id, u.email, u.name, u.is_admin, u.is_active, (u.email_proven_at IS NOT NULL)::boolean AS email_proven, u.created_at,
       coalesce((SELECT max(s.created_at) FROM sessions s WHERE s.user_id = u.id), 'epoch')::timestamptz AS last_login_at
FROM users u WHERE u.id = $1;

-- name: LockActiveAdmins :many
-- All of them, always in the same order: whoever removes one sees what is left.
SELECT id FROM users WHERE is_admin AND is_active ORDER BY id FOR NO KEY UPDATE;

-- name: SetAdmin :execrows
UPDATE users SET is_admin = sqlc.arg(enabled)::boolean, updated_at = now() WHERE id = @id AND is_admin <> sqlc.arg(enabled)::boolean;

-- name: SetActive :execrows
UPDATE users SET is_active = sqlc.arg(enabled)::boolean, updated_at = now() WHERE id = @id AND is_active <> sqlc.arg(enabled)::boolean;
