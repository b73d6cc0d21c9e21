package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/id"
)

// tryCleanup bounds the removal of what Try made.
const tryCleanup = time.Minute

// Try starts a sandbox on this machine as an agent would, with an engine, a
// network and a guest daemon that answers, and removes all of it again. It
// returns the engine's version. cfg.DataDir is a directory for this alone, with
// a short path; of the rest only the programs, ShimCommand, CIDR and DNS count.
// Agents on the same machine are not disturbed.
func Try(ctx context.Context, cfg Config) (version string, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.WarmSlots, cfg.MaxSlots = 1, 2
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryCleanup)
		defer cancel()
		err = errors.Join(err, Purge(cctx, cfg, func(string) {}))
	}()
	return try(ctx, cfg)
}

func try(ctx context.Context, cfg Config) (version string, err error) {
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	j, err := journal.Open(filepath.Join(cfg.DataDir, "journal.db"), 0)
	if err != nil {
		return "", err
	}
	down.add(j.Close)
	tag, err := loadTag(cfg.DataDir)
	if err != nil {
		return "", err
	}
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	root, err := bareTree(cfg)
	if err != nil {
		return "", err
	}
	engines, err := openEngines(ctx, cfg, Options{}, tag, down)
	if err != nil {
		return "", err
	}
	versions, facts := probe(ctx, engines)
	for _, f := range facts {
		if !f.Healthy {
			return "", fmt.Errorf("agent: the engine %s does not work here: %v", f.Name, f.Reasons)
		}
	}
	nets, err := openNetworks(ctx, cfg, Options{}, tag, down)
	if err != nil {
		return "", err
	}
	states, err := state.Open(statesDir(cfg), nil, cfg.Logger)
	if err != nil {
		return "", err
	}
	instances := filepath.Join(cfg.DataDir, "instances")
	if err := os.MkdirAll(instances, 0o700); err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	m := manager.New(manager.Config{
		States: states, Journal: j, Engines: engines, Versions: versions, Networks: nets, Images: bare{root}, NewGuest: newGuest(cfg),
		InstancesDir: instances, GuestArgs: []string{image.GuestPath}, BootID: boot, Logger: cfg.Logger,
	})
	down.add(func() error { m.Close(); return nil })
	if err := m.Recover(ctx); err != nil {
		return "", err
	}
	spec := journal.Spec{
		Sandbox: id.NewSandbox(), Incarnation: 1, Team: id.NewTeam(), Template: id.NewTemplate(), Engine: "gvisor",
		Image:       journal.Image{Digest: "trial"},
		Resources:   journal.Resources{CPUMillis: 500, MemoryBytes: 256 << 20, DiskBytes: 256 << 20, MaxProcesses: 64},
		AccessToken: id.NewSandbox().UUID().String(),
	}
	if _, err := m.Create(ctx, spec); err != nil {
		return "", err
	}
	return versions["gvisor"], m.Destroy(ctx, spec.Sandbox, spec.Incarnation, "trial")
}

// bare is the one tree that a trial has instead of images.
type bare struct{ root string }

// Acquire implements manager.Images.
func (b bare) Acquire(context.Context, journal.Image, manager.Daemon, string) (manager.Tree, error) {
	return manager.Tree{Dir: b.root}, nil
}

// DaemonFile implements manager.Images: nothing is saved.
func (bare) DaemonFile(string) string { return "" }

// Release implements manager.Images.
func (bare) Release(context.Context, string, string) error { return nil }

// Recover implements manager.Images.
func (bare) Recover(context.Context, map[string]manager.Holding) error { return nil }

// bareTree makes a root tree with the guest daemon and nothing else.
func bareTree(cfg Config) (string, error) {
	root := filepath.Join(cfg.DataDir, "tree")
	for _, dir := range []string{filepath.Dir(image.GuestPath), "etc", "tmp", "root", "proc", "dev", "sys", "home/user"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", fmt.Errorf("agent: %w", err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n", "etc/hosts": "127.0.0.1 localhost\n", "tmp/.keep": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil { //nolint:gosec // the guest reads it
			return "", fmt.Errorf("agent: %w", err)
		}
	}
	from, err := os.Open(cfg.GuestBinary)
	if err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(root, image.GuestPath), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755) //nolint:gosec // it is run
	if err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	return root, nil
}

// Running reports whether an agent runs on a data directory.
func Running(dataDir string) bool {
	f, err := os.Open(filepath.Join(dataDir, "journal.db"))
	if err != nil {
		return false
	}
	defer f.Close()
	// The journal's owner holds the lock; ours ends with the file.
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}
