// Package teamhttp serves the teams' operations.
package teamhttp

import (
	"context"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/apikey/apikeyhttp"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Teams is the teams' slice of restapi.Handler.
type Teams struct {
	service *team.Service
	replays *idempotency.Service
}

// New returns the slice.
func New(service *team.Service, replays *idempotency.Service) *Teams {
	return &Teams{service: service, replays: replays}
}

// ListTeams implements restapi.Handler.
func (h *Teams) ListTeams(ctx context.Context) (*restapi.TeamList, error) {
	found, err := h.service.List(ctx, principal.From(ctx))
	if err != nil {
		return nil, err
	}
	return &restapi.TeamList{Items: each(found, teamOf)}, nil
}

// CreateTeam implements restapi.Handler.
func (h *Teams) CreateTeam(ctx context.Context, req *restapi.CreateTeamRequest, _ restapi.CreateTeamParams) (*restapi.Team, error) {
	made, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (team.Team, error) {
		return h.service.Create(ctx, principal.From(ctx), req.Name)
	})
	return one(made, err)
}

// GetTeam implements restapi.Handler.
func (h *Teams) GetTeam(ctx context.Context, params restapi.GetTeamParams) (*restapi.TeamWithMembers, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	found, members, err := h.service.Get(ctx, principal.From(ctx), of)
	if err != nil {
		return nil, err
	}
	return &restapi.TeamWithMembers{Team: teamOf(found), Members: each(members, memberOf)}, nil
}

// UpdateTeam implements restapi.Handler.
func (h *Teams) UpdateTeam(ctx context.Context, req *restapi.UpdateTeamRequest, params restapi.UpdateTeamParams) (*restapi.Team, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	return one(h.service.Rename(ctx, principal.From(ctx), of, req.Name))
}

// DeleteTeam implements restapi.Handler.
func (h *Teams) DeleteTeam(ctx context.Context, params restapi.DeleteTeamParams) error {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return err
	}
	return h.service.Delete(ctx, principal.From(ctx), of)
}

// TransferTeam implements restapi.Handler.
func (h *Teams) TransferTeam(ctx context.Context, req *restapi.TransferTeamRequest, params restapi.TransferTeamParams) (*restapi.Team, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	to, err := id.ParseUser(req.UserID)
	if err != nil {
		return nil, err
	}
	return one(h.service.Transfer(ctx, principal.From(ctx), of, to))
}

// LeaveTeam implements restapi.Handler.
func (h *Teams) LeaveTeam(ctx context.Context, params restapi.LeaveTeamParams) error {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return err
	}
	return h.service.Leave(ctx, principal.From(ctx), of)
}

// ListMembers implements restapi.Handler.
func (h *Teams) ListMembers(ctx context.Context, params restapi.ListMembersParams) (*restapi.MemberList, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	request, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := h.service.Members(ctx, principal.From(ctx), of, request)
	if err != nil {
		return nil, err
	}
	return &restapi.MemberList{Items: each(found.Items, memberOf), NextCursor: next(found.NextCursor)}, nil
}

// AddMember implements restapi.Handler.
func (h *Teams) AddMember(ctx context.Context, req *restapi.AddMemberRequest, params restapi.AddMemberParams) (*restapi.Member, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	return member(h.service.AddMember(ctx, principal.From(ctx), of, req.Email, principal.Role(req.Role.Value)))
}

// UpdateMember implements restapi.Handler.
func (h *Teams) UpdateMember(ctx context.Context, req *restapi.UpdateMemberRequest, params restapi.UpdateMemberParams) (*restapi.Member, error) {
	of, user, err := membership(params.ID, params.UserID)
	if err != nil {
		return nil, err
	}
	return member(h.service.UpdateMember(ctx, principal.From(ctx), of, user, principal.Role(req.Role)))
}

// RemoveMember implements restapi.Handler.
func (h *Teams) RemoveMember(ctx context.Context, params restapi.RemoveMemberParams) (*restapi.RemovedMember, error) {
	of, user, err := membership(params.ID, params.UserID)
	if err != nil {
		return nil, err
	}
	removed, err := h.service.RemoveMember(ctx, principal.From(ctx), of, user, params.RevokeKeys.Value)
	if err != nil {
		return nil, err
	}
	return &restapi.RemovedMember{APIKeys: each(removed.Keys, apikeyhttp.KeyOf), Revoked: removed.Revoked}, nil
}

