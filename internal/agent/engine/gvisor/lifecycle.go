package gvisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// stopWithin bounds how long the kernel may take to end killed processes.
const stopWithin = 10 * time.Second

// Prepare implements engine.Engine. It starts no process: a runsc create ahead
// of the start costs a client of its own, which is more work in all than one
// run, and would have to be repeated after a restart of the machine.
func (e *Engine) Prepare(ctx context.Context, spec engine.Spec) (h engine.Handle, err error) {
	if err := validate(&spec); err != nil {
		return nil, err
	}
	if len(spec.Stdin) > shim.MaxStdin {
		return nil, fmt.Errorf("gvisor: %d bytes for PID 1's input, at most %d", len(spec.Stdin), shim.MaxStdin)
	}
	ctx, done, err := e.begin(ctx, spec.ID, true)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := e.destroy(ctx, spec.ID, spec.WorkDir); err != nil {
		return nil, err
	}
	r := &record{
		Version: recordVersion, ID: spec.ID, WorkDir: spec.WorkDir, GuestAddr: spec.Network.GuestAddr,
		BootID: e.bootID, Resources: spec.Resources,
	}
	// The record comes first: whatever happens next can be found and removed.
	if err := e.save(r); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
			defer cancel()
			err = errors.Join(err, e.destroy(ctx, spec.ID, spec.WorkDir))
		}
	}()
	for _, dir := range []string{"bundle", "disk"} {
		if err := os.Mkdir(r.path(dir), 0o700); err != nil {
			return nil, fmt.Errorf("gvisor: %w", err)
		}
	}
	if err := writeSpec(r.path("bundle"), e.runtimeSpec(&spec)); err != nil {
		return nil, err
	}
	// May hold a secret; gone as soon as the instance has it.
	if err := os.WriteFile(r.path("stdin"), spec.Stdin, 0o600); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	return e.handle(r)
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	b, leave, err := e.builds.take(ctx, "")
	if err != nil {
		return nil, err
	}
	defer leave()
	return e.launch(ctx, h, b, "run", nil)
}

// launch starts the sentry by runsc run or restore of a build that is taken.
func (e *Engine) launch(ctx context.Context, h engine.Handle, b build, command string, args []string) (engine.Handle, error) {
	r, err := decode(h)
	if err != nil {
		return nil, err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return nil, err
	}
	if err := e.rediscover(ctx, r); err != nil {
		return nil, err
	}
	if r.started() {
		if !e.alive(r) {
			return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
		}
		return e.handle(r)
	}
	stdin, err := os.ReadFile(r.path("stdin"))
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	// What an interrupted start left behind would be joined, with old limits.
	if r.Launched {
		err = e.sweep(ctx, r.ID)
	}
	if err == nil && (!r.Launched || r.Build != b.Digest) {
		r.Launched, r.Build = true, b.Digest
		err = e.save(r)
	}
	if err != nil {
		return nil, err
	}
	args = append([]string{command, "-detach", "-bundle=" + r.path("bundle"), "-pid-file=" + r.path("pid")}, args...)
	res, err := e.runsc(ctx, r, shim.Spawn{
		Stdin: stdin, PIDFile: r.path("pid"),
		Console: &shim.Console{FIFO: r.path("console"), Log: r.path("console.log")},
	}, append(args, string(r.ID))...)
	if err == nil {
		r.Process = res.Process
		// The guest was told the limit; now the sentry gets its share on top.
		err = e.cg.setMemory(string(r.ID), e.hostMemory(r.Resources))
	}
	if err == nil {
		err = e.save(r)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, err // Destroy is on its way, or owed: it finds what runs by the id
		}
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		return nil, errors.Join(err, e.sweep(cleanup, r.ID))
	}
	_ = os.Remove(r.path("stdin"))
	return e.handle(r)
}

