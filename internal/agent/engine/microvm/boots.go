package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
)

// A machine that has booted and waits to be told its workload is the same for
// all workloads: it has seen neither disks nor address. So the first of its kind
// is kept, and all others begin where it was. They have their own clock and
// randomness before anything else; what they share is where their kernel lies
// in memory, and the keys it made at boot.

// errBooted: a start from a machine that was booted ahead failed. A boot may do.
var errBooted = errors.New("microvm: start from a machine booted ahead")

// mostBoots bounds what is kept; each is some 60 MB.
const mostBoots = 8

// bootKey names what a machine's boot depends on. What another run of the host
// has written is not trusted: it was not synced.
func (e *Engine) bootKey(ctx context.Context, k kit.Kit, r *record) string {
	version := e.Probe(ctx).Version
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%d\n%d\n%d\n", e.bootID, k.Digest, version,
		r.Machine.MemoryBytes, r.Machine.CPUs, len(r.Roots)))
	return hex.EncodeToString(sum[:16])
}

// bootedAhead finds a machine like the one r is to be, nil when there is none.
func (e *Engine) bootedAhead(ctx context.Context, k kit.Kit, r *record) *source {
	s := &source{dir: filepath.Join(e.cfg.BootsDir, e.bootKey(ctx, k, r))}
	if engine.ReadCheckpointAs(s.dir, &s.meta) != nil || s.Whole(s.dir) != nil {
		return nil
	}
	now := time.Now()
	_ = os.Chtimes(s.dir, now, now) // used lately
	return s
}

// forgetBoot removes one that does not do.
func (e *Engine) forgetBoot(s *source) { _ = os.RemoveAll(s.dir) }

// keepBoot keeps the machine of r, which has booted and waits, for those after
// it. Only what leaves that machine standing still is an error.
func (e *Engine) keepBoot(ctx context.Context, k kit.Kit, r *record) error {
	if !e.boots.TryLock() {
		return nil // another one is being kept
	}
	defer e.boots.Unlock()
	key := e.bootKey(ctx, k, r)
	e.pruneBoots()
	tmp := filepath.Join(e.cfg.BootsDir, newPrefix+string(r.ID))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		e.cfg.Logger.Warn("a booted machine cannot be kept", "error", err)
		return nil
	}
	defer os.RemoveAll(tmp)
	err := e.saveMachine(ctx, r, tmp)
	if err == nil {
		m := meta{CheckpointInfo: engine.CheckpointInfo{Format: engine.CheckpointFormat, Engine: name, Memory: true}, Machine: r.Machine}
		if m.Files, err = engine.FilesOf(tmp); err == nil {
			err = engine.WriteCheckpointAs(tmp, m)
		}
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(e.cfg.BootsDir, key))
	}
	if err != nil {
		e.cfg.Logger.Warn("a booted machine cannot be kept", "error", err)
	}
	return e.monitored(ctx, r, func(m *monitor) error { return m.do("cont", nil, nil) })
}

const newPrefix = ".new-"

// pruneBoots makes room for one more: what is cut off goes, and what was used
// longest ago. A start that was about to use it boots instead.
func (e *Engine) pruneBoots() {
	entries, err := os.ReadDir(e.cfg.BootsDir)
	if err != nil {
		return
	}
	type boot struct {
		path string
		used time.Time
	}
	var kept []boot
	for _, entry := range entries {
		path := filepath.Join(e.cfg.BootsDir, entry.Name())
		info, err := entry.Info()
		switch {
		case err != nil:
		case strings.HasPrefix(entry.Name(), newPrefix):
			_ = os.RemoveAll(path)
		default:
			kept = append(kept, boot{path, info.ModTime()})
		}
	}
	slices.SortFunc(kept, func(a, b boot) int { return b.used.Compare(a.used) })
	for i, b := range kept {
		if i >= mostBoots-1 {
			_ = os.RemoveAll(b.path)
		}
	}
}
