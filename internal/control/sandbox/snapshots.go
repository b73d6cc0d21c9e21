package sandbox

import (
	"context"
	"strings"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

func stateReader(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeSnapshots, principal.ScopeSandboxes, principal.ScopeRead) {
		return id.Team{}, errs.Forbidden("missing_scope", "This key may not read snapshots. Make one with the scope `snapshots` or `read`.")
	}
	return by.Team()
}

// ListSnapshots pages through the team's saved states, newest first.
func (s *Service) ListSnapshots(ctx context.Context, by principal.Principal, f StateFilter, p page.Request) (page.Page[Snapshot], error) {
	team, err := stateReader(by)
	if err != nil {
		return page.Page[Snapshot]{}, err
	}
	f.TeamID = team
	return s.store.ListStates(ctx, f, p)
}

// GetSnapshot finds a saved state of the team by name or id.
func (s *Service) GetSnapshot(ctx context.Context, by principal.Principal, nameOrID string) (Snapshot, error) {
	team, err := stateReader(by)
	if err != nil {
		return Snapshot{}, err
	}
	return s.findState(ctx, team, nameOrID)
}

// LookupSnapshot reads the snapshot that a receipt of the caller names.
func (s *Service) LookupSnapshot(ctx context.Context, r SnapshotReceipt) (Snapshot, error) {
	return s.store.State(ctx, r.Snapshot)
}

// findState finds a saved state by name or id. A name may begin like an id.
func (s *Service) findState(ctx context.Context, team id.Team, nameOrID string) (Snapshot, error) {
	state, err := id.ParseSnapshot(nameOrID)
	if err != nil {
		named, nameErr := s.store.NamedState(ctx, team, nameOrID)
		if errs.Is(nameErr, ErrStateNotFound.Reason) && strings.HasPrefix(nameOrID, "snap-") {
			return named, err
		}
		return named, nameErr
	}
	got, err := s.store.State(ctx, state)
	if err == nil && (got.TeamID != team || got.Status == StateDeleted) {
		return Snapshot{}, ErrStateNotFound
	}
	return got, err
}

// usable finds a saved state that its team may do something with: what builds and
// templates keep is only shown.
func (s *Service) usable(ctx context.Context, team id.Team, nameOrID string) (Snapshot, error) {
	state, err := s.findState(ctx, team, nameOrID)
	if err == nil && state.Kind.internal() {
		return Snapshot{}, ErrStateNotFound
	}
	return state, err
}

// DeleteSnapshot gives a saved state up: its row now, its bytes as soon as its
// host is in reach. Sandboxes made from it live on; one that has nothing else
// to go on from keeps it.
func (s *Service) DeleteSnapshot(ctx context.Context, by principal.Principal, nameOrID string) error {
	team, err := snapshotter(by)
	if err != nil {
		return err
	}
	state, err := s.usable(ctx, team, nameOrID)
	if err != nil {
		return err
	}
	return s.store.DeleteState(ctx, team, state.ID, audit.By(by).SnapshotDeleted(team, state.ID, state.Name))
}

// startable finds what a create names as its snapshot.
func (s *Service) startable(ctx context.Context, team id.Team, nameOrID string) (Snapshot, error) {
	state, err := s.usable(ctx, team, nameOrID)
	if err == nil && state.Status != StateReady {
		return state, StateGone(state)
	}
	return state, err
}
