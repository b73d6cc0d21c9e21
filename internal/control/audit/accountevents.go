package audit

import (
	"skerry.dev/skerry/internal/kernel/id"
)

// admin is an entry that only owners and admins of the team read.
func (l AuditLogger) admin(team id.Team, resourceType, resourceID, action string) Entry {
	e := entry(l.by, team, resourceType, resourceID, action)
	e.Scope = ScopeAdmin
	return e
}

// SessionTokenReused records a refresh token that was older than a confirmed
// successor; the session ended.
func (l AuditLogger) SessionTokenReused(team id.Team, session id.Session, user id.User) Entry {
	e := l.admin(team, "session", session.String(), "token_reuse")
	e.Status = StatusError
	e.Metadata = map[string]any{"user_id": user.String()}
	return e
}

// SessionEnded records that a user ended one of their sessions from another.
func (l AuditLogger) SessionEnded(team id.Team, session id.Session) Entry {
	return l.admin(team, "session", session.String(), "end")
}

// TeamSwitched records that a session went over to a team.
func (l AuditLogger) TeamSwitched(team id.Team, session id.Session) Entry {
	return l.admin(team, "session", session.String(), "switch_team")
}

// UserRenamed records a user's new name.
func (l AuditLogger) UserRenamed(team id.Team, user id.User, name string) Entry {
	e := entry(l.by, team, "user", user.String(), "rename")
	e.Metadata = map[string]any{"name": name}
	return e
}

// PasswordChanged records a user's new password, by their own hand.
func (l AuditLogger) PasswordChanged(team id.Team, user id.User) Entry {
	return l.admin(team, "user", user.String(), "password_change")
}

// PasswordChangeFailed records a wrong current password.
func (l AuditLogger) PasswordChangeFailed(team id.Team, user id.User) Entry {
	e := l.admin(team, "user", user.String(), "password_change_failed")
	e.Status = StatusWarning
	return e
}

// PasswordLinkSent records that a link to set a new password was mailed.
func (l AuditLogger) PasswordLinkSent(team id.Team, user id.User) Entry {
	e := l.admin(team, "user", user.String(), "password_link_send")
	e.Status = StatusInfo
	return e
}

// EmailLinkSent records that a link to prove an address was mailed to it.
func (l AuditLogger) EmailLinkSent(team id.Team, user id.User) Entry {
	e := l.admin(team, "user", user.String(), "email_link_send")
	e.Status = StatusInfo
	return e
}

// PasswordLinkIssued records that a platform admin made such a link by hand.
func (l AuditLogger) PasswordLinkIssued(user id.User, email string) Entry {
	e := l.admin(id.PlatformTeamID, "user", user.String(), "password_link_issue")
	e.Status, e.Metadata = StatusWarning, map[string]any{"email": email}
	return e
}

// PasswordSetByLink records a new password that came with a link.
func (l AuditLogger) PasswordSetByLink(team id.Team, user id.User) Entry {
	e := l.admin(team, "user", user.String(), "password_link_use")
	e.Status = StatusWarning
	return e
}

// EmailProven records that an address was proven by the link mailed to it.
func (l AuditLogger) EmailProven(team id.Team, user id.User) Entry {
	return l.admin(team, "user", user.String(), "email_prove")
}

// DeviceDecided records what a user said to a program that asked to log in.
func (l AuditLogger) DeviceDecided(team id.Team, client string, approved bool) Entry {
	e := l.admin(team, "session", "", "device_deny")
	if approved {
		e.Action = "device_approve"
	}
	e.Metadata = map[string]any{"client": client}
	return e
}

// UserDeleted records, for one of the teams that the user was in, or for the
// platform, that an account is gone.
func (l AuditLogger) UserDeleted(team id.Team, user id.User) Entry {
	e := entry(l.by, team, "user", user.String(), "delete")
	e.Status = StatusWarning
	return e
}

// AdminRevoked records that a user is no platform admin any more.
func (l AuditLogger) AdminRevoked(user id.User, email string) Entry {
	e := l.admin(id.PlatformTeamID, "user", user.String(), "admin_revoke")
	e.Metadata = map[string]any{"email": email}
	return e
}

// UserActiveSet records that a user was disabled, or enabled again.
func (l AuditLogger) UserActiveSet(user id.User, email string, active bool) Entry {
	e := l.admin(id.PlatformTeamID, "user", user.String(), "disable")
	e.Status, e.Metadata = StatusWarning, map[string]any{"email": email}
	if active {
		e.Action, e.Status = "enable", StatusSuccess
	}
	return e
}
