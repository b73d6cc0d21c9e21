-- name: ListTeams :many
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = sqlc.arg(user_id) AND t.deleted_at IS NULL
ORDER BY m.created_at, m.team_id
LIMIT sqlc.arg(max_rows)::int;

-- name: GetBYOCTeams :many
SELECT id, name, slug, is_byoc, created_at FROM teams
WHERE is_byoc AND deleted_at IS NULL
ORDER BY created_at, id
LIMIT sqlc.arg(max_rows)::int;

-- name: GetTeam :one
-- A living team as one of its members sees it.
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, m.role
FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = sqlc.arg(user_id) AND m.team_id = sqlc.arg(team_id) AND t.deleted_at IS NULL;

-- name: LockUser :one
SELECT id FROM users WHERE id = $1 AND is_active FOR NO KEY UPDATE;

-- name: CountOwned :one
SELECT count(*) FROM users_teams m JOIN teams t ON t.id = m.team_id
WHERE m.user_id = $1 AND m.role = 'owner' AND t.deleted_at IS NULL;

-- name: InsertTeam :one
INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3) RETURNING created_at;

-- name: InsertMember :one
INSERT INTO users_teams (user_id, team_id, role) VALUES ($1, $2, $3)
ON CONFLICT (user_id, team_id) DO NOTHING
RETURNING created_at;

-- name: LockTeam :one
-- All that changes a team or who is in it comes one after the other.
SELECT id, name, slug, is_byoc, created_at FROM teams WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE;

-- name: LockMembers :many
-- A statement of its own, after the team's lock, in the order of ids.
SELECT m.user_id, m.role, m.created_at, u.name, u.email, u.is_active
FROM users_teams m JOIN users u ON u.id = m.user_id
WHERE m.team_id = sqlc.arg(team_id) AND m.user_id = ANY(sqlc.arg(users)::uuid[])
ORDER BY m.user_id
FOR UPDATE OF m;

-- name: RenameTeam :exec
UPDATE teams SET name = $2, updated_at = now() WHERE id = $1;

-- name: DeleteTeam :exec
UPDATE teams SET deleted_at = now(), updated_at = now() WHERE id = $1;

-- name: RevokeTeamKeys :execrows
UPDATE team_api_keys SET revoked_at = now() WHERE team_id = $1 AND revoked_at IS NULL;

-- name: RevokeTeamInvitations :execrows
UPDATE team_invitations SET revoked_at = now() WHERE team_id = $1 AND revoked_at IS NULL AND accepted_at IS NULL AND expires_at > now();

-- name: SetRole :exec
UPDATE users_teams SET role = $3 WHERE team_id = $1 AND user_id = $2;

-- name: DeleteMember :exec
DELETE FROM users_teams WHERE team_id = $1 AND user_id = $2;

-- name: GetActiveUserByEmail :one
SELECT id, name, email FROM users WHERE email = $1 AND is_active;

-- name: GetActiveUser :one
SELECT id, name, email FROM users WHERE id = $1 AND is_active;

