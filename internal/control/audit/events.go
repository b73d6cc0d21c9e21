package audit

import (
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// AuditLogger makes the entries of one caller's doings, one named method an
// event. It writes nothing: the entry goes to the store's verb, which appends
// it in the transaction of the change.
type AuditLogger struct{ by principal.Principal } //nolint:revive // the trail's name in every document

// By returns the logger of what p does.
func By(p principal.Principal) AuditLogger { return AuditLogger{by: p} }

// SignedUp records a new user, in the team that was made for it.
func (l AuditLogger) SignedUp(team id.Team, user id.User) Entry {
	return entry(l.by, team, "user", user.String(), "create")
}

// AdminGranted records that a user became a platform admin.
func (l AuditLogger) AdminGranted(user id.User, email string) Entry {
	e := entry(l.by, id.PlatformTeamID, "user", user.String(), "admin_grant")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"email": email}
	return e
}

// PasswordReset records that an operator gave an account a new password, which
// ended its sessions.
func (l AuditLogger) PasswordReset(user id.User, email string) Entry {
	e := entry(l.by, id.PlatformTeamID, "user", user.String(), "password_reset")
	e.Scope, e.Status = ScopeAdmin, StatusWarning
	e.Metadata = map[string]any{"email": email}
	return e
}

// LoggedIn records a new session.
func (l AuditLogger) LoggedIn(team id.Team, session id.Session) Entry {
	e := entry(l.by, team, "session", session.String(), "login")
	e.Scope = ScopeAdmin
	return e
}

// LoginFailed records a refused login to an address, in the team of the account
// it names or in the platform's when it names none.
func (l AuditLogger) LoginFailed(team id.Team, email string) Entry {
	e := entry(l.by, team, "session", "", "login_failed")
	e.Scope, e.Status = ScopeAdmin, StatusWarning
	e.Metadata = map[string]any{"email": email}
	return e
}

// LoggedOut records the end of a session by its user.
func (l AuditLogger) LoggedOut(team id.Team, session id.Session) Entry {
	e := entry(l.by, team, "session", session.String(), "logout")
	e.Scope = ScopeAdmin
	return e
}

// APIKeyCreated records a new key; of the key itself nothing but its name.
func (l AuditLogger) APIKeyCreated(team id.Team, key id.APIKey, name string) Entry {
	e := entry(l.by, team, "api_key", key.String(), "create")
	e.Metadata = map[string]any{"name": name}
	return e
}

// APIKeyRevoked records the end of a key.
func (l AuditLogger) APIKeyRevoked(team id.Team, key id.APIKey, name string) Entry {
	e := entry(l.by, team, "api_key", key.String(), "revoke")
	e.Metadata = map[string]any{"name": name}
	return e
}

// TeamCreated records a new team.
func (l AuditLogger) TeamCreated(team id.Team, name string) Entry {
	e := entry(l.by, team, "team", team.String(), "create")
	e.Metadata = map[string]any{"name": name}
	return e
}

// HostCreated records that a host was announced.
func (l AuditLogger) HostCreated(team id.Team, host id.Host, name string) Entry {
	e := entry(l.by, team, "host", host.String(), "create")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"name": name}
	return e
}

// HostTokenIssued records a new registration token, which voids the former.
func (l AuditLogger) HostTokenIssued(team id.Team, host id.Host) Entry {
	e := entry(l.by, team, "host", host.String(), "token_issue")
	e.Scope = ScopeAdmin
	return e
}

// HostRegistered records that an agent joined with its token.
func (l AuditLogger) HostRegistered(team id.Team, host id.Host, address string) Entry {
	e := entry(l.by, team, "host", host.String(), "register")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"address": address}
	return e
}

// HostTokenReused records a host's token that was older than a confirmed
// successor.
func (l AuditLogger) HostTokenReused(team id.Team, host id.Host, revoked bool) Entry {
	e := entry(l.by, team, "host", host.String(), "token_reuse")
	e.Scope, e.Status = ScopeAdmin, StatusError
	e.Metadata = map[string]any{"revoked": revoked}
	return e
}

// HostMarkedDown records that a host fell silent.
func (l AuditLogger) HostMarkedDown(team id.Team, host id.Host, reason string) Entry {
	e := entry(l.by, team, "host", host.String(), "marked_down")
	e.Scope, e.Status = ScopeAdmin, StatusWarning
	e.Metadata = map[string]any{"reason": reason}
	return e
}

// HostMarkedUp records that a host is reached again.
func (l AuditLogger) HostMarkedUp(team id.Team, host id.Host) Entry {
	e := entry(l.by, team, "host", host.String(), "marked_up")
	e.Scope, e.Status = ScopeAdmin, StatusInfo
	return e
}

// HostDeleted records the end of a host and how many sandboxes ended with it.
func (l AuditLogger) HostDeleted(team id.Team, host id.Host, sandboxes int) Entry {
	e := entry(l.by, team, "host", host.String(), "delete")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"sandboxes": sandboxes}
	return e
}

// HostUpdated records what was changed of a host, by the names of the fields.
func (l AuditLogger) HostUpdated(team id.Team, host id.Host, fields ...string) Entry {
	e := entry(l.by, team, "host", host.String(), "update")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"fields": fields}
	return e
}

// HostDraining records that a host is to be emptied, within a time if that is
// not zero.
func (l AuditLogger) HostDraining(team id.Team, host id.Host, within time.Duration) Entry {
	e := entry(l.by, team, "host", host.String(), "drain")
	e.Scope = ScopeAdmin
	if within > 0 {
		e.Metadata = map[string]any{"deadline_sec": int64(within.Seconds())}
	}
	return e
}

// HostUndrained records that a host takes sandboxes again.
func (l AuditLogger) HostUndrained(team id.Team, host id.Host) Entry {
	e := entry(l.by, team, "host", host.String(), "undrain")
	e.Scope = ScopeAdmin
	return e
}

// SandboxCreated records an accepted create; never its environment.
func (l AuditLogger) SandboxCreated(team id.Team, sandbox id.Sandbox, template string, host id.Host) Entry {
	e := entry(l.by, team, "sandbox", sandbox.String(), "create")
	e.Metadata = map[string]any{"template": template, "host_id": host.String()}
	return e
}

// SandboxDestroyed records an accepted end and why.
func (l AuditLogger) SandboxDestroyed(team id.Team, sandbox id.Sandbox, reason string) Entry {
	e := entry(l.by, team, "sandbox", sandbox.String(), "destroy")
	e.Metadata = map[string]any{"reason": reason}
	return e
}

// TemplateBuilt records how the build of a template ended.
func (l AuditLogger) TemplateBuilt(team id.Team, template id.Template, name string, ok bool) Entry {
	e := entry(l.by, team, "template", template.String(), "build")
	e.Metadata = map[string]any{"name": name}
	if !ok {
		e.Status = StatusError
	}
	return e
}

// Refused records that a known caller was told no; of the call nothing but its
// operation and the reason.
func (l AuditLogger) Refused(team id.Team, operation, reason string) Entry {
	e := entry(l.by, team, operation, "", "refused")
	e.Scope, e.Status = ScopeAdmin, StatusWarning
	e.Metadata = map[string]any{"reason": reason}
	return e
}

// Pruned records that retention removed a team's oldest entries, up to and with
// a sequence.
func (l AuditLogger) Pruned(team id.Team, removed, upTo int64) Entry {
	e := entry(l.by, team, "audit", team.String(), "prune")
	e.Scope, e.Status = ScopeAdmin, StatusInfo
	e.Metadata = map[string]any{"removed": removed, "up_to_seq": upTo}
	return e
}