// hostMemory is the cgroup's limit for a guest's.
func (e *Engine) hostMemory(r engine.Resources) int64 {
	return r.MemoryBytes + e.cfg.HeadroomBytes + r.MemoryBytes/100*int64(e.cfg.HeadroomPercent) + int64(r.MaxProcesses+32)*e.cfg.ProcessBytes
}

// alive tells whether the instance's own sentry runs.
func (e *Engine) alive(r *record) bool {
	return r.started() && r.BootID == e.bootID && shim.Alive(r.Process)
}

// rediscover finds the sentry of an instance whose start was cut off before
// its record was written: the shim knows it, and without that shim runsc's pid
// file names it and its cgroup proves it.
func (e *Engine) rediscover(ctx context.Context, r *record) error {
	if r.started() || r.BootID != e.bootID || !r.Launched {
		return nil
	}
	list, err := e.shim.List(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.Key == string(r.ID) {
			r.Process = p
			return e.adopted(r)
		}
	}
	b, err := os.ReadFile(r.path("pid"))
	if err != nil {
		return nil //nolint:nilerr // never started
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || !slices.Contains(e.cg.pids(string(r.ID)), pid) {
		return nil //nolint:nilerr // no longer there
	}
	start, err := shim.StartTime(pid)
	if err != nil {
		return nil //nolint:nilerr // no longer there
	}
	r.Process = shim.Process{Key: string(r.ID), PID: pid, Start: start}
	return e.adopted(r)
}

// adopted finishes what the interrupted start did not come to.
func (e *Engine) adopted(r *record) error {
	if err := e.cg.setMemory(string(r.ID), e.hostMemory(r.Resources)); err != nil {
		return err
	}
	_ = os.Remove(r.path("stdin"))
	return e.save(r)
}

// Stop implements engine.Engine.
func (e *Engine) Stop(ctx context.Context, h engine.Handle) error {
	r, err := e.find(h)
	if err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, r.ID, true)
	if err != nil {
		return err
	}
	defer done()
	e.hangUp(r.ID)
	return e.kill(ctx, r.ID)
}

// kill ends all processes of the instance, in whatever state it is.
func (e *Engine) kill(ctx context.Context, id engine.InstanceID) error {
	// On v1 a frozen process does not die before it is thawed.
	if err := e.cg.setFrozen(ctx, string(id), false); err != nil {
		return err
	}
	if _, err := e.shim.End(ctx, string(id), stopWithin); err != nil {
		return fmt.Errorf("gvisor: stop %s: %w", id, err)
	}
	return e.cg.killAll(ctx, string(id))
}

// Destroy implements engine.Engine. It needs no runsc client, which would cost
// more than all the rest: the processes die with their cgroup, and what runsc
// keeps is three files and the cgroup's directories.
func (e *Engine) Destroy(ctx context.Context, id engine.InstanceID) error {
	if err := validID(id); err != nil {
		return err
	}
	ctx, done, err := e.begin(ctx, id, true)
	if err != nil {
		return err
	}
	defer done()
	workDir := ""
	r, err := e.load(id)
	switch {
	case err == nil:
		workDir = r.WorkDir
	case !errors.Is(err, engine.ErrNotFound):
		return err
	}
	return e.destroy(ctx, id, workDir)
}

func (e *Engine) destroy(ctx context.Context, id engine.InstanceID, workDir string) error {
	e.hangUp(id)
	if err := e.sweep(ctx, id); err != nil {
		return err
	}
	if workDir != "" {
		for _, name := range files {
			if err := os.RemoveAll(filepath.Join(workDir, name)); err != nil {
				return fmt.Errorf("gvisor: %w", err)
			}
		}
	}
	// Last: as long as anything is left, the record leads to it.
	for _, path := range []string{e.recordPath(id) + ".new", e.recordPath(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("gvisor: %w", err)
		}
	}
	return nil
}