-- name: ListMembers :many
SELECT m.user_id, m.role, m.created_at, u.name, u.email
FROM users_teams m JOIN users u ON u.id = m.user_id
WHERE m.team_id = sqlc.arg(team_id)
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (m.created_at, m.user_id) > (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY m.created_at, m.user_id
LIMIT sqlc.arg(max_rows)::int;

-- name: KeysMadeBy :many
-- The keys of a team that work and that one user made, newest first.
SELECT id, name, key_prefix, scopes, created_at, expires_at, last_used_at FROM team_api_keys
WHERE team_id = sqlc.arg(team_id) AND created_by = sqlc.arg(created_by) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
ORDER BY created_at DESC, id DESC
FOR UPDATE;

-- name: RevokeKeys :exec
UPDATE team_api_keys SET revoked_at = now() WHERE id = ANY(sqlc.arg(ids)::uuid[]);

-- name: RevokeInvitationsOf :execrows
-- What somebody could invite himself back with.
UPDATE team_invitations SET revoked_at = now()
WHERE team_id = sqlc.arg(team_id) AND created_by = sqlc.arg(created_by) AND revoked_at IS NULL AND accepted_at IS NULL AND expires_at > now();

-- name: CountOpenInvitations :one
SELECT count(*) FROM team_invitations WHERE team_id = $1 AND revoked_at IS NULL AND accepted_at IS NULL AND expires_at > now();

-- name: InsertInvitation :one
INSERT INTO team_invitations (id, team_id, email, role, token_hash, created_by, expires_at)
VALUES (sqlc.arg(id), sqlc.arg(team_id), sqlc.arg(email), sqlc.arg(role), sqlc.arg(token_hash), sqlc.arg(created_by),
    now() + make_interval(secs => sqlc.arg(lifetime_secs)::float8))
RETURNING created_at, expires_at;

-- name: ListInvitations :many
-- Those that can still be accepted: see PreviewInvitation.
SELECT i.id, i.email, i.role, i.created_at, i.expires_at, u.name AS creator
FROM team_invitations i
JOIN users u ON u.id = i.created_by AND u.is_active
JOIN users_teams m ON m.user_id = i.created_by AND m.team_id = i.team_id AND m.role IN ('owner', 'admin')
WHERE i.team_id = sqlc.arg(team_id) AND i.revoked_at IS NULL AND i.accepted_at IS NULL AND i.expires_at > now()
  AND (sqlc.narg(after_at)::timestamptz IS NULL OR (i.created_at, i.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
ORDER BY i.created_at DESC, i.id DESC
LIMIT sqlc.arg(max_rows)::int;

-- name: PreviewInvitation :one
-- An invitation stands only as long as who made it may invite.
SELECT i.id, i.team_id, i.email, i.role, i.expires_at, t.name AS team_name
FROM team_invitations i
JOIN teams t ON t.id = i.team_id AND t.deleted_at IS NULL
JOIN users u ON u.id = i.created_by AND u.is_active
JOIN users_teams m ON m.user_id = i.created_by AND m.team_id = i.team_id AND m.role IN ('owner', 'admin')
WHERE i.token_hash = sqlc.arg(token_hash) AND i.revoked_at IS NULL AND i.accepted_at IS NULL AND i.expires_at > now();

-- name: RevokeInvitation :one
UPDATE team_invitations SET revoked_at = now()
WHERE id = sqlc.arg(id) AND team_id = sqlc.arg(team_id) AND revoked_at IS NULL AND accepted_at IS NULL AND expires_at > now()
RETURNING email;

-- name: SpendInvitation :exec
UPDATE team_invitations SET accepted_at = now(), accepted_by = sqlc.arg(accepted_by) WHERE id = sqlc.arg(id);

-- name: ManagesATeam :one
SELECT EXISTS (
    SELECT 1 FROM users_teams m JOIN teams t ON t.id = m.team_id AND t.deleted_at IS NULL
    WHERE m.user_id = $1 AND m.role IN ('owner', 'admin'))::bool;

-- name: SearchUsers :many
SELECT id, name, email FROM users
WHERE email LIKE sqlc.arg(pattern)::text AND is_active
ORDER BY email
LIMIT sqlc.arg(max_rows)::int;

-- name: AdminTeams :many
-- One row, or a page of all: the counts are taken for the page's rows alone.
SELECT t.id, t.name, t.slug, t.is_byoc, t.created_at, t.deleted_at, coalesce(owner.email, '')::text AS owner,
    members.n AS members, live.n AS sandboxes
FROM (
    SELECT * FROM teams x
    WHERE x.id <> '00000000-0000-0000-0000-000000000000'
      AND (sqlc.narg(only_id)::uuid IS NULL OR x.id = sqlc.narg(only_id)::uuid)
      AND (sqlc.arg(pattern)::text = '' OR x.name ILIKE sqlc.arg(pattern)::text OR x.slug LIKE sqlc.arg(pattern)::text)
      AND (sqlc.narg(after_at)::timestamptz IS NULL OR (x.created_at, x.id) < (sqlc.narg(after_at)::timestamptz, sqlc.narg(after_id)::uuid))
    ORDER BY x.created_at DESC, x.id DESC
    LIMIT sqlc.arg(max_rows)::int) t
LEFT JOIN LATERAL (
    SELECT u.email FROM users_teams m JOIN users u ON u.id = m.user_id WHERE m.team_id = t.id AND m.role = 'owner') owner ON true
CROSS JOIN LATERAL (SELECT count(*) AS n FROM users_teams m WHERE m.team_id = t.id) members
CROSS JOIN LATERAL (SELECT count(*) AS n FROM sandboxes s WHERE s.team_id = t.id AND s.ended_at IS NULL) live
ORDER BY t.created_at DESC, t.id DESC;

-- name: CountHosts :one
SELECT count(*) FROM hosts WHERE team_id = $1 AND deleted_at IS NULL;

-- name: SetBYOC :exec
UPDATE teams SET is_byoc = $2, updated_at = now() WHERE id = $1;

-- name: LeftSandboxes :many
-- What deleted teams have left and nobody has begun to end.
SELECT s.id FROM sandboxes s JOIN teams t ON t.id = s.team_id AND t.deleted_at IS NOT NULL
WHERE s.ended_at IS NULL AND s.status <> 'stopping' AND s.id > sqlc.arg(after)::uuid
  AND (sqlc.narg(only_team)::uuid IS NULL OR s.team_id = sqlc.narg(only_team)::uuid)
ORDER BY s.id
LIMIT sqlc.arg(max_rows)::int;
