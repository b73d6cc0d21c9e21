package gvisor_test

import (
	"bytes"
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
)

// A disk that one build wrote is booted from by another, once what boots from it
// was saved there.
func TestP7_ADiskOutlivesItsBuild(t *testing.T) {
	w := newWorld(t)
	w.cfg.BuildsDir = filepath.Join(w.dir, "b")
	old := w.engine(t)
	_, h := running(t, w, old)
	if err := post(t, old, h, "/file?path=/note", []byte("of old")); err != nil {
		t.Fatal(err)
	}
	if err := old.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk.tar")
	f, err := os.Create(path)
	if err == nil {
		err = old.RootTar(t.Context(), h, f) // of one that is held
	}
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	e, version := w.upgraded(t)
	spec := w.spec(t)
	boot, err := e.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
	if boot, err = e.StartWithDisk(t.Context(), boot, path); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := e.Checkpoint(t.Context(), boot, engine.CheckpointOptions{Dir: dir, DiskOnly: true}); err != nil {
		t.Fatal(err)
	}
	fresh, back := w.restored(t, e, dir)
	w.runs(t, fresh.ID, version)
	var got bytes.Buffer
	res, err := enginetest.Client(e, back).Get("http://guest/file?path=/note")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := got.ReadFrom(res.Body); err != nil || res.StatusCode != http.StatusOK || !bytes.Contains(got.Bytes(), []byte("of old")) {
		t.Errorf("the file: %d %q, %v", res.StatusCode, got.String(), err)
	}
	// It is saved with its memory like any other.
	dir = t.TempDir()
	if err := e.Checkpoint(t.Context(), back, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		t.Fatal(err)
	}
	w.restored(t, e, dir)
}

// BenchmarkDiskBesideCheckpoint is what it would cost a pause to write the disk
// once more, in the portable form: 256 MB of it that do not compress.
func BenchmarkDiskBesideCheckpoint(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	spec := w.spec(b)
	h, err := e.Prepare(b.Context(), spec)
	if err == nil {
		h, err = e.Start(b.Context(), h)
	}
	b.Cleanup(func() { destroyInstance(b, e, spec.ID) })
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256<<20)
	_, _ = rand.Read(body)
	var res *http.Response
	for range 1000 {
		if res, err = enginetest.Client(e, h).Post("http://guest/file?path=/big", "", bytes.NewReader(body)); err == nil {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	if err != nil || res.StatusCode != http.StatusOK {
		b.Fatal(res, err)
	}
	_ = res.Body.Close()
	var image, archive time.Duration
	for b.Loop() {
		began := time.Now()
		if err := e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: b.TempDir()}); err != nil {
			b.Fatal(err)
		}
		image += time.Since(began)
		f, err := os.Create(filepath.Join(b.TempDir(), "disk.tar"))
		if err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		if err := e.RootTar(b.Context(), h, f); err != nil {
			b.Fatal(err)
		}
		archive += time.Since(began)
		_ = f.Close()
		if err := e.Thaw(b.Context(), h); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(image.Milliseconds())/float64(b.N), "ms/checkpoint")
	b.ReportMetric(float64(archive.Milliseconds())/float64(b.N), "ms/archive")
}
