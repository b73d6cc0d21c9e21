package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/manager"
)

const (
	leaveRetryMin = 200 * time.Millisecond
	leaveRetryMax = 30 * time.Second
)

func deleted(me *identity.Identity) bool {
	select {
	case <-me.Deleted():
		return true
	default:
		return false
	}
}

// leave ends a deleted host: its sandboxes, what was saved of them, then who it
// was. It returns identity.ErrLeft when all of that is gone, and what keeps it
// from being so otherwise; then the next start begins again with the first.
func leave(ctx context.Context, cfg Config, me *identity.Identity, m *manager.Manager) error {
	cfg.Logger.Warn("the platform says that this host was deleted: its sandboxes are destroyed", "host_id", me.HostID().String())
	if err := destroyAll(ctx, cfg, m); err != nil {
		return err
	}
	m.Close()
	if err := os.RemoveAll(statesDir(cfg)); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if err := me.Leave(); err != nil {
		return err
	}
	return identity.ErrLeft
}

// destroyAll destroys every sandbox, as often as it takes.
func destroyAll(ctx context.Context, cfg Config, m *manager.Manager) error {
	for pause := leaveRetryMin; ; pause = min(2*pause, leaveRetryMax) {
		err := m.DestroyAll(ctx, manager.ReasonHostDeleted)
		if err == nil {
			return nil
		}
		cfg.Logger.Error("not all sandboxes of the deleted host could be destroyed yet", "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// clearHost removes all that the agent of a deleted host made on the machine,
// but for the note that it left. It may be repeated.
func clearHost(ctx context.Context, cfg Config) error {
	if err := clearMachine(ctx, cfg, func(line string) { cfg.Logger.Info(line) }); err != nil {
		return err
	}
	entries, err := os.ReadDir(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	for _, e := range entries {
		// The tag last: without it nothing is looked for any more.
		if e.Name() != identityDir && e.Name() != tagFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.DataDir, e.Name())))
		}
	}
	if err == nil {
		err = os.RemoveAll(filepath.Join(cfg.DataDir, tagFile))
	}
	return err
}
