package sandbox

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// StrayKind is why something on a host is a stray.
type StrayKind string

// The kinds: no row knows of it, or the row is another host's.
const (
	StrayUnknown StrayKind = "unknown"
	StrayForeign StrayKind = "foreign"
)

// Bounds of strays.
const (
	// StrayLimit is how long one that nobody knows is kept, paused.
	StrayLimit = 7 * 24 * time.Hour
	// MostStrays is how many are kept note of a host: it may claim anything.
	MostStrays = 1000
	// MostTales is how many entries about what a host claims the trail takes on a
	// day (UTC); of more it hears how much it is, each time that has doubled.
	MostTales = 200
	// strayHands is how many are paused on one host at once.
	strayHands = 4
	// PausedQuarantine is why a host was told to pause one.
	PausedQuarantine = "quarantine"
)

// Stray is something a host holds that this database does not know there.
type Stray struct {
	Sandbox     id.Sandbox
	Incarnation int64
	Kind        StrayKind
	Phase       Phase // as the host says; empty for a mere report
	// State is what its quarantine saves it as.
	State       id.Snapshot
	FirstSeenAt time.Time
	LastSeenAt  time.Time
	PausedAt    *time.Time
	// DestroyAt is when it goes; nil is not by itself.
	DestroyAt *time.Time
	// New says that the trail heard of it just now, by itself.
	New bool
}

// ErrStrayNotFound is a stray that is not, or no more.
var ErrStrayNotFound = errs.NotFound("stray_not_found", "The host holds no such stray. List them with GET /v1/hosts/{id}/strays.")

// Strays pages through those of a host, in the order of ids. Whoever calls has
// checked that the caller manages the host.
func (s *Service) Strays(ctx context.Context, h id.Host, p page.Request) (page.Page[Stray], error) {
	return s.store.ListStrays(ctx, h, p)
}

// DestroyStray has one destroyed by the next look at its host. Whoever calls has
// checked that the caller manages the host.
func (s *Service) DestroyStray(ctx context.Context, by principal.Principal, h id.Host, x id.Sandbox) error {
	return s.store.AskStrayGone(ctx, h, x, func(team id.Team) audit.Entry { return audit.By(by).HostStrayGivenUp(team, h, x) })
}

// stray says whether an instance is one, given its row.
func stray(in Instance, x Sandbox, known bool, h id.Host) (StrayKind, bool) {
	switch {
	case in.Phase == PhaseDestroying || in.Phase == PhaseCreating:
		return "", false // wait what becomes of it
	case !known:
		return StrayUnknown, true
	case lost(x) && !recoverable(in, x, h):
		return StrayUnknown, true
	case x.Host.ID != h:
		// What has ended is an orphan, unless it began after all that is known.
		return StrayForeign, x.Status.Live() || in.Incarnation > x.Incarnation
	case !x.Status.Live() && in.Incarnation > x.Incarnation:
		// It began after all that is known of it: the database is the older one.
		return StrayUnknown, true
	}
	return "", false
}

// judgeStrays notes what a host holds and this database does not know there, has
// it paused, and destroyed when its time is over. No row is touched: a restored
// backup must not kill work, and a host has no say in another's sandboxes.
func (r *Reconciler) judgeStrays(ctx context.Context, h host.Ref, s *suspicions, rows map[id.Sandbox]Sandbox, behind map[id.Sandbox]Departure, inv Inventory) error {
	seen := map[Key]time.Time{}
	var sure []Stray
	settled := true
	kinds := map[id.Sandbox]StrayKind{} // of all candidates
	for _, in := range inv.Instances {
		x, known := rows[in.Sandbox]
		kind, is := stray(in, x, known, h.ID)
		if d, was := departed(in, behind); was && x.Status.Live() {
			kind, is = StrayUnknown, in.Phase == PhaseRunning || in.Phase == PhasePaused && in.State != d.State
		}
		if in.Unknown || !is || in.Sandbox.IsZero() {
			continue // what its agent's journal does not know is the agent's
		}
		kinds[in.Sandbox] = kind
		key := Key{in.Sandbox, in.Incarnation}
		since, again := s.unknown[key]
		if !again {
			since = r.now()
		}
		seen[key] = since
		if !again || r.now().Sub(since) < r.grace {
			settled = false
		} else if len(sure) < MostStrays {
			sure = append(sure, Stray{Sandbox: in.Sandbox, Incarnation: in.Incarnation, Kind: kind, Phase: in.Phase, State: id.NewSnapshot()})
		}
	}
	s.unknown = seen
	left := unknownOwners(inv.States, rows)
	for x := range kinds {
		left[x] = true
	}
	if len(left) > 0 {
		if err := r.quarantine(ctx, h, sure, left, inv); err != nil {
			return err
		}
	}
	held := make([]id.Sandbox, 0, len(left))
	for x := range left {
		held = append(held, x)
	}
	return r.store.Reconciled(ctx, h.ID, held, settled)
}

