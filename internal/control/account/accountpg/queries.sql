-- name: InsertUser :one
INSERT INTO users (id, email, name, password_hash, is_admin) VALUES ($1, $2, $3, $4, $5) RETURNING created_at;

-- name: InsertTeam :one
INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3) RETURNING created_at;

-- name: InsertMembership :exec
INSERT INTO users_teams (user_id, team_id, role, is_default) VALUES ($1, $2, $3, $4);

-- name: InsertSession :exec
INSERT INTO sessions (id, user_id, team_id, user_agent, ip, expires_at)
VALUES (@id, @user_id, @team_id, @user_agent, @ip, now() + make_interval(secs => sqlc.arg(lifetime_seconds)::float8));

-- name: GetUserByEmail :one
SELECT id, email, name, password_hash, is_admin, is_active FROM users WHERE email = $1;

-- name: UpdatePasswordHash :execrows
-- Only while nobody else changed it.
UPDATE users SET password_hash = @new_hash, updated_at = now() WHERE id = @id AND password_hash = @old_hash;

-- name: MakeAdmin :execrows
UPDATE users SET is_admin = true, is_active = true, updated_at = now() WHERE id = $1 AND NOT (is_admin AND is_active);

-- name: ReplacePassword :exec
UPDATE users SET password_hash = sqlc.arg(new_hash)::text, updated_at = now() WHERE id = sqlc.arg(id);

-- name: EndSessionsOf :exec
UPDATE sessions SET ended_at = now() WHERE user_id = sqlc.arg(user_id) AND ended_at IS NULL;

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
UPDATE sessions SET ended_at = now() WHERE id = $1 AND ended_at IS NULL;

-- name: GetMembership :one
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND m.team_id = $2 AND t.deleted_at IS NULL;
