// Package team owns teams and who belongs to them. What sign-up and
// authentication need of a team is here; a team's life is its own use cases'.
package team

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// Team is a team as one of its members sees it.
type Team struct {
	ID        id.Team        `json:"id"`
	Name      string         `json:"name"`
	Slug      string         `json:"slug"`
	IsBYOC    bool           `json:"is_byoc"`
	Role      principal.Role `json:"role"` // of the member who looks
	CreatedAt time.Time      `json:"created_at"`
}

// New makes a team that its first member owns. The slug is immutable and
// unique for ever, which the database checks.
func New(name string) Team {
	return Team{ID: id.NewTeam(), Name: name, Slug: newSlug(), Role: principal.RoleOwner}
}

// DefaultName is the name of the team that a user gets at sign-up.
func DefaultName(user string) string { return user + "’s Team" }

// newSlug makes 12 hex digits, as a1b2c3-d1e2f3.
func newSlug() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:3]) + "-" + hex.EncodeToString(b[3:])
}