// ListInvitations implements restapi.Handler.
func (h *Teams) ListInvitations(ctx context.Context, params restapi.ListInvitationsParams) (*restapi.InvitationList, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	request, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := h.service.Invitations(ctx, principal.From(ctx), of, request)
	if err != nil {
		return nil, err
	}
	return &restapi.InvitationList{Items: each(found.Items, invitationOf), NextCursor: next(found.NextCursor)}, nil
}

// CreateInvitation implements restapi.Handler.
func (h *Teams) CreateInvitation(ctx context.Context, req *restapi.CreateInvitationRequest, params restapi.CreateInvitationParams) (*restapi.CreatedInvitation, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	made, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (team.CreatedInvitation, error) {
		r := team.InviteRequest{Email: req.Email.Value, Role: principal.Role(req.Role.Value)}
		if secs, ok := req.ExpiresInSec.Get(); ok {
			// Bounded first: far too many seconds would wrap around into range.
			d := time.Duration(max(-1, min(secs, int(365*24*time.Hour/time.Second)))) * time.Second
			r.ExpiresIn = &d
		}
		return h.service.Invite(ctx, principal.From(ctx), of, r)
	})
	if err != nil {
		return nil, err
	}
	return &restapi.CreatedInvitation{Invitation: invitationOf(made.Invitation), URL: made.URL}, nil
}

// RevokeInvitation implements restapi.Handler.
func (h *Teams) RevokeInvitation(ctx context.Context, params restapi.RevokeInvitationParams) error {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return err
	}
	invitation, err := id.ParseInvitation(params.InvitationID)
	if err != nil {
		return err
	}
	return h.service.RevokeInvitation(ctx, principal.From(ctx), of, invitation)
}

// PreviewInvitation implements restapi.Handler.
func (h *Teams) PreviewInvitation(ctx context.Context, req *restapi.TokenRequest) (*restapi.InvitationPreview, error) {
	found, err := h.service.Preview(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	return &restapi.InvitationPreview{
		TeamName: found.TeamName, Role: restapi.InvitationPreviewRole(found.Role), Email: found.Email, ExpiresAt: found.ExpiresAt.UTC(),
	}, nil
}

// AcceptInvitation implements restapi.Handler.
func (h *Teams) AcceptInvitation(ctx context.Context, req *restapi.TokenRequest) (*restapi.Team, error) {
	return one(h.service.Accept(ctx, principal.From(ctx), req.Token))
}

// SearchUsers implements restapi.Handler.
func (h *Teams) SearchUsers(ctx context.Context, params restapi.SearchUsersParams) (*restapi.UserMatches, error) {
	found, err := h.service.SearchUsers(ctx, principal.From(ctx), params.Email)
	if err != nil {
		return nil, err
	}
	return &restapi.UserMatches{Items: each(found, func(m team.Match) restapi.UserMatch {
		return restapi.UserMatch{ID: m.ID.String(), Name: m.Name, Email: m.Email}
	})}, nil
}

// AdminListTeams implements restapi.Handler.
func (h *Teams) AdminListTeams(ctx context.Context, params restapi.AdminListTeamsParams) (*restapi.AdminTeamList, error) {
	request, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	found, err := h.service.Overviews(ctx, params.Search.Value, request)
	if err != nil {
		return nil, err
	}
	return &restapi.AdminTeamList{Items: each(found.Items, overviewOf), NextCursor: next(found.NextCursor)}, nil
}

// SetBYOC implements restapi.Handler.
func (h *Teams) SetBYOC(ctx context.Context, req *restapi.EnabledRequest, params restapi.SetBYOCParams) (*restapi.AdminTeam, error) {
	of, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	found, err := h.service.SetBYOC(ctx, principal.From(ctx), of, req.Enabled)
	if err != nil {
		return nil, err
	}
	out := overviewOf(found)
	return &out, nil
}

// membership reads the ids of a team and a user.
func membership(teamID, userID string) (id.Team, id.User, error) {
	of, err := id.ParseTeam(teamID)
	if err != nil {
		return id.Team{}, id.User{}, err
	}
	user, err := id.ParseUser(userID)
	return of, user, err
}

func pageOf(limit restapi.OptInt, cursor restapi.OptString) (page.Request, error) {
	var n *int
	if v, ok := limit.Get(); ok {
		n = &v
	}
	return page.NewRequest(n, cursor.Or(""))
}

func next(cursor string) restapi.OptString {
	if cursor == "" {
		return restapi.OptString{}
	}
	return restapi.NewOptString(cursor)
}
