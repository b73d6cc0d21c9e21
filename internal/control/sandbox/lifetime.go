package sandbox

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// hintLimit bounds what a request spends on telling a host; the reconciler
// repeats it.
const hintLimit = time.Second

// SetTimeout moves the deadline of a sandbox to timeoutSec from now. In a
// transition it waits; once it has returned, no sweep acts on the old deadline.
func (s *Service) SetTimeout(ctx context.Context, by principal.Principal, sandbox id.Sandbox, timeoutSec int64) (Sandbox, error) {
	return s.setDeadline(ctx, by, sandbox, timeoutSec, false)
}

// ExtendTimeout is SetTimeout, but leaves a deadline that is further away.
func (s *Service) ExtendTimeout(ctx context.Context, by principal.Principal, sandbox id.Sandbox, timeoutSec int64) (Sandbox, error) {
	return s.setDeadline(ctx, by, sandbox, timeoutSec, true)
}

func (s *Service) setDeadline(ctx context.Context, by principal.Principal, sandbox id.Sandbox, timeoutSec int64, laterOnly bool) (Sandbox, error) {
	if err := within("timeout_sec", &timeoutSec, 1, maxTimeoutSec); err != nil {
		return Sandbox{}, err
	}
	x, err := s.alive(ctx, by, sandbox, func(team id.Team) (bool, error) {
		return s.store.SetDeadline(ctx, team, sandbox, time.Duration(timeoutSec)*time.Second, laterOnly)
	})
	if err != nil {
		return x, err
	}
	if x.DeadlineAt != nil && x.Host.Online {
		hctx, cancel := context.WithTimeout(ctx, hintLimit)
		defer cancel()
		d := Deadline{Key: Key{x.ID, x.Incarnation}, At: *x.DeadlineAt}
		if err := s.agents.SetDeadlines(hctx, x.Host, []Deadline{d}); err != nil {
			s.log.InfoContext(ctx, "cannot tell a host the new deadline now; the next pass will", "sandbox_id", x.ID.String(), "error", err)
		}
	}
	return x, nil
}

// Ping counts as activity of a sandbox that runs.
func (s *Service) Ping(ctx context.Context, by principal.Principal, sandbox id.Sandbox) error {
	_, err := s.alive(ctx, by, sandbox, func(team id.Team) (bool, error) { return s.store.Ping(ctx, team, sandbox) })
	return err
}

// alive does something that only a running sandbox takes, waiting for a
// transition to end first. do reports whether it was running.
func (s *Service) alive(ctx context.Context, by principal.Principal, sandbox id.Sandbox, do func(id.Team) (bool, error)) (Sandbox, error) {
	team, err := writer(by)
	if err != nil {
		return Sandbox{}, err
	}
	for {
		x, err := s.settled(ctx, team, sandbox, StatusSnapshotting)
		if err != nil {
			return x, err
		}
		if !usable(x.Status) {
			return x, InvalidState(x)
		}
		done, err := do(team)
		if err != nil {
			return x, err
		}
		if done {
			return s.owned(ctx, team, sandbox)
		}
	}
}

// sampleLimit is a day of a sample each 30 s.
const sampleLimit = 2880

// Bounds of live figures: what is read of a host at most, and over how long CPU
// use is measured.
const (
	liveLimit = 3 * time.Second
	liveSpan  = 250 * time.Millisecond
)

// Metrics returns what a sandbox uses now, where it runs and its host answers,
// and its samples after since, oldest first.
func (s *Service) Metrics(ctx context.Context, by principal.Principal, sandbox id.Sandbox, since time.Time) (Metrics, error) {
	x, err := s.Get(ctx, by, sandbox)
	if err != nil {
		return Metrics{}, err
	}
	out := Metrics{Sandbox: x}
	if out.Samples, err = s.store.Samples(ctx, sandbox, since, sampleLimit); err != nil {
		return Metrics{}, err
	}
	if x.Status != StatusRunning || !x.Host.Online {
		return out, nil
	}
	live, idle, err := s.live(ctx, x)
	if err != nil {
		s.log.InfoContext(ctx, "no live figures", "sandbox_id", x.ID.String(), "error", err)
		return out, nil
	}
	out.Live, out.Idle = &live, &idle
	return out, nil
}

func (s *Service) live(ctx context.Context, x Sandbox) (Figures, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, liveLimit)
	defer cancel()
	start := time.Now()
	before, err := s.agents.Stats(ctx, x.Host, x.ID, x.Incarnation)
	if err != nil {
		return Figures{}, 0, err
	}
	span := time.NewTimer(liveSpan)
	defer span.Stop()
	select {
	case <-span.C:
	case <-ctx.Done():
		return Figures{}, 0, ctx.Err()
	}
	now, err := s.agents.Stats(ctx, x.Host, x.ID, x.Incarnation)
	if err != nil {
		return Figures{}, 0, err
	}
	used := max(now.CPUTime-before.CPUTime, 0)
	return Figures{
		At: time.Now(), CPUMillis: int64(used * 1000 / max(time.Since(start), time.Millisecond)),
		MemoryBytes: now.MemoryBytes, DiskBytes: now.DiskBytes, Processes: now.Processes,
	}, now.Idle, nil
}

// Logs returns the end of what a sandbox's console has said.
func (s *Service) Logs(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (Logs, error) {
	x, err := s.Get(ctx, by, sandbox)
	if err != nil {
		return Logs{}, err
	}
	if !lasts(x.Status) {
		return Logs{}, InvalidState(x)
	}
	if !x.Host.Online {
		return Logs{}, hostAway()
	}
	lctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return s.agents.Logs(lctx, x.Host, x.ID, x.Incarnation)
}

// Samples keeps what an agent tells of what its sandboxes used.
func (s *Service) Samples(ctx context.Context, from id.Host, samples []Sample) error {
	return s.store.InsertSamples(ctx, from, samples)
}
