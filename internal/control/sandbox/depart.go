package sandbox

import (
	"context"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/id"
)

// departed says whether an instance is what a sandbox left behind when it went
// on elsewhere: it is then not judged by the row.
func departed(in Instance, left map[id.Sandbox]Departure) (Departure, bool) {
	d, ok := left[in.Sandbox]
	return d, ok && in.Incarnation <= d.Incarnation
}

// judgeDepartures clears away what sandboxes that went on elsewhere have left on
// a host: paused with the very state that they went on from, or exited. Anything
// else of that life is set aside as a stray. It returns what the host has left of
// them, before that.
func (r *Reconciler) judgeDepartures(ctx context.Context, h host.Ref, s *suspicions, inv Inventory) (map[id.Sandbox]Departure, error) {
	list, err := r.store.Departures(ctx, h.ID)
	if err != nil || len(list) == 0 {
		s.left = nil
		return nil, err
	}
	instances := make(map[id.Sandbox]Instance, len(inv.Instances))
	for _, in := range inv.Instances {
		instances[in.Sandbox] = in
	}
	left := make(map[id.Sandbox]Departure, len(list))
	gone := map[Key]bool{}
	for _, d := range list {
		in, there := instances[d.Sandbox]
		left[d.Sandbox] = d
		switch {
		case !there || in.Incarnation > d.Incarnation:
			// It may be that it was not seen; the second look counts.
			if gone[d.Key] = true; !s.left[d.Key] {
				continue
			}
		case in.Phase == PhasePaused && in.State == d.State || in.Phase == PhaseExited:
			if err := r.agents.DestroySandbox(ctx, h, d.Sandbox, d.Incarnation, "departed"); err != nil {
				r.log.InfoContext(ctx, "cannot clear away what a sandbox left behind; the next pass will", "sandbox_id", d.Sandbox.String(), "host_id", h.ID.String(), "error", err)
				continue
			}
		default:
			continue
		}
		if err := r.store.Departed(ctx, h.ID, d); err != nil {
			return left, err
		}
	}
	s.left = gone
	return left, nil
}
