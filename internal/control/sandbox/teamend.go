package sandbox

import (
	"context"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// EndTeamDeleted is why a sandbox ended whose team was deleted.
const EndTeamDeleted = "team_deleted"

// EndOfTeam begins to end a sandbox whose team was deleted, and returns once
// that is recorded: one on a host out of reach ends when the host is back. One
// that is ending or has ended is left as it is.
func (s *Service) EndOfTeam(ctx context.Context, sandbox id.Sandbox) error {
	_, err := s.end(ctx, principal.System("team_deletion"), sandbox, nil, EndTeamDeleted)
	if errs.Is(err, ErrNotFound.Reason) {
		return nil
	}
	return err
}

// LeftState is a saved state that a deleted team has left.
type LeftState struct {
	ID   id.Snapshot
	Team id.Team
	Name string // empty where it has none
}

// dropLeft gives up what a deleted team has left: nobody can reach it or delete
// it any more.
func (s *Service) dropLeft(ctx context.Context, l LeftState) error {
	entry := audit.By(principal.System("team_deletion")).SnapshotDeleted(l.Team, l.ID, l.Name)
	err := s.store.DeleteState(ctx, l.Team, l.ID, entry)
	if errs.Is(err, ErrStateNotFound.Reason) {
		return nil
	}
	return err
}
