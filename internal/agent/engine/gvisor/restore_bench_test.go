package gvisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
)

// The engine's checkpoint and restore beside runsc's own, in turn, so that what
// the machine does besides hits both alike. Each benchmark measures pairs and
// reports medians; the time of an iteration says nothing.

// pair collects two series.
type pair struct{ raw, ours []time.Duration }

func (p *pair) report(b *testing.B, what string) {
	b.Helper()
	slices.Sort(p.raw)
	slices.Sort(p.ours)
	raw, ours := p.raw[len(p.raw)/2], p.ours[len(p.ours)/2]
	b.ReportMetric(float64(raw.Microseconds())/1000, what+"-raw-ms")
	b.ReportMetric(float64(ours.Microseconds())/1000, what+"-ms")
	b.ReportMetric(float64(ours)/float64(raw), what+"-ratio")
}

// timed adds what f took.
func timed(b *testing.B, to *[]time.Duration, f func()) {
	b.Helper()
	began := time.Now()
	f()
	*to = append(*to, time.Since(began))
}

// fill makes an instance whose guest has so much in memory.
func (w *world) filled(b *testing.B, e *gvisor.Engine, mib int) (engine.Spec, engine.Handle) {
	b.Helper()
	spec := w.spec(b)
	spec.Resources.MemoryBytes = int64(mib+256) << 20
	h := startInstance(b, e, spec)
	b.Cleanup(func() { destroyInstance(b, e, spec.ID) })
	answered(b, e, h)
	if mib > 0 {
		if err := get(b, e, h, fmt.Sprintf("/alloc?bytes=%d", mib<<20)); err != nil {
			b.Fatal(err)
		}
	}
	return spec, h
}

// rawRunsc runs a client as the engine would, on its instances.
func (w *world) rawRunsc(b *testing.B, spec engine.Spec, args ...string) {
	b.Helper()
	r := raw{runsc: w.cfg.Runsc, flags: []string{
		"--root=" + filepath.Join(w.cfg.StateDir, "runsc"), "--network=sandbox", "--allow-suid", "--allow-connected-on-save",
		fmt.Sprintf("--overlay2=root:dir=%s,size=%d", filepath.Join(spec.WorkDir, "disk"), spec.Resources.DiskBytes),
		"--directfs=false", "--platform=systrap", "--host-uds=none",
	}}
	r.run(b, append(args, string(spec.ID))...)
}

func BenchmarkCheckpointBesideRaw(b *testing.B) {
	for _, mib := range []int{0, 64} {
		b.Run(fmt.Sprintf("%dMiB", mib), func(b *testing.B) {
			w := newWorld(b)
			e := w.engine(b)
			spec, h := w.filled(b, e, mib)
			var pause, snapshot, disk pair
			into := func(f func(dir string)) func() {
				return func() {
					dir := b.TempDir()
					f(dir)
					_ = os.RemoveAll(dir)
				}
			}
			turns := []func(){
				into(func(dir string) {
					timed(b, &snapshot.raw, func() { w.rawRunsc(b, spec, "checkpoint", "-leave-running", "-image-path="+dir) })
				}),
				into(func(dir string) {
					timed(b, &snapshot.ours, func() { take(b, e, h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}) })
				}),
				into(func(dir string) {
					timed(b, &pause.ours, func() { take(b, e, h, engine.CheckpointOptions{Dir: dir}) })
					if err := e.Thaw(b.Context(), h); err != nil {
						b.Fatal(err)
					}
				}),
				into(func(dir string) {
					timed(b, &disk.raw, func() { w.rawRunsc(b, spec, "fscheckpoint", "-leave-running", "-image-path="+dir) })
				}),
				into(func(dir string) {
					timed(b, &disk.ours, func() {
						take(b, e, h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true, DiskOnly: true})
					})
				}),
			}
			// None has always the same one before it: what one wrote, the disk does
			// during the next.
			for round := 0; b.Loop(); round++ {
				for i := range turns {
					turns[(i*(1+round%(len(turns)-1))+round)%len(turns)]()
				}
			}
			pause.raw = slices.Clone(snapshot.raw)
			pause.report(b, "pause")
			snapshot.report(b, "snapshot")
			disk.report(b, "disk")
		})
	}
}

func take(b *testing.B, e engine.Engine, h engine.Handle, opts engine.CheckpointOptions) {
	b.Helper()
	if err := e.Checkpoint(b.Context(), h, opts); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRestoreBesideRaw is one restore, and a fork of eight, up to every
// copy's first answer.
func BenchmarkRestoreBesideRaw(b *testing.B) {
	for _, n := range []int{1, 8} {
		b.Run(fmt.Sprintf("%dcopies", n), func(b *testing.B) {
			w := newWorld(b)
			e := w.engine(b)
			_, h := w.filled(b, e, 0)
			dir := b.TempDir()
			take(b, e, h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true})
			var p pair
			for b.Loop() {
				raws := make([]raw, n)
				for i := range raws {
					raws[i] = w.raw(b, e)
				}
				var wg sync.WaitGroup
				timed(b, &p.raw, func() {
					for _, r := range raws {
						wg.Go(func() {
							r.run(b, "restore", "-detach", "-background", "-bundle="+r.bundle, "-image-path="+dir, r.id)
							answered(b, rawDialer{e, r.addr}, nil)
						})
					}
					wg.Wait()
				})
				for _, r := range raws {
					r.run(b, "delete", "-force", r.id)
				}
				specs := make([]engine.Spec, n)
				for i := range specs {
					specs[i] = w.spec(b)
				}
				timed(b, &p.ours, func() {
					for _, spec := range specs {
						wg.Go(func() {
							h, err := e.Prepare(b.Context(), spec)
							if err == nil {
								h, err = e.Restore(b.Context(), h, dir)
							}
							if err != nil {
								b.Error(err)
								return
							}
							answered(b, e, h)
						})
					}
					wg.Wait()
				})
				for _, spec := range specs {
					destroyInstance(b, e, spec.ID)
				}
			}
			p.report(b, "restore")
		})
	}
}

// BenchmarkCheckpoint512 is the pause of 512 MiB of dirty memory beside writing
// as much to the same disk, both until it is safe there.
func BenchmarkCheckpoint512(b *testing.B) {
	const mib = 512
	w := newWorld(b)
	e := w.engine(b)
	_, h := w.filled(b, e, mib)
	var p, unsynced pair
	for b.Loop() {
		dir := b.TempDir()
		timed(b, &p.raw, func() { plainWrite(b, filepath.Join(dir, "plain"), mib) })
		_ = os.Remove(filepath.Join(dir, "plain"))
		began := time.Now()
		timed(b, &unsynced.ours, func() { take(b, e, h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}) })
		syncAll(b, dir)
		p.ours = append(p.ours, time.Since(began))
		_ = os.RemoveAll(dir)
	}
	unsynced.raw = slices.Clone(p.raw)
	unsynced.report(b, "unsynced")
	p.report(b, "synced")
	b.ReportMetric(mib/p.ours[len(p.ours)/2].Seconds(), "MiB/s")
	b.ReportMetric(mib/p.raw[len(p.raw)/2].Seconds(), "plain-MiB/s")
}

func plainWrite(b *testing.B, path string, mib int) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for range mib {
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

func syncAll(b *testing.B, dir string) {
	b.Helper()
	files, err := engine.FilesOf(dir)
	if err != nil {
		b.Fatal(err)
	}
	for name := range files {
		f, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			err = unix.Fsync(int(f.Fd()))
			_ = f.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
