// Package team owns teams, who belongs to them with which role, and the
// invitations to join them. Every decision about a role is made on what the
// database says inside the transaction that it allows. It never makes accounts
// and never touches a sandbox: what a deleted team has left is ended by the
// sandboxes' own room.
package team

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
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

// Member is a user in a team.
type Member struct {
	User     id.User
	Name     string
	Email    string
	Role     principal.Role
	Active   bool // not disabled; read only where a decision needs it
	JoinedAt time.Time
}

// Removed is what putting somebody out of a team found.
type Removed struct {
	Keys    []apikey.Key // those they made here and that worked
	Revoked bool         // and that were revoked with this
}

// Match is a user that a search found.
type Match struct {
	ID    id.User
	Name  string
	Email string
}

// Overview is a team as a platform admin sees it.
type Overview struct {
	ID        id.Team
	Name      string
	Slug      string
	IsBYOC    bool
	Owner     string // email; empty when that account is gone
	Members   int
	Sandboxes int // that have not ended
	CreatedAt time.Time
	DeletedAt *time.Time
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

// Bounds.
const (
	maxName  = 128
	MaxOwned = 50 // living teams that one user may own
	// MaxListed bounds the teams of one user and the BYOC teams of a platform as
	// they are listed.
	MaxListed = 1000
	// MaxShown is how many members a team is shown with; the list has all.
	MaxShown = 200
)

// cleanName trims a team's name and checks it. Printable leaves out what turns
// the direction of writing, and leaves in what joins letters and emoji.
func cleanName(name string) (string, error) {
	name = strings.TrimSpace(name)
	const joiners = "\u200c\u200d"
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) && !strings.ContainsRune(joiners, r) }
	n := utf8.RuneCountInString(name)
	if n < 1 || n > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unprintable) {
		return "", errs.Field("name", fmt.Sprintf("name must have 1 to %d printable characters.", maxName))
	}
	return name, nil
}

// assignable checks a role that somebody is to get; empty is member. Ownership
// is only ever handed over.
func assignable(role principal.Role) (principal.Role, error) {
	switch role {
	case "":
		return principal.RoleMember, nil
	case principal.RoleAdmin, principal.RoleMember:
		return role, nil
	}
	return "", errs.Field("role", "role must be admin or member. Ownership is handed over with POST /v1/teams/{id}/transfer.")
}

// What callers match on.
var (
	ErrNotFound       = errs.NotFound("team_not_found", "There is no such team, or you are not in it.")
	ErrMemberNotFound = errs.NotFound("member_not_found", "This user is not in the team.")
	ErrUserNotFound   = errs.NotFound("user_not_found", "There is no account with this email. Invite them with a link instead: POST /v1/teams/{id}/invitations.")
	ErrAlreadyMember  = errs.Conflict("already_member", "This user is in the team already. Change the role instead.")
	ErrSlugTaken      = errs.Conflict("slug_taken", "Another team has this slug. Try again.")
	ErrHasHosts       = errs.Conflict("team_has_hosts", "This team still has hosts of its own. They have to be deleted first.")
	ErrTooManyTeams   = errs.Exhausted("too_many_teams", fmt.Sprintf("You own %d teams, which is the most one user may own. Delete one, or hand one over.", MaxOwned)).
				With("value", MaxOwned)
	ErrTargetOwnsMost = errs.Conflict("member_owns_most_teams", fmt.Sprintf("This member owns %d teams, which is the most one user may own. Name another one.", MaxOwned)).
				With("value", MaxOwned)

	errManagers  = errs.Forbidden("role_required", "Only the owner and admins of the team may do this. Ask one of them.")
	errOwnerOnly = errs.Forbidden("role_required", "Only the owner of the team may do this.")

	errOwnerStays    = errs.Conflict("owner_cannot_leave", "The owner cannot leave the team. Hand it over with POST /v1/teams/{id}/transfer, or delete it.")
	errOwnerRemoved  = errs.Conflict("owner_cannot_be_removed", "The owner cannot be removed. Ownership has to be handed over first.")
	errOwnerDemoted  = errs.Conflict("owner_cannot_be_demoted", "The owner's role only changes by handing the team over: POST /v1/teams/{id}/transfer.")
	errOwnerAlready  = errs.Conflict("already_owner", "You own this team already. Name another member.")
	errOwnerDisabled = errs.Conflict("account_disabled", "This member's account is disabled and cannot own a team. Name another one.")
)

// Guard decides on a change, on what the database says about who asks and whom
// it concerns; target is the zero Member when it concerns nobody.
type Guard func(actor, target Member) error

// manages lets owner and admins pass.
func manages(actor, _ Member) error {
	if actor.Role != principal.RoleOwner && actor.Role != principal.RoleAdmin {
		return errManagers
	}
	return nil
}

// owns lets the owner pass.
func owns(actor, _ Member) error {
	if actor.Role != principal.RoleOwner {
		return errOwnerOnly
	}
	return nil
}

// managesBut lets owner and admins pass unless it concerns the owner.
func managesBut(concernsOwner error) Guard {
	return func(actor, target Member) error {
		if err := manages(actor, target); err != nil {
			return err
		}
		if target.Role == principal.RoleOwner {
			return concernsOwner
		}
		return nil
	}
}

// leaves lets everybody but the owner pass.
func leaves(actor, _ Member) error {
	if actor.Role == principal.RoleOwner {
		return errOwnerStays
	}
	return nil
}

// handsOver lets the owner pass when the other one can own the team.
func handsOver(actor, target Member) error {
	switch {
	case actor.Role != principal.RoleOwner:
		return errOwnerOnly
	case target.User == actor.User:
		return errOwnerAlready
	case !target.Active:
		return errOwnerDisabled
	}
	return nil
}
