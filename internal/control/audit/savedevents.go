package audit

import "skerry.dev/skerry/internal/kernel/id"

// SandboxPaused records an accepted pause that somebody asked for.
func (l AuditLogger) SandboxPaused(team id.Team, sandbox id.Sandbox, memory bool) Entry {
	e := entry(l.by, team, "sandbox", sandbox.String(), "pause")
	e.Metadata = map[string]any{"memory": memory}
	return e
}

// SandboxAutoPaused records a pause that nobody asked for, and why it was made.
func (l AuditLogger) SandboxAutoPaused(team id.Team, sandbox id.Sandbox, reason string) Entry {
	e := entry(l.by, team, "sandbox", sandbox.String(), "auto_pause")
	e.Status = StatusInfo
	e.Metadata = map[string]any{"reason": reason}
	return e
}

// SandboxResumed records an accepted resume.
func (l AuditLogger) SandboxResumed(team id.Team, sandbox id.Sandbox) Entry {
	return entry(l.by, team, "sandbox", sandbox.String(), "resume")
}

// SandboxRecovered records that what a host still had of a sandbox was given up
// for what was saved of it.
func (l AuditLogger) SandboxRecovered(team id.Team, sandbox id.Sandbox) Entry {
	return entry(l.by, team, "sandbox", sandbox.String(), "recover")
}

// SandboxForked records an accepted fork and its copies.
func (l AuditLogger) SandboxForked(team id.Team, sandbox id.Sandbox, children []id.Sandbox) Entry {
	e := entry(l.by, team, "sandbox", sandbox.String(), "fork")
	names := make([]string, len(children))
	for i, c := range children {
		names[i] = c.String()
	}
	e.Metadata = map[string]any{"children": names}
	return e
}

// SnapshotCreated records an accepted snapshot.
func (l AuditLogger) SnapshotCreated(team id.Team, snapshot id.Snapshot, name string, sandbox id.Sandbox) Entry {
	e := entry(l.by, team, "snapshot", snapshot.String(), "create")
	e.Metadata = map[string]any{"name": name, "sandbox_id": sandbox.String()}
	return e
}

// SnapshotDeleted records that a saved state was given up.
func (l AuditLogger) SnapshotDeleted(team id.Team, snapshot id.Snapshot, name string) Entry {
	e := entry(l.by, team, "snapshot", snapshot.String(), "delete")
	e.Metadata = map[string]any{"name": name}
	return e
}

// BuildCreated records an accepted build of a template.
func (l AuditLogger) BuildCreated(team id.Team, build id.Build, name string) Entry {
	e := entry(l.by, team, "build", build.String(), "create")
	e.Metadata = map[string]any{"name": name}
	return e
}

// BuildCanceled records that somebody wanted a build ended.
func (l AuditLogger) BuildCanceled(team id.Team, build id.Build) Entry {
	return entry(l.by, team, "build", build.String(), "cancel")
}

// BuildEnded records how a build ended that made nothing.
func (l AuditLogger) BuildEnded(team id.Team, build id.Build, name, status, reason string) Entry {
	e := entry(l.by, team, "build", build.String(), "end")
	e.Status = StatusWarning
	e.Metadata = map[string]any{"name": name, "status": status, "reason": reason}
	return e
}

// TemplateDeleted records that a template was given up.
func (l AuditLogger) TemplateDeleted(team id.Team, template id.Template, name string) Entry {
	e := entry(l.by, team, "template", template.String(), "delete")
	e.Metadata = map[string]any{"name": name}
	return e
}