// unknownOwners are the sandboxes without a living row of which states are held.
func unknownOwners(states []Held, rows map[id.Sandbox]Sandbox) map[id.Sandbox]bool {
	out := map[id.Sandbox]bool{}
	for _, st := range states {
		if _, known := rows[st.Sandbox]; !known {
			out[st.Sandbox] = true
		}
	}
	return out
}

// quarantine works off the strays of a host: first what is due to go, then what
// still runs. left are those that may be touched at all.
func (r *Reconciler) quarantine(ctx context.Context, h host.Ref, sure []Stray, left map[id.Sandbox]bool, inv Inventory) error {
	noted, err := r.note(ctx, h.ID, sure)
	if err != nil {
		return err
	}
	due, err := r.store.DueStrays(ctx, h.ID, MostStrays)
	if err != nil {
		return err
	}
	gone := map[id.Sandbox]bool{}
	var failed error
	for _, x := range due {
		gone[x.Sandbox] = true
		if left[x.Sandbox] {
			failed = errors.Join(failed, r.destroyStray(ctx, h, x, inv))
		}
	}
	hands := make(chan struct{}, strayHands)
	var under sync.WaitGroup
	for _, x := range noted {
		if x.Kind != StrayUnknown || x.Phase != PhaseRunning || gone[x.Sandbox] {
			continue
		}
		select {
		case hands <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break // the next pass goes on
		}
		under.Go(func() {
			defer func() { <-hands }()
			r.pauseStray(ctx, h, x)
		})
	}
	under.Wait()
	return failed
}

// note writes strays down and tells the trail of new ones.
func (r *Reconciler) note(ctx context.Context, h id.Host, strays []Stray) ([]Stray, error) {
	if len(strays) == 0 {
		return nil, nil
	}
	noted, err := r.store.NoteStrays(ctx, h, strays)
	for _, x := range noted {
		if x.New {
			r.log.WarnContext(ctx, "host holds what this database does not know there", "sandbox_id", x.Sandbox.String(),
				"incarnation", x.Incarnation, "host_id", h.String(), "kind", string(x.Kind))
		}
	}
	return noted, err
}

// pauseStray asks for the same state each time: a pause that outlasts a pass is
// joined by the next.
func (r *Reconciler) pauseStray(ctx context.Context, h host.Ref, x Stray) {
	_, err := r.agents.PauseSandbox(ctx, h, Pause{Sandbox: x.Sandbox, Incarnation: x.Incarnation, State: x.State, Memory: true, Reason: PausedQuarantine})
	if err == nil {
		err = r.store.StrayPaused(ctx, h.ID, x.Sandbox, func(team id.Team) audit.Entry {
			return audit.By(principal.System("reconcile")).HostStrayQuarantined(team, h.ID, x.Sandbox)
		})
	}
	if err != nil && ctx.Err() == nil {
		r.log.WarnContext(ctx, "cannot pause a stray now; the next pass will", "sandbox_id", x.Sandbox.String(), "host_id", h.ID.String(), "error", err)
	}
}

// destroyStray ends one and removes what is saved of it that no row names. Its
// note goes last: until then all of this is done again.
func (r *Reconciler) destroyStray(ctx context.Context, h host.Ref, x Stray, inv Inventory) error {
	incarnation := x.Incarnation
	for _, in := range inv.Instances {
		if in.Sandbox == x.Sandbox {
			incarnation = max(incarnation, in.Incarnation)
		}
	}
	if err := r.agents.DestroySandbox(ctx, h, x.Sandbox, max(incarnation, 1), "stray"); err != nil {
		return err
	}
	var states []id.Snapshot
	for _, st := range inv.States {
		if st.Sandbox == x.Sandbox {
			states = append(states, st.ID)
		}
	}
	if len(states) > 0 {
		unnamed, err := r.store.UnnamedStates(ctx, h.ID, states)
		if err != nil {
			return err
		}
		for _, st := range slices.Compact(unnamed) {
			if err := r.agents.DeleteState(ctx, h, st); err != nil {
				return err
			}
		}
	}
	r.log.WarnContext(ctx, "destroyed a stray", "sandbox_id", x.Sandbox.String(), "incarnation", incarnation, "host_id", h.ID.String())
	return r.store.DropStray(ctx, h.ID, x.Sandbox, func(team id.Team) audit.Entry {
		return audit.By(principal.System("reconcile")).HostStrayDestroyed(team, h.ID, x.Sandbox)
	})
}
