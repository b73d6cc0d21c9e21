package team

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Change is what every verb that changes a team is given. The verb locks the
// living team, then the memberships of those involved in the order of their
// ids, and asks Allow before it does anything. A team that is gone or that the
// actor is not in is ErrNotFound.
type Change struct {
	Team  id.Team
	Actor id.User
	Allow Guard
}

// NewInvitation is an invitation to be stored.
type NewInvitation struct {
	Invitation Invitation
	TokenHash  []byte
	Lifetime   time.Duration
	URL        string // kept, sealed, for a repetition of the same request
}

// Store keeps teams, memberships and invitations. Each verb is one transaction.
type Store interface {
	// ListTeams returns the user's living teams, at most MaxListed, in the order
	// of joining.
	ListTeams(ctx context.Context, user id.User) ([]Team, error)
	// GetBYOCTeams returns the living teams that may bring hosts of their own,
	// at most MaxListed; nobody's role is in them.
	GetBYOCTeams(ctx context.Context) ([]Team, error)
	// Get returns a living team as the user, who is in it, sees it.
	Get(ctx context.Context, user id.User, team id.Team) (Team, error)
	// ListMembers pages through a team's members in the order of joining, for
	// one of them.
	ListMembers(ctx context.Context, user id.User, team id.Team, p page.Request) (page.Page[Member], error)

	// Create makes a team with its owner, unless the user owns MaxOwned living
	// ones. A slug that any team ever had is ErrSlugTaken. It takes part in
	// idempotency with Team as receipt.
	Create(ctx context.Context, owner id.User, t Team, entry audit.Entry) (Team, error)
	// Rename writes nothing when the name is the same.
	Rename(ctx context.Context, c Change, name string, entry func(before Team) audit.Entry) (Team, error)
	// Delete marks the team deleted, and revokes its keys and open invitations.
	Delete(ctx context.Context, c Change, entry func(t Team, keys, invitations int64) audit.Entry) error
	// Transfer makes target the owner and the actor an admin; ErrTargetOwnsMost
	// for one who owns MaxOwned living ones.
	Transfer(ctx context.Context, c Change, target id.User, entry func(target Member) audit.Entry) (Team, error)
	// Leave ends the actor's membership and the open invitations they made.
	Leave(ctx context.Context, c Change, entry func(actor Member, invitations int64) audit.Entry) error

	// AddMember adds the active user with this email: ErrUserNotFound,
	// ErrAlreadyMember.
	AddMember(ctx context.Context, c Change, email string, role principal.Role, entry func(added Member) audit.Entry) (Member, error)
	// UpdateMember writes nothing when the role is the same. Who may no longer
	// invite loses the open invitations they made.
	UpdateMember(ctx context.Context, c Change, target id.User, role principal.Role, entry func(before Member) audit.Entry) (Member, error)
	// RemoveMember ends a membership, the open invitations of who is removed,
	// and their keys of this team if asked.
	RemoveMember(ctx context.Context, c Change, target id.User, revoke bool, entries func(target Member, r Removed, invitations int64) []audit.Entry) (Removed, error)

	// CreateInvitation takes part in idempotency with CreatedInvitation as
	// receipt. A team with MaxOpen open ones is ErrTooManyInvitations.
	CreateInvitation(ctx context.Context, c Change, n NewInvitation, entry audit.Entry) (CreatedInvitation, error)
	// ListInvitations pages through those that can still be accepted, newest
	// first.
	ListInvitations(ctx context.Context, c Change, p page.Request) (page.Page[Invitation], error)
	// RevokeInvitation withdraws an open one; else ErrInvitationNotFound.
	RevokeInvitation(ctx context.Context, c Change, invitation id.Invitation, entry func(email string) audit.Entry) error
	// PreviewInvitation finds one that can be accepted, else ErrInvitation.
	PreviewInvitation(ctx context.Context, tokenHash []byte) (Preview, error)
	// AcceptInvitation spends an invitation and adds the user: ErrInvitation,
	// ErrInvitationForAnother, ErrAlreadyMember, which leaves it open.
	AcceptInvitation(ctx context.Context, tokenHash []byte, user id.User, entries func(t Team, invitation id.Invitation, added Member) []audit.Entry) (Team, error)

	// ManagesATeam tells whether the user is owner or admin of a living team.
	ManagesATeam(ctx context.Context, user id.User) (bool, error)
	// SearchUsers returns active users whose email begins with prefix, which is
	// taken letter by letter.
	SearchUsers(ctx context.Context, prefix string, limit int) ([]Match, error)

	// LeftSandboxes returns sandboxes of deleted teams, or of this deleted team,
	// that nobody has begun to end, in the order of ids.
	LeftSandboxes(ctx context.Context, only *id.Team, after id.Sandbox, limit int) ([]id.Sandbox, error)

	// Overviews pages through all teams but the platform, deleted ones too,
	// newest first. Search is part of a name or slug, taken letter by letter.
	Overviews(ctx context.Context, search string, p page.Request) (page.Page[Overview], error)
	// SetBYOC switches; disabling a team that has hosts is ErrHasHosts, and
	// switching to what is already writes no entry.
	SetBYOC(ctx context.Context, team id.Team, enabled bool, entry audit.Entry) (Overview, error)
}

// Sandboxes is what the room needs of the sandboxes'.
type Sandboxes interface {
	// EndOfTeam begins to end a sandbox whose team is gone. It returns once that
	// is recorded; one that is ending or has ended is left as it is.
	EndOfTeam(ctx context.Context, sandbox id.Sandbox) error
}
