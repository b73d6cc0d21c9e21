package audit

import "skerry.dev/skerry/internal/kernel/id"

// PortOpened records that a port of a sandbox can be reached from outside, and
// by whom; of the token nothing.
func (l AuditLogger) PortOpened(team id.Team, sandbox id.Sandbox, access id.PortAccess, port int, public bool, name string) Entry {
	e := entry(l.by, team, "port", access.String(), "open")
	e.Metadata = map[string]any{"sandbox_id": sandbox.String(), "port": port, "public": public}
	if name != "" {
		e.Metadata["name"] = name
	}
	return e
}

// PortClosed records that an access to a port was taken back.
func (l AuditLogger) PortClosed(team id.Team, sandbox id.Sandbox, access id.PortAccess, port int, name string) Entry {
	e := entry(l.by, team, "port", access.String(), "close")
	e.Metadata = map[string]any{"sandbox_id": sandbox.String(), "port": port}
	if name != "" {
		e.Metadata["name"] = name
	}
	return e
}
