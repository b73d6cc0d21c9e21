package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Bounds of leaving.
const (
	// maxDrain is the longest deadline of a drain.
	maxDrain = 30 * 24 * time.Hour
	// farewell bounds how long a deleted host's agent is told to end what it has;
	// what was not told it finds out by itself.
	farewell      = 5 * time.Second
	farewellHands = 16
)

// Ended is a sandbox that ended with its host.
type Ended struct {
	ID   id.Sandbox
	Team id.Team
	// Incarnation is the one it ended with: the host refuses whatever is older.
	Incarnation int64
}

// Kinds of what is lost with a host.
const (
	LossSandbox  = "sandbox"
	LossSnapshot = "snapshot" // a named one
)

// Loss is something that would be lost with its host.
type Loss struct {
	Kind      string
	ID        uuid.UUID
	Team      id.Team
	TeamName  string
	Name      string // its own; of a sandbox without one its template's
	Status    string
	CreatedAt time.Time
}

// WireID is the id as callers see it.
func (l Loss) WireID() string {
	if l.Kind == LossSandbox {
		return id.Sandbox{}.FromUUID(l.ID).String()
	}
	return id.Snapshot{}.FromUUID(l.ID).String()
}

// Losses are what would be lost with a host: a page of it, and how much it is.
type Losses struct {
	page.Page[Loss]
	Sandboxes int64 // the paused ones too
	Snapshots int64
}

// Departure is the outcome of a deletion.
type Departure struct {
	Host  Ref // as it was to be reached
	Ended []Ended
}

// DeletedError says that credentials are those of a host that was deleted.
type DeletedError struct{ Host id.Host }

// Error implements error.
func (e *DeletedError) Error() string { return fmt.Sprintf("host %s was deleted", e.Host) }

// Preview pages through what would be lost with a host.
func (s *Service) Preview(ctx context.Context, by principal.Principal, host id.Host, p page.Request) (Losses, error) {
	if _, err := s.managed(ctx, by, host); err != nil {
		return Losses{}, err
	}
	return s.store.Losses(ctx, host, p)
}

// Delete takes a host away for good. Unless by force it is refused while
// anything would be lost with it. Once it returns, nothing of the host counts
// any more; its agent is told what to end if it can be reached, and ends the
// rest by itself when it hears that it was deleted.
func (s *Service) Delete(ctx context.Context, by principal.Principal, host id.Host, force bool) error {
	h, err := s.managed(ctx, by, host)
	if err != nil {
		return err
	}
	as := audit.By(by)
	left, err := s.store.Delete(ctx, Deletion{
		Host: host, Force: force, By: as,
		Audit: func(ended int) audit.Entry { return as.HostDeleted(h.TeamID, host, ended) },
	})
	if err != nil {
		return err
	}
	s.log.InfoContext(ctx, "host deleted", "host_id", host.String(), "sandboxes", len(left.Ended), "force", force)
	s.farewell(ctx, left)
	s.gone(host)
	return nil
}

// farewell has the agent end its sandboxes, as far as it hears it in time.
func (s *Service) farewell(ctx context.Context, d Departure) {
	if !d.Host.Online || len(d.Ended) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	hands := make(chan struct{}, farewellHands)
	var under sync.WaitGroup
	defer under.Wait()
	for _, x := range d.Ended {
		select {
		case hands <- struct{}{}:
		case <-ctx.Done():
			return
		}
		under.Go(func() {
			defer func() { <-hands }()
			if err := s.agents.DestroySandbox(ctx, d.Host, x.ID, x.Incarnation, "host_deleted"); err != nil {
				s.log.InfoContext(ctx, "a deleted host did not hear what to end", "host_id", d.Host.ID.String(), "sandbox_id", x.ID.String(), "error", err)
			}
		})
	}
}

// Drain has a host emptied: nothing new is placed on it, and what runs there is
// paused. What still runs after within, if that is not nil, runs on. Repeating
// it sets the deadline anew.
func (s *Service) Drain(ctx context.Context, by principal.Principal, host id.Host, within *time.Duration) (Host, error) {
	h, err := s.managed(ctx, by, host)
	if err != nil {
		return Host{}, err
	}
	var limit time.Duration
	if within != nil {
		if limit = *within; limit < time.Second || limit > maxDrain {
			return Host{}, errs.Field("deadline_sec", fmt.Sprintf("deadline_sec must be between 1 and %d.", int(maxDrain.Seconds())))
		}
	}
	return s.store.Drain(ctx, host, within, audit.By(by).HostDraining(h.TeamID, host, limit))
}

// Undrain lets a host take sandboxes again; what was paused stays paused.
func (s *Service) Undrain(ctx context.Context, by principal.Principal, host id.Host) (Host, error) {
	h, err := s.managed(ctx, by, host)
	if err != nil {
		return Host{}, err
	}
	return s.store.Undrain(ctx, host, audit.By(by).HostUndrained(h.TeamID, host))
}

// told turns a store's word that a host was deleted into what its agent is to
// hear: with the statement that it can believe.
func (s *Service) told(err error) error {
	var gone *DeletedError
	if !errors.As(err, &gone) {
		return err
	}
	statement, serr := s.keys.SignHostDeleted(gone.Host)
	if serr != nil {
		return serr
	}
	return errs.FailedPrecondition("host_deleted", "This host was deleted. What it holds is to be removed; it can only join again as a new host.").
		With("statement", statement).Because(err)
}
