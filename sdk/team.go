package sdk

import (
	"context"
	"iter"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// What the API says of teams; field by field as in its OpenAPI document.
type (
	Team              = restapi.Team
	TeamWithMembers   = restapi.TeamWithMembers
	Member            = restapi.Member
	RemovedMember     = restapi.RemovedMember
	Invitation        = restapi.Invitation
	CreatedInvitation = restapi.CreatedInvitation
	Limits            = restapi.Limits
	TeamLimits        = restapi.TeamLimits
	AdminTeam         = restapi.AdminTeam
)

// Teams are the caller's teams in the order of joining.
func (c *Client) Teams(ctx context.Context) ([]Team, error) {
	l, err := c.api.ListTeams(ctx)
	if err != nil {
		return nil, c.explain(err)
	}
	return l.Items, nil
}

// CreateTeam makes a team that the caller owns.
func (c *Client) CreateTeam(ctx context.Context, name string) (*Team, error) {
	return create(ctx, c, func(key restapi.OptString) (*Team, error) {
		return c.api.CreateTeam(ctx, &restapi.CreateTeamRequest{Name: name}, restapi.CreateTeamParams{IdempotencyKey: key})
	})
}

// Team is one of the caller's teams with its first 200 members.
func (c *Client) Team(ctx context.Context, id string) (*TeamWithMembers, error) {
	t, err := c.api.GetTeam(ctx, restapi.GetTeamParams{ID: id})
	return t, c.explain(err)
}

// RenameTeam gives a team another name.
func (c *Client) RenameTeam(ctx context.Context, id, name string) (*Team, error) {
	t, err := c.api.UpdateTeam(ctx, &restapi.UpdateTeamRequest{Name: name}, restapi.UpdateTeamParams{ID: id})
	return t, c.explain(err)
}

// DeleteTeam ends a team, its keys and its sandboxes, for good.
func (c *Client) DeleteTeam(ctx context.Context, id string) error {
	return c.explain(c.api.DeleteTeam(ctx, restapi.DeleteTeamParams{ID: id}))
}

// TransferTeam makes another member the owner, and the caller an admin.
func (c *Client) TransferTeam(ctx context.Context, id, user string) (*Team, error) {
	t, err := c.api.TransferTeam(ctx, &restapi.TransferTeamRequest{UserID: user}, restapi.TransferTeamParams{ID: id})
	return t, c.explain(err)
}

// LeaveTeam ends the caller's own membership.
func (c *Client) LeaveTeam(ctx context.Context, id string) error {
	return c.explain(c.api.LeaveTeam(ctx, restapi.LeaveTeamParams{ID: id}))
}

// Members walks a team's members in the order of joining.
func (c *Client) Members(ctx context.Context, team string) iter.Seq2[Member, error] {
	return walk(c, func(cursor restapi.OptString) ([]Member, restapi.OptString, error) {
		l, err := c.api.ListMembers(ctx, restapi.ListMembersParams{ID: team, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// AddMember adds a user by email; an empty role is member.
func (c *Client) AddMember(ctx context.Context, team, email, role string) (*Member, error) {
	request := &restapi.AddMemberRequest{Email: email}
	if role != "" {
		request.Role.SetTo(restapi.AddMemberRequestRole(role))
	}
	m, err := c.api.AddMember(ctx, request, restapi.AddMemberParams{ID: team})
	return m, c.explain(err)
}

// SetRole makes a member "admin" or "member".
func (c *Client) SetRole(ctx context.Context, team, user, role string) (*Member, error) {
	m, err := c.api.UpdateMember(ctx, &restapi.UpdateMemberRequest{Role: restapi.UpdateMemberRequestRole(role)}, restapi.UpdateMemberParams{ID: team, UserID: user})
	return m, c.explain(err)
}

// RemoveMember ends a membership. The answer has the API keys that the member
// made in this team; they go on working unless revokeKeys.
func (c *Client) RemoveMember(ctx context.Context, team, user string, revokeKeys bool) (*RemovedMember, error) {
	r, err := c.api.RemoveMember(ctx, restapi.RemoveMemberParams{ID: team, UserID: user, RevokeKeys: restapi.NewOptBool(revokeKeys)})
	return r, c.explain(err)
}

// Invite makes a link by which one person can join. An empty email is whoever
// has the link, an empty role is member, zero lasts for a week.
func (c *Client) Invite(ctx context.Context, team, email, role string, lasting time.Duration) (*CreatedInvitation, error) {
	request := &restapi.CreateInvitationRequest{Email: optString(email)}
	if role != "" {
		request.Role.SetTo(restapi.CreateInvitationRequestRole(role))
	}
	if lasting != 0 {
		request.ExpiresInSec.SetTo(int(lasting.Seconds()))
	}
	return create(ctx, c, func(key restapi.OptString) (*CreatedInvitation, error) {
		return c.api.CreateInvitation(ctx, request, restapi.CreateInvitationParams{ID: team, IdempotencyKey: key})
	})
}

// Invitations walks a team's open invitations, newest first.
func (c *Client) Invitations(ctx context.Context, team string) iter.Seq2[Invitation, error] {
	return walk(c, func(cursor restapi.OptString) ([]Invitation, restapi.OptString, error) {
		l, err := c.api.ListInvitations(ctx, restapi.ListInvitationsParams{ID: team, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// RevokeInvitation withdraws an open invitation.
func (c *Client) RevokeInvitation(ctx context.Context, team, invitation string) error {
	return c.explain(c.api.RevokeInvitation(ctx, restapi.RevokeInvitationParams{ID: team, InvitationID: invitation}))
}

// AcceptInvitation joins a team by the token of a link.
func (c *Client) AcceptInvitation(ctx context.Context, token string) (*Team, error) {
	t, err := c.api.AcceptInvitation(ctx, &restapi.TokenRequest{Token: token})
	return t, c.explain(err)
}

// Limits are what the active team, or the key's, may have and has.
func (c *Client) Limits(ctx context.Context) (*Limits, error) {
	l, err := c.api.GetLimits(ctx)
	return l, c.explain(err)
}

// AllTeams walks all teams, newest first, for platform admins. A search is part
// of a name or slug.
func (c *Client) AllTeams(ctx context.Context, search string) iter.Seq2[AdminTeam, error] {
	return walk(c, func(cursor restapi.OptString) ([]AdminTeam, restapi.OptString, error) {
		l, err := c.api.AdminListTeams(ctx, restapi.AdminListTeamsParams{Cursor: cursor, Search: optString(search)})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// SetBYOC lets a team bring hosts of its own, or no longer; for platform
// admins.
func (c *Client) SetBYOC(ctx context.Context, team string, enabled bool) (*AdminTeam, error) {
	t, err := c.api.SetBYOC(ctx, &restapi.EnabledRequest{Enabled: enabled}, restapi.SetBYOCParams{ID: team})
	return t, c.explain(err)
}

// TeamLimits are any team's limits and use, for platform admins.
func (c *Client) TeamLimits(ctx context.Context, team string) (*Limits, error) {
	l, err := c.api.AdminGetTeamLimits(ctx, restapi.AdminGetTeamLimitsParams{ID: team})
	return l, c.explain(err)
}

// SetTeamLimits replaces a team's limits, for platform admins; what is left out
// becomes the default.
func (c *Client) SetTeamLimits(ctx context.Context, team string, to TeamLimits) (*Limits, error) {
	l, err := c.api.AdminSetTeamLimits(ctx, &to, restapi.AdminSetTeamLimitsParams{ID: team})
	return l, c.explain(err)
}
