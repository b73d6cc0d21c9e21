package manager

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Kinds of events, besides those of the guest daemon (guestapi.Event…).
const (
	EventStarted      = "started"
	EventExited       = "exited"
	EventDestroyed    = "destroyed"
	EventCreateFailed = "create_failed"
	// Told only of what the agent does by itself.
	EventPaused       = "paused"
	EventPauseFailed  = "pause_failed"
	EventResumeFailed = "resume_failed"
)

const (
	waitRetryMin = 50 * time.Millisecond
	waitRetryMax = 5 * time.Second
)

func (m *Manager) event(rec journal.Record, kind string, data map[string]any) journal.Event {
	e := journal.Event{Kind: kind, Sandbox: rec.Spec.Sandbox, Incarnation: rec.Spec.Incarnation, At: m.cfg.Clock.Now()}
	if len(data) > 0 {
		e.Data, _ = json.Marshal(data) // strings and numbers only
	}
	return e
}

// newGuest makes the link to an instance's daemon, which knows secret.
func (m *Manager) newGuest(eng engine.Engine, rec journal.Record, secret string) Guest {
	return m.cfg.NewGuest(GuestOptions{
		Dial: func(ctx context.Context, port int) (net.Conn, error) {
			return eng.Dial(ctx, rec.Handle, port)
		},
		InitSecret:  secret,
		AccessToken: rec.Spec.AccessToken,
		After:       rec.GuestSeq,
		OnEvent: func(e guestapi.Event) error {
			return m.cfg.Journal.GuestEvent(e.Seq, m.event(rec, e.Kind, guestData(e)))
		},
	})
}

func guestData(e guestapi.Event) map[string]any {
	data := make(map[string]any)
	for k, v := range map[string]uint64{
		"pid": uint64(max(e.PID, 0)), "rss_bytes": e.RSSBytes, "free_bytes": e.FreeBytes,
		"processes": uint64(max(e.Processes, 0)), "limit": uint64(max(e.Limit, 0)), "killed": uint64(max(e.Killed, 0)),
	} {
		if v != 0 {
			data[k] = v
		}
	}
	if e.Cmd != "" {
		data["cmd"] = e.Cmd
	}
	return data
}

// startWatch waits for the instance's end in the background. An end during the
// instance's own create ends that with its reason, by endCreate.
func (m *Manager) startWatch(s *entry, eng engine.Engine, rec journal.Record, endCreate context.CancelCauseFunc) {
	ctx, cancel := context.WithCancel(m.base)
	w := &watch{cancel: cancel, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.watch = w
	m.wg.Go(func() {
		defer close(w.done)
		exit, ok := m.await(ctx, eng, rec)
		if !ok {
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		switch {
		case s.op == nil && s.rec.Phase == journal.PhaseRunning:
			m.startExit(s, exit)
		case s.op != nil && s.op.kind != opDestroy:
			s.exit = &exit
			if endCreate != nil {
				endCreate(errs.Unavailable("sandbox_exited", "The sandbox ended while it was starting.").With("end_reason", exit.Reason))
			}
		}
	})
}

// stopWatch ends the watcher and waits for it.
func (m *Manager) stopWatch(s *entry) {
	m.mu.Lock()
	w := s.watch
	s.watch = nil
	m.mu.Unlock()
	if w != nil {
		w.cancel()
		<-w.done
	}
}

// await asks the engine until it has an answer. False: ctx ended first.
func (m *Manager) await(ctx context.Context, eng engine.Engine, rec journal.Record) (engine.Exit, bool) {
	for pause := waitRetryMin; ; pause = min(2*pause, waitRetryMax) {
		exit, err := eng.Wait(ctx, rec.Handle)
		switch {
		case ctx.Err() != nil:
			return engine.Exit{}, false
		case err == nil:
			return exit, true
		case errors.Is(err, engine.ErrNotFound):
			return m.vanished(rec), true
		}
		m.log(rec).Warn("waiting for the sandbox's end failed, trying again", "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return engine.Exit{}, false
		}
	}
}

// vanished is the exit of an instance of which nothing is left.
func (m *Manager) vanished(rec journal.Record) engine.Exit {
	exit := engine.Exit{Reason: engine.ExitUnknown, Code: -1, At: m.cfg.Clock.Now()}
	if rec.BootID != "" && rec.BootID != m.cfg.BootID {
		exit.Reason = engine.ExitHostRestart
	}
	return exit
}

// startExit records that a running sandbox ended by itself. Its connections
// are cut first: nobody waits for an answer that cannot come. Called with m.mu
// held and no operation running.
func (m *Manager) startExit(s *entry, exit engine.Exit) {
	link := s.link
	s.link = nil
	s.rec = ended(s.rec, exit)
	rec := s.rec
	op := newOperation(opExit)
	s.op = op
	m.wg.Go(func() {
		if link != nil {
			link.Close()
		}
		err := m.cfg.Journal.Exited(rec, m.exitEvent(rec, exit))
		if err != nil {
			// The engine knows it still; the next start of the agent finds it again.
			m.log(rec).Error("an exit could not be recorded", "err", err)
		} else {
			m.log(rec).Info("sandbox ended", "end_reason", rec.EndReason, "exit_code", exit.Code)
			m.bare(rec)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		s.finish(op, report(rec), err)
	})
}

// bare leaves nothing of an ended sandbox but its record, which tells how it
// ended until the control plane has it destroyed. What fails is left to that.
func (m *Manager) bare(rec journal.Record) {
	if err := m.undo(rec, undoAll); err != nil {
		m.log(rec).Warn("not all of an ended sandbox could be removed yet", "err", err)
	}
}

// ended is the record of an exit. The slot is found by its owner from here on,
// since its number may already be somebody else's.
func ended(rec journal.Record, exit engine.Exit) journal.Record {
	rec.Phase = journal.PhaseExited
	rec.Pause = nil
	rec.Slot = -1
	rec.EndReason = exit.Reason
	rec.EndedAt = exit.At
	return rec
}

func (m *Manager) exitEvent(rec journal.Record, exit engine.Exit) journal.Event {
	e := m.event(rec, EventExited, map[string]any{"reason": exit.Reason, "code": exit.Code})
	if !exit.At.IsZero() {
		e.At = exit.At
	}
	return e
}
