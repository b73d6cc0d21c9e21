package audit

import (
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// TeamRenamed records a team's new name.
func (l AuditLogger) TeamRenamed(team id.Team, from, to string) Entry {
	e := entry(l.by, team, "team", team.String(), "rename")
	e.Metadata = map[string]any{"from": from, "to": to}
	return e
}

// TeamDeleted records the end of a team and what ended with it at once.
func (l AuditLogger) TeamDeleted(team id.Team, name string, keys, invitations int64) Entry {
	e := entry(l.by, team, "team", team.String(), "delete")
	e.Metadata = map[string]any{"name": name, "api_keys_revoked": keys, "invitations_revoked": invitations}
	return e
}

// TeamTransferred records that a team has another owner; the former one is an
// admin now.
func (l AuditLogger) TeamTransferred(team id.Team, to id.User, email string) Entry {
	e := entry(l.by, team, "team", team.String(), "transfer")
	e.Metadata = map[string]any{"owner_id": to.String(), "owner": email}
	return e
}

// MemberAdded records somebody new in a team.
func (l AuditLogger) MemberAdded(team id.Team, user id.User, email string, role principal.Role) Entry {
	e := entry(l.by, team, "member", user.String(), "add")
	e.Metadata = map[string]any{"email": email, "role": role}
	return e
}

// MemberRemoved records that somebody was put out of a team, and how much of
// what they had made ended with that.
func (l AuditLogger) MemberRemoved(team id.Team, user id.User, email string, keysRevoked int, invitationsRevoked int64) Entry {
	e := entry(l.by, team, "member", user.String(), "remove")
	e.Metadata = map[string]any{"email": email, "api_keys_revoked": keysRevoked, "invitations_revoked": invitationsRevoked}
	return e
}

// MemberLeft records that somebody left a team.
func (l AuditLogger) MemberLeft(team id.Team, user id.User, email string, invitationsRevoked int64) Entry {
	e := entry(l.by, team, "member", user.String(), "leave")
	e.Metadata = map[string]any{"email": email, "invitations_revoked": invitationsRevoked}
	return e
}

// MemberRoleChanged records a member's new role.
func (l AuditLogger) MemberRoleChanged(team id.Team, user id.User, email string, from, to principal.Role) Entry {
	e := entry(l.by, team, "member", user.String(), "role_update")
	e.Metadata = map[string]any{"email": email, "from": from, "to": to}
	return e
}

// InvitationCreated records an invitation; never its link. An empty email is
// whoever has the link.
func (l AuditLogger) InvitationCreated(team id.Team, invitation id.Invitation, email string, role principal.Role) Entry {
	e := entry(l.by, team, "invitation", invitation.String(), "create")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"email": email, "role": role}
	return e
}

// InvitationRevoked records that an invitation was withdrawn.
func (l AuditLogger) InvitationRevoked(team id.Team, invitation id.Invitation, email string) Entry {
	e := entry(l.by, team, "invitation", invitation.String(), "revoke")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"email": email}
	return e
}

// InvitationAccepted records who spent an invitation.
func (l AuditLogger) InvitationAccepted(team id.Team, invitation id.Invitation, user id.User) Entry {
	e := entry(l.by, team, "invitation", invitation.String(), "accept")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"user_id": user.String()}
	return e
}

// BYOCSwitched records that a team may bring hosts of its own, or no longer.
func (l AuditLogger) BYOCSwitched(team id.Team, enabled bool) Entry {
	action := "byoc_disable"
	if enabled {
		action = "byoc_enable"
	}
	e := entry(l.by, team, "team", team.String(), action)
	e.Scope = ScopeAdmin
	return e
}

// TeamLimitsSet records what a platform admin set for a team in place of the
// defaults, before and now.
func (l AuditLogger) TeamLimitsSet(team id.Team, from, to map[string]any) Entry {
	e := entry(l.by, team, "team", team.String(), "limits_update")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"from": from, "to": to}
	return e
}