// sweep ends what runs of an instance and removes its cgroups and runsc's
// state, so that it can be started as if for the first time.
func (e *Engine) sweep(ctx context.Context, id engine.InstanceID) error {
	if err := e.kill(ctx, id); err != nil {
		return err
	}
	if err := e.cg.remove(ctx, string(id)); err != nil {
		return err
	}
	for _, name := range e.runscFiles(id) {
		if err := os.RemoveAll(filepath.Join(e.runscRoot(), name)); err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
	}
	return nil
}

// runscFiles are the names runsc uses in its state directory for an instance.
func (e *Engine) runscFiles(id engine.InstanceID) []string {
	prefix := fmt.Sprintf("%s_sandbox:%s", id, id)
	return []string{prefix + ".state", prefix + ".lock", fmt.Sprintf("runsc-%s.sock", id)}
}

// Recover implements engine.Engine.
func (e *Engine) Recover(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	r, err := decode(h)
	if err != nil {
		return nil, err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return nil, err
	}
	if err := e.rediscover(ctx, r); err != nil {
		return nil, err
	}
	if !r.started() && r.BootID == e.bootID {
		return e.handle(r) // prepared, never started: Start goes on
	}
	if !e.alive(r) {
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
	}
	// The shim may have been replaced meanwhile.
	console := &shim.Console{FIFO: r.path("console"), Log: r.path("console.log")}
	if err := e.shim.Watch(ctx, r.Process, console); err != nil {
		return nil, err
	}
	return e.handle(r)
}

// Inventory implements engine.Engine. It looks at everything an instance
// leaves: records, runsc's state and cgroups.
func (e *Engine) Inventory(ctx context.Context) ([]engine.Found, error) {
	ids := map[engine.InstanceID]bool{}
	add := func(name string) {
		if id := engine.InstanceID(name); validID(id) == nil {
			ids[id] = false
		}
	}
	for _, dir := range []string{filepath.Join(e.cfg.StateDir, "instances"), e.runscRoot()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("gvisor: %w", err)
		}
		for _, entry := range entries {
			name := strings.TrimPrefix(entry.Name(), "runsc-")
			add(name[:min(idLen, len(name))])
		}
	}
	for _, name := range e.cg.instances() {
		add(name)
	}
	list, err := e.shim.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if _, ours := ids[engine.InstanceID(p.Key)]; ours {
			ids[engine.InstanceID(p.Key)] = true
		}
	}
	var out []engine.Found
	for id, running := range ids {
		if r, err := e.load(id); !running && err == nil {
			running = e.alive(r)
		}
		out = append(out, engine.Found{ID: id, Running: running || len(e.cg.pids(string(id))) > 0})
	}
	slices.SortFunc(out, func(a, b engine.Found) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out, nil
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

// explain says why the sentry ended. Its exit code is that of the guest's
// PID 1, unless it panicked.
func (e *Engine) explain(r *record, exit shim.Exit) engine.Exit {
	out := engine.Exit{Code: -1, At: exit.At}
	panicked := tellsPanic(r.path("panic.log"))
	switch oom := e.cg.oomKills(string(r.ID)) > 0; {
	case exit.Known && exit.Signal == 0 && !panicked:
		out.Reason, out.Code = engine.ExitExited, exit.Code
	case oom:
		out.Reason = engine.ExitOutOfMemory
	case panicked || exit.Signal != 0 && exit.Signal != 9:
		out.Reason = engine.ExitCrashed
	case exit.Signal == 9:
		out.Reason = engine.ExitKilled
	default:
		out.Reason = engine.ExitUnknown
	}
	return out
}

// tellsPanic looks for the Go runtime's last words at the beginning of lines. The
// sentry also writes warnings there that anybody inside can provoke.
func tellsPanic(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	// Goroutines follow the words; warnings before them are few, since the sentry
	// limits their rate.
	lines := bufio.NewScanner(io.LimitReader(f, 4<<20))
	for lines.Scan() {
		for _, words := range []string{"panic: ", "fatal error: ", "runtime: ", "SIG"} {
			if strings.HasPrefix(lines.Text(), words) {
				return true
			}
		}
	}
	return false
}
