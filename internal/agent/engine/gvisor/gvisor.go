// Package gvisor is the engine that isolates with gVisor: one sentry process
// per instance, started by a runsc client through the shim. It works on any
// Linux with cgroups, v1 or v2, and needs root but neither KVM nor a setuid
// program.
//
// What of it exists on a host, all of it named after Config.Tag or below
// Config.StateDir: a record per instance, runsc's own state, a cgroup below
// /skerry-<tag>, and the files in the instance's WorkDir.
package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// name of the engine.
const name = "gvisor"

// Config of the engine.
type Config struct {
	// StateDir is the engine's own directory, made with mode 0700. It must be
	// short: runsc puts a socket with a name of 43 bytes below StateDir/runsc.
	StateDir string
	// Runsc is the program this release ships. It is copied to BuildsDir, and what
	// runs is the copy.
	Runsc string
	// BuildsDir keeps the builds of runsc that are in use; empty is below StateDir.
	BuildsDir string
	// Tag makes names on this host our own; the cgroup parent is /skerry-<tag>.
	Tag string
	// Parallel bounds the runsc clients running at once; 0 is four per core. They
	// wait for their sentry as much as they compute: one per core makes eight
	// restores at once on two cores a sixth slower.
	Parallel int
	// HeadroomBytes and HeadroomPercent are the memory an instance may use on
	// the host above what its guest is told, for the sentry and so that the
	// guest's own guard acts before the kernel does; ProcessBytes comes on top
	// for each process the guest may have, since its address space costs the host
	// memory that the guest cannot see (measured: 0.4 MiB). Whoever places
	// instances must count them. 0 is 128 MiB, 6 % and 512 KiB.
	HeadroomBytes   int64
	HeadroomPercent int
	ProcessBytes    int64
	Logger          *slog.Logger // nil discards
}

// Engine implements engine.Engine.
type Engine struct {
	cfg    Config
	shim   *shim.Client
	cg     hierarchy
	bootID string
	slots  chan struct{} // one per runsc client that may run
	builds *library

	mu    sync.Mutex
	calls map[engine.InstanceID]*turn
	conns map[engine.InstanceID]*connSet
	wg    sync.WaitGroup
	ctx   context.Context // of the connections' watchers; ends with Close
	stop  context.CancelFunc
}

var _ engine.Engine = (*Engine)(nil)

// socketName is how long the name of runsc's control socket is, slash included.
const socketName = len("/runsc-") + idLen + len(".sock")

const idLen = 32

