package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/network"
	"skerry.dev/skerry/internal/agent/shim"
)

// purgeWidth is how many sandboxes are ended at once.
const purgeWidth = 4

// HostID is what the agent on dataDir is registered as, or "". It changes
// nothing.
func HostID(dataDir string) (string, error) {
	host, err := identity.Registered(IdentityDir(dataDir))
	if err != nil || host.IsZero() {
		return "", err
	}
	return host.String(), nil
}

// Purge ends every sandbox of the agent on cfg.DataDir, which must not be
// running, and removes all that it ever made on the machine: instances, shim,
// network, mounts, cgroups and the directory itself. It goes by what exists,
// not by the journal. Killed in between, it is finished by the next one; of
// cfg only DataDir, the paths of programs, ShimCommand and Logger count.
func Purge(ctx context.Context, cfg Config, say func(string)) error {
	if !filepath.IsAbs(cfg.DataDir) {
		return fmt.Errorf("agent: an absolute path is needed, not %q", cfg.DataDir)
	}
	if err := clearMachine(ctx, cfg, say); err != nil {
		return err
	}
	return os.RemoveAll(cfg.DataDir)
}

// clearMachine is Purge but for the directory.
func clearMachine(ctx context.Context, cfg Config, say func(string)) error {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, tagFile)); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was made before the tag
	}
	j, err := journal.Open(filepath.Join(cfg.DataDir, "journal.db"), 0)
	if err != nil {
		return fmt.Errorf("agent: is it still running? %w", err)
	}
	defer j.Close()
	tag, err := loadTag(cfg.DataDir)
	if err != nil {
		return err
	}
	if err := purgeEngines(ctx, cfg, tag, say); err != nil {
		return err
	}
	say("removing network slots and rules")
	if err := network.Purge(ctx, tag); err != nil {
		return err
	}
	say("removing images and mounts")
	cache, err := image.New(image.Config{Dir: filepath.Join(cfg.DataDir, "images"), GuestBinary: cfg.GuestBinary, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	if err := cache.Purge(ctx); err != nil {
		return err
	}
	if mounts, err := mountsBelow(cfg.DataDir); err != nil || len(mounts) > 0 {
		return errors.Join(err, fmt.Errorf("agent: still mounted below %s: %s", cfg.DataDir, strings.Join(mounts, ", ")))
	}
	return nil
}

// purgeEngines ends all instances, then what is shared by them, then the shim.
func purgeEngines(ctx context.Context, cfg Config, tag string, say func(string)) (err error) {
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	engines, err := openEngines(ctx, cfg, Options{}, tag, down)
	if err != nil {
		return err
	}
	for _, e := range engines {
		found, err := e.Inventory(ctx)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			say(fmt.Sprintf("ending %d sandboxes", len(found)))
		}
		var wg sync.WaitGroup
		failed := make([]error, len(found))
		turn := make(chan struct{}, purgeWidth)
		for i, f := range found {
			turn <- struct{}{}
			wg.Go(func() {
				failed[i] = e.Destroy(ctx, f.ID)
				<-turn
			})
		}
		wg.Wait()
		if err := errors.Join(failed...); err != nil {
			return err
		}
		if shared, ok := e.(interface{ Purge() error }); ok {
			if err := shared.Purge(); err != nil {
				return err
			}
		}
	}
	sh, err := shim.Ensure(ctx, shim.Config{Dir: ShimDir(cfg.DataDir), Command: cfg.ShimCommand, Env: []string{"PATH=" + os.Getenv("PATH")}, Logger: cfg.Logger})
	if err != nil {
		return err
	}
	return sh.Shutdown(ctx, true)
}

// mountsBelow lists what is mounted below a directory.
func mountsBelow(dir string) ([]string, error) {
	raw, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var below []string
	for line := range strings.Lines(string(raw)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			below = append(below, fields[4])
		}
	}
	return below, nil
}
