package audit

import "skerry.dev/skerry/internal/kernel/id"

// HostClaimedForeign records that a host told of a sandbox that is another
// host's; nothing came of it.
func (l AuditLogger) HostClaimedForeign(team id.Team, host id.Host, sandbox id.Sandbox) Entry {
	return l.stray(team, host, sandbox, "claim_foreign", StatusError)
}

// HostStrayFound records that a host holds a sandbox of which there is no
// record.
func (l AuditLogger) HostStrayFound(team id.Team, host id.Host, sandbox id.Sandbox) Entry {
	return l.stray(team, host, sandbox, "stray_found", StatusWarning)
}

// HostClaimsMore records, in place of an entry each, that a host claimed so much
// today that the trail no longer takes all of it: told is how much until now.
func (l AuditLogger) HostClaimsMore(team id.Team, host id.Host, told int64) Entry {
	e := l.admin(team, "host", host.String(), "claims_more")
	e.Status, e.Metadata = StatusWarning, map[string]any{"told": told}
	return e
}

// HostStrayQuarantined records that such a sandbox was paused.
func (l AuditLogger) HostStrayQuarantined(team id.Team, host id.Host, sandbox id.Sandbox) Entry {
	return l.stray(team, host, sandbox, "stray_quarantine", StatusInfo)
}

// HostStrayGivenUp records that somebody had a stray destroyed before its time.
func (l AuditLogger) HostStrayGivenUp(team id.Team, host id.Host, sandbox id.Sandbox) Entry {
	return l.stray(team, host, sandbox, "stray_give_up", StatusWarning)
}

// HostStrayDestroyed records the end of a stray.
func (l AuditLogger) HostStrayDestroyed(team id.Team, host id.Host, sandbox id.Sandbox) Entry {
	return l.stray(team, host, sandbox, "stray_destroy", StatusWarning)
}

func (l AuditLogger) stray(team id.Team, host id.Host, sandbox id.Sandbox, action string, status Status) Entry {
	e := l.admin(team, "host", host.String(), action)
	e.Status, e.Metadata = status, map[string]any{"sandbox_id": sandbox.String()}
	return e
}
