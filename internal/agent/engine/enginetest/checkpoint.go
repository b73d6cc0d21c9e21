package enginetest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"skerry.dev/skerry/internal/agent/engine"
)

// busy starts an instance with something in memory and on disk.
func busy(b *bench) (engine.Spec, engine.Handle) {
	b.Helper()
	if !b.e.Probe(b.Context()).Checkpoint {
		b.Skip("this engine makes no checkpoints")
	}
	spec := b.Spec(b.T)
	h := b.start(spec)
	b.keep(h, "in memory")
	b.writeFile(h, "/note", "on disk")
	return spec, h
}

func (b *bench) restore(spec engine.Spec, dir string) engine.Handle {
	b.Helper()
	h, err := b.e.Restore(b.Context(), b.prepare(spec), dir)
	if err != nil {
		b.Fatalf("restore: %v", err)
	}
	b.up(h)
	return h
}

func checkpoint(b *bench) {
	_, h := busy(b)
	dir := b.TempDir()
	if err := b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		b.Fatal(err)
	}
	// The source goes on, and what it does now is not in the image.
	if b.kept(h) != "in memory" {
		b.Error("the source has lost its memory")
	}
	b.keep(h, "later")
	b.writeFile(h, "/note", "later")

	twice := []engine.Handle{b.restore(b.Spec(b.T), dir), b.restore(b.Spec(b.T), dir)}
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	for _, r := range twice {
		if b.kept(r) != "in memory" || b.readFile(r, "/note") != "on disk" {
			b.Errorf("restored: %q, %q", b.kept(r), b.readFile(r, "/note"))
		}
	}
	b.keep(twice[0], "mine")
	if b.kept(twice[1]) != "in memory" || b.kept(h) != "later" {
		b.Error("instances share memory")
	}
	b.restartAgent()
	r, err := b.e.Recover(b.Context(), twice[0])
	if err != nil || b.kept(r) != "mine" {
		b.Errorf("recover a restored instance: %v", err)
	}
}

func checkpointStops(b *bench) {
	spec, h := busy(b)
	dir := b.TempDir()
	if err := b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
		b.Fatal(err)
	}
	// Frozen, and alive until the caller has made the image safe: the way back
	// is open as well.
	if err := b.e.Thaw(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	if b.kept(h) != "in memory" {
		b.Error("the source has lost its memory")
	}
	if err := b.e.Stop(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	b.exit(h)
	b.destroy(spec.ID)
	bigger := b.Spec(b.T)
	bigger.Resources.MemoryBytes *= 2
	r := b.restore(bigger, dir)
	if b.kept(r) != "in memory" || b.readFile(r, "/note") != "on disk" {
		b.Errorf("restored: %q, %q", b.kept(r), b.readFile(r, "/note"))
	}
}

func checkpointDisk(b *bench) {
	_, h := busy(b)
	dir := b.TempDir()
	if err := b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true, DiskOnly: true}); err != nil {
		b.Fatal(err)
	}
	b.writeFile(h, "/note", "later")
	r := b.restore(b.Spec(b.T), dir)
	if b.kept(r) != "" || b.readFile(r, "/note") != "on disk" {
		b.Errorf("restored: %q, %q", b.kept(r), b.readFile(r, "/note"))
	}
}

func checkpointFails(b *bench) {
	_, h := busy(b)
	taken := b.TempDir()
	if err := os.WriteFile(filepath.Join(taken, "mine"), nil, 0o600); err != nil {
		b.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(b.TempDir(), "missing"), taken} {
		for _, leave := range []bool{true, false} {
			if err := b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: leave}); err == nil {
				b.Errorf("checkpoint to %s succeeded", dir)
			}
			if b.kept(h) != "in memory" {
				b.Error("the instance is damaged")
			}
		}
	}
	if _, err := os.Stat(filepath.Join(taken, "mine")); err != nil {
		b.Errorf("another's file was removed: %v", err)
	}
}

func restoreDamage(b *bench) {
	_, h := busy(b)
	dir := b.TempDir()
	if err := b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		b.Fatal(err)
	}
	largest := ""
	var size int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.Size() >= size {
			largest, size = filepath.Join(dir, entry.Name()), info.Size()
		}
	}
	if err := os.Truncate(largest, size/2); err != nil {
		b.Fatal(err)
	}
	spec := b.Spec(b.T)
	prepared := b.prepare(spec)
	for _, dir := range []string{dir, b.TempDir()} {
		if _, err := b.e.Restore(b.Context(), prepared, dir); err == nil {
			b.Error("a damaged checkpoint was restored")
		}
	}
	// It can still be started, or removed.
	if _, err := b.e.Start(b.Context(), prepared); err != nil {
		b.Errorf("start after a refused restore: %v", err)
	}
	b.destroy(spec.ID)
	found, err := b.e.Inventory(b.Context())
	if err != nil || slices.ContainsFunc(found, func(f engine.Found) bool { return f.ID == spec.ID }) {
		b.Errorf("%v %v", found, errors.Join(err))
	}
}
