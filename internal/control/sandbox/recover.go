package sandbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// PausedRecovered is why a sandbox is paused that was given up where it was.
const PausedRecovered = "recovered"

// BringBack is the request to go on from what was saved of a sandbox, whatever
// its host may still have of it.
type BringBack struct {
	ID    id.Sandbox
	Team  id.Team
	Audit audit.Entry
}

// NoState is what a caller gets who wants to recover what nothing in reach is
// left of.
func NoState(x Sandbox) *errs.Error {
	switch {
	case x.StateID == nil || x.StateStatus != StateReady:
		return errs.FailedPrecondition("no_state", "No saved state of the sandbox is left to go on from.")
	case len(x.StateCopies) == 0:
		return errs.FailedPrecondition("no_state", "The saved state of the sandbox is in no place any more.")
	}
	where := make([]string, len(x.StateCopies))
	for i, h := range x.StateCopies {
		where[i] = h.String()
	}
	return errs.FailedPrecondition("no_state", fmt.Sprintf("The newest saved state is only on %s, which is out of reach, and not in the store. Wait for it to come back.",
		strings.Join(where, ", "))).With("hosts", where)
}

// LaterLife is what a caller gets who wants to go on from a state of a sandbox of
// which other hosts say that they have a later life, as after an older database
// was restored: it would run twice, and go back.
func LaterLife(at []id.Host) *errs.Error {
	where := make([]string, len(at))
	for i, h := range at {
		where[i] = h.String()
	}
	return errs.FailedPrecondition("later_life", fmt.Sprintf(
		"The sandbox went on elsewhere after what the database knows of it, as before a backup was restored: a later life of it is on %s. "+
			"Save what is wanted of that, have the stray destroyed there, and try again.", strings.Join(where, ", "))).With("hosts", where)
}

// ErrJustRestored is what a caller gets who wants to go on from a state while it is
// not known yet whether the sandbox went on elsewhere since the backup.
var ErrJustRestored = errs.Unavailable("just_restored",
	"A backup was restored, and hosts are still looked at for what went on since. Try again in a minute.").After(15 * time.Second)

// Recover gives up what the host of a missing sandbox still has of it, or brings
// back one that ended by itself: it is paused with its newest saved state then.
// Should the host come back with anything else, that is set aside.
func (s *Service) Recover(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (Sandbox, error) {
	team, err := writer(by)
	if err != nil {
		return Sandbox{}, err
	}
	x, err := s.owned(ctx, team, sandbox)
	if err != nil {
		return x, err
	}
	back, err := s.store.BringBack(ctx, BringBack{ID: sandbox, Team: team, Audit: audit.By(by).SandboxRecovered(team, sandbox)})
	if err != nil {
		return x, err
	}
	s.watch.Publish(back)
	s.agents.Forget(x.Host, x.ID, x.Incarnation)
	return s.owned(ctx, team, sandbox)
}
