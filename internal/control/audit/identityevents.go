package audit

import "skerry.dev/skerry/internal/kernel/id"

// IdentityLinked records that a provider can log a user in from now on.
func (l AuditLogger) IdentityLinked(user id.User, provider string) Entry {
	e := entry(l.by, id.PlatformTeamID, "user", user.String(), "identity_link")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"provider": provider}
	return e
}

// IdentityUnlinked records that a provider no longer can.
func (l AuditLogger) IdentityUnlinked(user id.User, provider string) Entry {
	e := entry(l.by, id.PlatformTeamID, "user", user.String(), "identity_unlink")
	e.Scope = ScopeAdmin
	e.Metadata = map[string]any{"provider": provider}
	return e
}
