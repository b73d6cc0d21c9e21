package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
)

// recoverWarm finds the instances that wait again. What was not ready, ended,
// or was made with other programs is let go. Called before anything else may
// take one.
func (m *Manager) recoverWarm(ctx context.Context) error {
	list, err := m.cfg.Journal.Warm()
	if err != nil {
		return err
	}
	if err := m.unmarkOthers(list); err != nil {
		return err
	}
	wide := newWide(recoverWidth)
	for _, kept := range list {
		wide.do(func() error {
			w := &warm{kept: kept, watch: func() {}}
			waits := m.readoptWarm(ctx, w)
			m.mu.Lock()
			if waits {
				m.warm.ready[kept.Record.Instance] = w
			} else {
				m.warm.going[kept.Record.Instance] = w
			}
			m.mu.Unlock()
			if !waits {
				_ = m.letGo(w) // tried again by itself
			}
			return nil
		})
	}
	return wide.wait()
}

func (m *Manager) readoptWarm(ctx context.Context, w *warm) bool {
	rec := &w.kept.Record
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil || rec.Phase != journal.PhaseWarm || w.kept.Build != m.warmBuild(rec.Spec.Engine) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.RecoverTimeout)
	defer cancel()
	h, err := eng.Recover(ctx, rec.Handle)
	if err == nil {
		rec.Handle = h
		err = hold(ctx, eng, h) // the agent may have died over its claim
	}
	if err == nil {
		w.slot, err = m.cfg.Networks.Adopt(ctx, rec.Slot, rec.Instance)
	}
	if err != nil {
		return false
	}
	m.watchWarm(w, eng)
	return true
}

// warmBuild names all programs an instance of an engine is made with here.
func (m *Manager) warmBuild(name string) string { return m.cfg.Versions[name] + " " + m.cfg.GuestBuild }

// hold keeps an instance still where the engine can; where not it waits running.
func hold(ctx context.Context, eng engine.Engine, h engine.Handle) error {
	if err := engine.Hold(ctx, eng, h); !errors.Is(err, engine.ErrUnsupported) {
		return err
	}
	return nil
}

// mark notes beside the journal, which one process reads alone, that an instance
// is nobody's. It is there only while that is so for certain.
func (m *Manager) mark(instance engine.InstanceID) error {
	if m.cfg.WarmDir == "" {
		return nil
	}
	if err := os.MkdirAll(m.cfg.WarmDir, 0o700); err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	if err := os.WriteFile(filepath.Join(m.cfg.WarmDir, string(instance)), nil, 0o600); err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	return nil
}

func (m *Manager) unmark(instance engine.InstanceID) error {
	if m.cfg.WarmDir == "" {
		return nil
	}
	if err := os.Remove(filepath.Join(m.cfg.WarmDir, string(instance))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("manager: %w", err)
	}
	return nil
}

// unmarkOthers removes marks of what the journal does not know as nobody's.
func (m *Manager) unmarkOthers(list []journal.Warm) error {
	if m.cfg.WarmDir == "" {
		return nil
	}
	entries, err := os.ReadDir(m.cfg.WarmDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	for _, e := range entries {
		instance := engine.InstanceID(e.Name())
		if slices.ContainsFunc(list, func(w journal.Warm) bool { return w.Record.Instance == instance && w.Record.Phase == journal.PhaseWarm }) {
			continue
		}
		if err := m.unmark(instance); err != nil {
			return err
		}
	}
	return nil
}
