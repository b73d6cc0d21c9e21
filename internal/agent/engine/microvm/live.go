package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/guest/vmapi"
)

// goOnWithin bounds what makes a guest run again, whoever waits for it.
const goOnWithin = time.Minute

// withRunning runs f in the instance's turn; ErrExited when it does not run.
func (e *Engine) withRunning(ctx context.Context, h engine.Handle, f func(context.Context, *record) error) error {
	r, err := decode(h)
	if err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return err
	}
	if !e.alive(r) {
		return fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	return f(ctx, r)
}

// monitored runs f in a conversation with the machine's program.
func (e *Engine) monitored(ctx context.Context, r *record, f func(*monitor) error) error {
	m, err := dialMonitor(ctx, r.WorkDir)
	if err != nil {
		return contextOr(ctx, err)
	}
	defer m.close() //nolint:errcheck // nothing is written any more
	return f(m)
}

// Freeze implements engine.Engine: the machine's processors stand still.
func (e *Engine) Freeze(ctx context.Context, h engine.Handle) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		if r.Still {
			return nil
		}
		// Noted first: a Thaw that is not needed does no harm.
		r.Still = true
		if err := e.save(r); err != nil {
			return err
		}
		err := e.monitored(ctx, r, func(m *monitor) error { return m.do("stop", nil, nil) })
		if err != nil { // it may have been heard
			own, cancel := patience(ctx, goOnWithin)
			defer cancel()
			err = errors.Join(err, e.goOn(own, r))
		}
		return err
	})
}

// Hold implements engine.Holder: a machine that stands still costs nothing and
// takes no harm, so that it is the same as Freeze.
func (e *Engine) Hold(ctx context.Context, h engine.Handle) error { return e.Freeze(ctx, h) }

// Thaw implements engine.Engine. The guest's clock stood still, too: it is set
// before the workload runs again, where that was stopped by a checkpoint.
func (e *Engine) Thaw(ctx context.Context, h engine.Handle) error {
	return e.withRunning(ctx, h, func(ctx context.Context, r *record) error {
		if !r.Still {
			return nil
		}
		return e.goOn(ctx, r)
	})
}

// goOn lets the guest run, with its clock set. One that does not answer is not
// waited for.
func (e *Engine) goOn(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, goOnWithin)
	defer cancel()
	err := e.monitored(ctx, r, func(m *monitor) error { return m.do("cont", nil, nil) })
	if err == nil {
		_, err = e.ask(ctx, r, fresh(vmapi.Request{Op: vmapi.OpGo}))
	}
	if err != nil {
		return err
	}
	r.Still, r.Saving = false, false
	return e.save(r)
}

// Resize implements engine.Engine: the share of the host's processors changes at
// once; memory and disk are the machine's own, and processes its kernel's.
func (e *Engine) Resize(ctx context.Context, h engine.Handle, res engine.Resources) error {
	return e.withRunning(ctx, h, func(_ context.Context, r *record) error {
		if res.MemoryBytes != r.Resources.MemoryBytes || res.DiskBytes != r.Resources.DiskBytes {
			return fmt.Errorf("%w: memory and disk of a running instance", engine.ErrUnsupported)
		}
		if res.CPUMillis <= 0 || res.MaxProcesses <= 0 {
			return fmt.Errorf("microvm: every resource must be limited")
		}
		if err := e.limit(r, res); err != nil {
			_ = e.limit(r, r.Resources)
			return err
		}
		r.Resources = res
		return e.save(r)
	})
}

// Stats implements engine.Engine from the cgroup's files, but for the disk: what
// the guest has written is in its own memory for a while, and it is asked.
func (e *Engine) Stats(ctx context.Context, h engine.Handle) (engine.Stats, error) {
	r, err := e.find(h)
	if err != nil {
		return engine.Stats{}, err
	}
	if !e.alive(r) {
		return engine.Stats{}, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	u, err := e.cg.usage(string(r.ID))
	if err != nil {
		return engine.Stats{}, err
	}
	s := engine.Stats{CPUTime: u.cpu, MemoryBytes: u.memory, Processes: u.tasks}
	var st unix.Stat_t
	if unix.Stat(r.path(diskFile), &st) == nil {
		s.DiskBytes = st.Blocks * 512
	}
	if !r.Still {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if a, err := e.ask(ctx, r, vmapi.Request{Op: vmapi.OpUsage}); err == nil {
			s.DiskBytes = max(s.DiskBytes, r.EmptyBytes+min(max(a.Used, 0), r.Resources.DiskBytes))
		}
	}
	return s, nil
}

// Wait implements engine.Engine. An instance that was not started yet has no
// end to wait for: ErrNotFound.
func (e *Engine) Wait(ctx context.Context, h engine.Handle) (engine.Exit, error) {
	r, err := e.findEnded(h)
	if err != nil {
		return engine.Exit{}, err
	}
	if r.BootID != e.bootID {
		return engine.Exit{Reason: engine.ExitHostRestart, Code: -1, At: time.Now().UTC()}, nil
	}
	if !r.started() {
		return engine.Exit{}, fmt.Errorf("%w: %s was never started", engine.ErrNotFound, r.ID)
	}
	exit, err := e.shim.Wait(ctx, r.Process)
	if err != nil {
		return engine.Exit{}, err
	}
	e.hangUp(r.ID)
	return e.explain(r, exit), nil
}

// explain says why the machine ended. That its program ended well tells nothing;
// what the workload's end was its first process has left behind the disk.
func (e *Engine) explain(r *record, exit shim.Exit) engine.Exit {
	out := engine.Exit{Code: -1, At: exit.At}
	end, told := readEnd(r)
	switch {
	case told && end.OutOfMemory, e.cg.oomKills(string(r.ID)) > 0:
		out.Reason = engine.ExitOutOfMemory
	case told:
		out.Reason, out.Code = engine.ExitExited, end.Code
	case exit.Known && exit.Signal == 9:
		out.Reason = engine.ExitKilled
	case exit.Known:
		out.Reason = engine.ExitCrashed // the guest's kernel, or the machine's program
	default:
		out.Reason = engine.ExitUnknown
	}
	return out
}

// readEnd reads what the guest left; its word about its own end is all it is.
func readEnd(r *record) (vmapi.End, bool) {
	var end vmapi.End
	f, err := os.Open(r.path(diskFile))
	if err != nil {
		return end, false
	}
	defer f.Close()
	text := io.NewSectionReader(f, fsBytes(r.Resources), vmapi.EndBytes)
	err = json.NewDecoder(text).Decode(&end)
	return end, err == nil && end.Skerry == 1 && end.Code >= 0 && end.Code < 256
}
