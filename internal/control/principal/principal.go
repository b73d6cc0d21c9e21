// Package principal says who is calling. Every use case takes a Principal; its
// role and flags were read from the database for this very request.
package principal

import (
	"context"
	"net/netip"
	"slices"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Kind is what sort of caller it is.
type Kind string

// The kinds, as the audit trail names them.
const (
	KindAnonymous Kind = "anonymous"
	KindUser      Kind = "user"
	KindAPIKey    Kind = "api_key"
	KindHost      Kind = "host"
	KindSystem    Kind = "system"
)

// Role is a user's role in the active team.
type Role string

// The roles of a team; empty without a team.
const (
	RoleOwner  Role = "owner"
	RoleAdmin  Role = "admin"
	RoleMember Role = "member"
)

// Scope is what an API key may do.
type Scope string

// The scopes of an API key.
const (
	ScopeSandboxes Scope = "sandboxes"
	ScopeSnapshots Scope = "snapshots"
	ScopeTemplates Scope = "templates"
	ScopeRead      Scope = "read"
)

// Principal is an authenticated caller, or the anonymous one.
type Principal struct {
	Kind Kind

	// A user.
	UserID    id.User
	UserName  string
	Email     string
	SessionID id.Session
	Role      Role // in the active team
	IsAdmin   bool // of the platform

	// An API key.
	APIKeyID   id.APIKey
	APIKeyName string
	Scopes     []Scope

	// A host, and the credentials it came with.
	HostID     id.Host
	HostFamily id.HostRefreshToken

	// HasTeam tells whether TeamID is an active team. The zero TeamID is the
	// platform's and never means "none".
	HasTeam bool
	TeamID  id.Team

	// The request itself.
	RequestID string
	IP        netip.Addr
	UserAgent string
}

// Standing is what a caller's rights rest on beside the session or key itself.
type Standing struct {
	HasTeam bool
	TeamID  id.Team
	Role    Role
	IsAdmin bool
}

// Standing returns the caller's.
func (p Principal) Standing() Standing {
	return Standing{HasTeam: p.HasTeam, TeamID: p.TeamID, Role: p.Role, IsAdmin: p.IsAdmin}
}

// System is Skerry itself: sweeps, monitors, recoveries.
func System(name string) Principal {
	return Principal{Kind: KindSystem, UserName: name}
}

// ActorID is the caller's id as the audit trail keeps it.
func (p Principal) ActorID() string {
	switch p.Kind {
	case KindUser:
		return p.UserID.String()
	case KindAPIKey:
		return p.APIKeyID.String()
	case KindHost:
		return p.HostID.String()
	case KindSystem:
		return p.UserName
	default:
		return ""
	}
}

// ActorName is the caller's name as people read it.
func (p Principal) ActorName() string {
	switch p.Kind {
	case KindAPIKey:
		return p.APIKeyName
	case KindHost:
		return p.HostID.String()
	default:
		return p.UserName
	}
}

// Caller is the key under which the caller's idempotent requests are kept.
func (p Principal) Caller() string {
	if p.Kind == KindAnonymous {
		return "anonymous"
	}
	return string(p.Kind) + ":" + p.ActorID()
}

// ErrNoTeam is what a user without an active team gets.
var ErrNoTeam = errs.Forbidden("no_team", "You have no active team. Create one, or ask to be added to one, then try again.")

// Team returns the active team, or ErrNoTeam.
func (p Principal) Team() (id.Team, error) {
	if !p.HasTeam {
		return id.Team{}, ErrNoTeam
	}
	return p.TeamID, nil
}

// Can reports whether an API key has one of the scopes. Users can by role.
func (p Principal) Can(scopes ...Scope) bool {
	if p.Kind != KindAPIKey {
		return true
	}
	return slices.ContainsFunc(scopes, func(s Scope) bool { return slices.Contains(p.Scopes, s) })
}

type contextKey struct{}

// With returns a context that carries p.
func With(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// From returns the caller of this request; the anonymous one when none was put
// in.
func From(ctx context.Context) Principal {
	if p, ok := ctx.Value(contextKey{}).(Principal); ok {
		return p
	}
	return Principal{Kind: KindAnonymous}
}