// New returns an engine on a state directory. Nothing of what exists there is
// touched; engines of several agents must differ in both StateDir and Tag.
func New(cfg Config, sh *shim.Client) (*Engine, error) {
	if cfg.Tag == "" || strings.Trim(cfg.Tag, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("gvisor: tag %q: a-z, 0-9 and - only, not empty", cfg.Tag)
	}
	if !filepath.IsAbs(cfg.StateDir) || !filepath.IsAbs(cfg.Runsc) {
		return nil, errors.New("gvisor: state directory and runsc must be absolute paths")
	}
	if cfg.BuildsDir == "" {
		cfg.BuildsDir = filepath.Join(cfg.StateDir, "builds")
	}
	if !filepath.IsAbs(cfg.BuildsDir) {
		return nil, errors.New("gvisor: the directory of builds must be an absolute path")
	}
	if n := len(filepath.Join(cfg.StateDir, "runsc")) + socketName; n > 107 {
		return nil, fmt.Errorf("gvisor: state directory %s is %d bytes too long for runsc's sockets", cfg.StateDir, n-107)
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4 * runtime.NumCPU()
	}
	if cfg.HeadroomBytes <= 0 {
		cfg.HeadroomBytes = 128 << 20
	}
	if cfg.HeadroomPercent <= 0 {
		cfg.HeadroomPercent = 6
	}
	if cfg.ProcessBytes <= 0 {
		cfg.ProcessBytes = 512 << 10
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	for _, dir := range []string{"runsc", "instances"} {
		if err := os.MkdirAll(filepath.Join(cfg.StateDir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("gvisor: %w", err)
		}
	}
	cg, err := openHierarchy("/sys/fs/cgroup", "skerry-"+cfg.Tag)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, shim: sh, cg: cg, bootID: strings.TrimSpace(string(boot)),
		slots: make(chan struct{}, cfg.Parallel),
		calls: map[engine.InstanceID]*turn{}, conns: map[engine.InstanceID]*connSet{},
	}
	e.builds = newLibrary(cfg.BuildsDir, cfg.Runsc, e.ask, cfg.Logger)
	e.ctx, e.stop = context.WithCancel(context.Background()) //nolint:contextcheck // ends with Close
	return e, nil
}

// Close closes the connections Dial made and ends what runs in this process
// for them. Instances go on.
func (e *Engine) Close() error {
	e.stop()
	e.wg.Wait()
	return nil
}

// Purge removes what is shared by all instances, the empty parent cgroups. For
// use when the agent is removed from the host; instances make them again.
func (e *Engine) Purge() error { return e.cg.removeParent() }

// Probe implements engine.Engine.
func (e *Engine) Probe(ctx context.Context) engine.Capabilities {
	c := engine.Capabilities{Name: name, Checkpoint: true}
	need := func(ok bool, reason string) {
		if !ok {
			c.Reasons = append(c.Reasons, reason)
		}
	}
	need(os.Geteuid() == 0, "the agent does not run as root: start it as root")
	b, err := e.builds.shipped(ctx)
	if err != nil {
		c.Reasons = append(c.Reasons, fmt.Sprintf("%s cannot be used (%v): install the runsc that belongs to this release", e.cfg.Runsc, err))
	}
	c.Version, c.Digest, c.CPUFeatures = b.Version, b.Digest, slices.Clone(b.features)
	kept, err := e.Builds(ctx)
	if err != nil {
		c.Reasons = append(c.Reasons, fmt.Sprintf("the kept builds of runsc cannot be listed (%v): repair %s", err, e.cfg.BuildsDir))
	}
	for _, k := range kept {
		if k.Build != b.Build {
			c.Builds = append(c.Builds, k.Build)
		}
	}
	c.Reasons = append(c.Reasons, e.cg.missing()...)
	c.Healthy = len(c.Reasons) == 0
	return c
}

// turn makes calls about one instance come one after the other. A Destroy
// cancels the one before it.
type turn struct {
	hold   chan struct{}
	users  int
	cancel context.CancelFunc
}

// patient is the key of a context that does not end with the caller's, but when
// an urgent call wants the turn.
type patient struct{}

// patience is the context for putting things right again after the caller has
// gone, for at most the given time: Destroy need not wait for it.
func patience(ctx context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	own, ok := ctx.Value(patient{}).(context.Context)
	if !ok {
		own = context.WithoutCancel(ctx)
	}
	return context.WithTimeout(context.WithValue(own, patient{}, own), within)
}

// begin takes the instance's turn and returns the context of the call. With
// urgent the call that has it is cancelled.
func (e *Engine) begin(ctx context.Context, id engine.InstanceID, urgent bool) (context.Context, func(), error) {
	e.mu.Lock()
	t := e.calls[id]
	if t == nil {
		t = &turn{hold: make(chan struct{}, 1)}
		e.calls[id] = t
	}
	t.users++
	if urgent && t.cancel != nil {
		t.cancel()
	}
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(e.calls, id)
		}
	}
	select {
	case t.hold <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, nil, ctx.Err()
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ctx, stop := context.WithCancel(context.WithValue(ctx, patient{}, own))
	context.AfterFunc(own, stop)
	e.mu.Lock()
	if !urgent {
		t.cancel = cancel
	}
	e.mu.Unlock()
	return ctx, func() {
		e.mu.Lock()
		t.cancel = nil
		e.mu.Unlock()
		cancel()
		<-t.hold
		leave()
	}, nil
}

// runsc runs a client to its end through the shim. The flags are the same for
// every command: what belongs to the instance is fixed when it starts.
func (e *Engine) runsc(ctx context.Context, r *record, s shim.Spawn, args ...string) (shim.Spawned, error) {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return shim.Spawned{}, ctx.Err()
	}
	logFile := r.path("runsc.log")
	_ = os.Remove(logFile)
	s.Key = string(r.ID)
	s.Argv = append([]string{
		e.builds.programOf(r.Build), "--root=" + e.runscRoot(), "--log=" + logFile,
		"--network=sandbox", "--allow-suid", "--allow-connected-on-save",
		fmt.Sprintf("--overlay2=root:dir=%s,size=%d", r.path("disk"), r.Resources.DiskBytes),
		"--directfs=false", "--platform=systrap", "--host-uds=none",
		"--allow-rootfs-tar-annotation", // see StartWithDisk; specs are ours alone
		"--panic-log=" + r.path("panic.log"),
	}, args...)
	s.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=" + r.WorkDir}
	res, err := e.shim.Spawn(ctx, s)
	if err != nil {
		return res, fmt.Errorf("gvisor: %s: %w", args[0], err)
	}
	if res.Code != 0 {
		return res, fmt.Errorf("gvisor: runsc %s ended with status %d: %s", args[0], res.Code, reasonOf(logFile, res.Output))
	}
	return res, nil
}

// reasonOf finds what runsc said about its failure: in its log, a row of JSON
// objects, or on its standard error.
func reasonOf(logFile, output string) string {
	b, _ := os.ReadFile(logFile)
	var said []string
	for dec := json.NewDecoder(bytes.NewReader(b)); ; {
		var line struct {
			Message string `json:"msg"`
		}
		if dec.Decode(&line) != nil {
			break
		}
		said = append(said, strings.TrimSpace(line.Message))
	}
	if len(said) == 0 {
		said = []string{strings.TrimSpace(output + string(b))}
	}
	text := strings.Join(said, "; ")
	return text[:min(len(text), 1000)]
}

func (e *Engine) runscRoot() string { return filepath.Join(e.cfg.StateDir, "runsc") }

func (e *Engine) handle(r *record) (engine.Handle, error) {
	b, err := json.Marshal(r)
	return engine.Handle(b), err
}
