package team

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Invitation lets one person join a team, once, as long as who made it may
// still invite.
type Invitation struct {
	ID        id.Invitation  `json:"id"`
	Team      id.Team        `json:"team"`
	Email     string         `json:"email"` // only this account; empty: whoever has the link
	Role      principal.Role `json:"role"`
	Creator   string         `json:"creator"` // name
	CreatedAt time.Time      `json:"created_at"`
	ExpiresAt time.Time      `json:"expires_at"`
}

// CreatedInvitation is a new invitation with its link, which is shown this once.
type CreatedInvitation struct {
	Invitation Invitation `json:"invitation"`
	URL        string     `json:"url"`
}

// Preview is what the holder of a link may know before accepting.
type Preview struct {
	TeamName  string
	Role      principal.Role
	Email     string
	ExpiresAt time.Time
}

// InviteRequest is what is asked for; zero values are left out.
type InviteRequest struct {
	Email     string
	Role      principal.Role
	ExpiresIn *time.Duration
}

const (
	defaultLifetime = 7 * 24 * time.Hour
	minLifetime     = time.Hour
	maxLifetime     = 30 * 24 * time.Hour
	// MaxOpen is how many open invitations a team may have.
	MaxOpen = 200

	tokenPrefix = "sinv_"
	tokenBytes  = 32
)

// What callers match on.
var (
	// ErrInvitation is the one answer to a link that is unknown, spent,
	// withdrawn or expired.
	ErrInvitation           = errs.NotFound("invitation_not_found", "This invitation is not valid, or no longer. Ask for a new one.")
	ErrInvitationNotFound   = errs.NotFound("invitation_not_found", "There is no such open invitation in this team.")
	ErrInvitationForAnother = errs.Forbidden("invitation_for_another", "This invitation is for another account. Log in with the address it was made for.")
	ErrTooManyInvitations   = errs.Exhausted("too_many_invitations", fmt.Sprintf("The team has %d open invitations, which is the most it may have. Withdraw some first.", MaxOpen)).
				With("value", MaxOpen)
)

func hashOf(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// Invite makes a link by which one person can join; owner and admins may.
func (s *Service) Invite(ctx context.Context, by principal.Principal, team id.Team, r InviteRequest) (CreatedInvitation, error) {
	c, err := change(by, team, manages)
	if err != nil {
		return CreatedInvitation{}, err
	}
	if r.Role, err = assignable(r.Role); err != nil {
		return CreatedInvitation{}, err
	}
	if strings.TrimSpace(r.Email) == "" {
		r.Email = ""
	} else if r.Email, err = s.normalize(r.Email); err != nil {
		return CreatedInvitation{}, err
	}
	lifetime := defaultLifetime
	if r.ExpiresIn != nil {
		if lifetime = *r.ExpiresIn; lifetime < minLifetime || lifetime > maxLifetime {
			return CreatedInvitation{}, errs.Field("expires_in_sec",
				fmt.Sprintf("expires_in_sec must be between %.0f and %.0f.", minLifetime.Seconds(), maxLifetime.Seconds()))
		}
	}
	raw := make([]byte, tokenBytes)
	_, _ = rand.Read(raw) // never fails, see crypto/rand
	token := tokenPrefix + hex.EncodeToString(raw)
	n := NewInvitation{
		Invitation: Invitation{ID: id.NewInvitation(), Team: team, Email: r.Email, Role: r.Role, Creator: by.UserName},
		TokenHash:  hashOf(token), Lifetime: lifetime,
		// Behind the #, which browsers send to nobody.
		URL: s.url + "/signup#invitation=" + token,
	}
	return s.store.CreateInvitation(ctx, c, n, audit.By(by).InvitationCreated(team, n.Invitation.ID, r.Email, r.Role))
}

// Invitations pages through the open ones, newest first; owner and admins may.
func (s *Service) Invitations(ctx context.Context, by principal.Principal, team id.Team, p page.Request) (page.Page[Invitation], error) {
	c, err := change(by, team, manages)
	if err != nil {
		return page.Page[Invitation]{}, err
	}
	return s.store.ListInvitations(ctx, c, p)
}

// RevokeInvitation withdraws one; owner and admins may.
func (s *Service) RevokeInvitation(ctx context.Context, by principal.Principal, team id.Team, invitation id.Invitation) error {
	c, err := change(by, team, manages)
	if err != nil {
		return err
	}
	return s.store.RevokeInvitation(ctx, c, invitation, func(email string) audit.Entry {
		return audit.By(by).InvitationRevoked(team, invitation, email)
	})
}

// Preview says what a link is for, to whoever has it.
func (s *Service) Preview(ctx context.Context, token string) (Preview, error) {
	return s.store.PreviewInvitation(ctx, hashOf(token))
}

// Accept makes the caller a member. The active team stays what it was.
func (s *Service) Accept(ctx context.Context, by principal.Principal, token string) (Team, error) {
	if by.Kind != principal.KindUser {
		return Team{}, errPeopleOnly
	}
	return s.store.AcceptInvitation(ctx, hashOf(token), by.UserID, func(t Team, invitation id.Invitation, added Member) []audit.Entry {
		log := audit.By(by)
		return []audit.Entry{log.InvitationAccepted(t.ID, invitation, added.User), log.MemberAdded(t.ID, added.User, added.Email, added.Role)}
	})
}
