package teamhttp

import (
	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/team"
)

func each[T, A any](from []T, answer func(T) A) []A {
	out := make([]A, len(from))
	for i, v := range from {
		out[i] = answer(v)
	}
	return out
}

func one(t team.Team, err error) (*restapi.Team, error) {
	if err != nil {
		return nil, err
	}
	out := teamOf(t)
	return &out, nil
}

func teamOf(t team.Team) restapi.Team {
	return restapi.Team{ID: t.ID.String(), Name: t.Name, Slug: t.Slug, Role: restapi.TeamRole(t.Role), IsByoc: t.IsBYOC}
}

func member(m team.Member, err error) (*restapi.Member, error) {
	if err != nil {
		return nil, err
	}
	out := memberOf(m)
	return &out, nil
}

func memberOf(m team.Member) restapi.Member {
	return restapi.Member{UserID: m.User.String(), Name: m.Name, Email: m.Email, Role: restapi.MemberRole(m.Role), JoinedAt: m.JoinedAt.UTC()}
}

func invitationOf(i team.Invitation) restapi.Invitation {
	return restapi.Invitation{
		ID: i.ID.String(), Email: i.Email, Role: restapi.InvitationRole(i.Role), CreatedBy: i.Creator,
		CreatedAt: i.CreatedAt.UTC(), ExpiresAt: i.ExpiresAt.UTC(),
	}
}

func overviewOf(t team.Overview) restapi.AdminTeam {
	out := restapi.AdminTeam{
		ID: t.ID.String(), Name: t.Name, Slug: t.Slug, IsByoc: t.IsBYOC, Owner: t.Owner, Members: t.Members, Sandboxes: t.Sandboxes,
		CreatedAt: t.CreatedAt.UTC(),
	}
	if t.DeletedAt != nil {
		out.DeletedAt.SetTo(t.DeletedAt.UTC())
	}
	return out
}
