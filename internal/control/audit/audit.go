// Package audit is the trail of what was done. An entry is made by one named
// method per event and written by the store in the same transaction as the
// change it records: no change without its entry, no entry for a change that
// did not happen.
package audit

import (
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// Scope decides who may read an entry.
type Scope string

// Scopes: team entries are for every member, admin entries for owners and
// admins.
const (
	ScopeTeam  Scope = "team"
	ScopeAdmin Scope = "admin"
)

// Status says how it went.
type Status string

// The statuses of an entry.
const (
	StatusSuccess Status = "success"
	StatusInfo    Status = "info"
	StatusWarning Status = "warning"
	StatusError   Status = "error"
)

// Entry is one row of the trail.
type Entry struct {
	ID           id.AuditEntry
	TeamID       id.Team
	Actor        principal.Principal
	ResourceType string
	ResourceID   string
	Action       string
	Scope        Scope
	Status       Status
	Metadata     map[string]any
	At           time.Time // filled in by the database
}

func entry(by principal.Principal, team id.Team, resourceType, resourceID, action string) Entry {
	return Entry{
		ID: id.NewAuditEntry(), TeamID: team, Actor: by, ResourceType: resourceType, ResourceID: resourceID,
		Action: action, Scope: ScopeTeam, Status: StatusSuccess,
	}
}
