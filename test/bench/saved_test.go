package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/test/instance"
)

// savedRounds is how many pairs each comparison of saving takes.
const savedRounds = 20

// modest is a sandbox of which nine fit on a small machine.
func modest() map[string]any {
	return map[string]any{"template": "base", "vcpus": 1, "memory_mb": 256, "disk_mb": 1024, "timeout_sec": 7200}
}

// running is a sandbox in which a command has run.
func running(b *testing.B, request map[string]any) instance.Sandbox {
	b.Helper()
	var box instance.Sandbox
	skerry.Must(b, "POST", "/v1/sandboxes", request, &box)
	b.Cleanup(func() { remove(b, box.ID) })
	exec(b, box.ID)
	return box
}

func remove(b *testing.B, id string) {
	b.Helper()
	if _, err := skerry.Try(context.Background(), "DELETE", "/v1/sandboxes/"+id, nil, nil); err != nil {
		b.Error(err)
	}
}

// do posts to a sandbox.
func do(b *testing.B, id, verb string) {
	b.Helper()
	skerry.Must(b, "POST", "/v1/sandboxes/"+id+"/"+verb, map[string]any{}, nil)
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// images makes directories for raw checkpoints, one at a time.
type images struct {
	b    *testing.B
	last string
}

func (i *images) next() string {
	i.b.Helper()
	i.drop()
	var err error
	if i.last, err = os.MkdirTemp(skerry.Data, "image-"); err != nil {
		i.b.Fatal(err)
	}
	return i.last
}

func (i *images) drop() {
	if i.last != "" {
		if err := os.RemoveAll(i.last); err != nil {
			i.b.Error(err)
		}
	}
}

// BenchmarkPause is a pause through the API, beside runsc's checkpoint of the
// same sandbox, which writes as much but makes sure of nothing.
func BenchmarkPause(b *testing.B) {
	raw := newBareLike(b, modest())
	box := running(b, modest())
	dirs := &images{b: b}
	defer dirs.drop()
	one := raw.start(b)
	one.spawn(b)
	defer func() { one.remove(b) }()
	compareIn(b, savedRounds,
		func() time.Duration {
			took := timed(func() { do(b, box.ID, "pause") })
			do(b, box.ID, "resume")
			exec(b, box.ID)
			return took
		},
		func() time.Duration {
			dir := dirs.next()
			took := timed(func() { one.checkpoint(b, dir) })
			one.remove(b)
			one = raw.place(b)
			one.restore(b, dir)
			one.spawn(b)
			return took
		})
}

// BenchmarkResume is a resume through the API up to the first answered command,
// beside runsc's restore up to the first spawn.
func BenchmarkResume(b *testing.B) {
	raw := newBareLike(b, modest())
	box := running(b, modest())
	dirs := &images{b: b}
	defer dirs.drop()
	one := raw.start(b)
	one.spawn(b)
	defer func() { one.remove(b) }()
	compareIn(b, savedRounds,
		func() time.Duration {
			do(b, box.ID, "pause")
			return timed(func() {
				do(b, box.ID, "resume")
				exec(b, box.ID)
			})
		},
		func() time.Duration {
			dir := dirs.next()
			one.checkpoint(b, dir)
			one.remove(b)
			one = raw.place(b)
			return timed(func() {
				one.restore(b, dir)
				one.spawn(b)
			})
		})
}

// BenchmarkSnapshot is a snapshot of a running sandbox, beside runsc's
// checkpoint that leaves it running.
func BenchmarkSnapshot(b *testing.B) {
	box := running(b, modest())
	one := newBareLike(b, modest()).start(b)
	defer one.remove(b)
	one.spawn(b)
	dirs := &images{b: b}
	defer dirs.drop()
	compareIn(b, savedRounds,
		func() time.Duration {
			return timed(func() {
				skerry.Must(b, "POST", "/v1/snapshots", map[string]any{"sandbox_id": box.ID, "name": "bench", "overwrite": true}, nil)
			})
		},
		func() time.Duration {
			dir := dirs.next()
			return timed(func() { one.checkpoint(b, dir, "-leave-running") })
		})
	skerry.Must(b, "DELETE", "/v1/snapshots/bench", nil, nil)
}

// BenchmarkForkOfEight is eight copies of a paused sandbox up to the first
// answered command in each, beside eight restores by runsc at once.
func BenchmarkForkOfEight(b *testing.B) {
	const copies = 8
	raw := newBareLike(b, modest())
	box := running(b, modest())
	do(b, box.ID, "pause")
	dirs := &images{b: b}
	defer dirs.drop()
	source := raw.start(b)
	source.spawn(b)
	dir := dirs.next()
	source.checkpoint(b, dir)
	defer source.remove(b)
	compareIn(b, savedRounds,
		func() time.Duration {
			var made struct{ Items []instance.Sandbox }
			took := timed(func() {
				skerry.Must(b, "POST", "/v1/sandboxes/"+box.ID+"/fork", map[string]any{"count": copies}, &made)
				var wg sync.WaitGroup
				for _, x := range made.Items {
					wg.Go(func() { exec(b, x.ID) })
				}
				wg.Wait()
			})
			for _, x := range made.Items {
				remove(b, x.ID)
			}
			return took
		},
		func() time.Duration {
			all := make([]*one, copies)
			for i := range all {
				all[i] = raw.place(b)
			}
			took := timed(func() {
				var wg sync.WaitGroup
				for _, o := range all {
					wg.Go(func() {
						o.restore(b, dir)
						o.spawn(b)
					})
				}
				wg.Wait()
			})
			for _, o := range all {
				o.remove(b)
			}
			return took
		})
}

// BenchmarkPauseDirty is the pause of a sandbox with 512 MB of random memory,
// in MB/s, beside as much written and synced to the same disk.
func BenchmarkPauseDirty(b *testing.B) {
	const dirty = 512
	request := modest()
	request["memory_mb"] = 1024
	box := running(b, request)
	fill := fmt.Sprintf(`setsid python3 -c '
import os,time
x=[os.urandom(1<<20) for _ in range(%d)]
open("/tmp/full","w").close()
while True: time.sleep(3600)' </dev/null >/dev/null 2>&1 & until [ -e /tmp/full ]; do sleep 0.1; done; echo full`, dirty)
	var result instance.ExecResult
	skerry.Must(b, "POST", "/v1/sandboxes/"+box.ID+"/exec", map[string]any{"cmd": fill}, &result)
	if result.Stdout != "full\n" {
		b.Fatalf("filling the memory: %+v", result)
	}
	block := make([]byte, 1<<20)
	_, _ = rand.Read(block) // never fails
	for b.Loop() {
		var pause, disk series
		for range 5 {
			pause = append(pause, timed(func() { do(b, box.ID, "pause") }))
			do(b, box.ID, "resume")
			disk = append(disk, timed(func() { writeSynced(b, block, dirty) }))
		}
		b.ReportMetric(dirty/pause.at(.5).Seconds(), "pause-MB/s")
		b.ReportMetric(dirty/disk.at(.5).Seconds(), "disk-MB/s")
		b.ReportMetric(float64(pause.at(.5))/float64(disk.at(.5)), "ratio-p50")
	}
}

func writeSynced(b *testing.B, block []byte, count int) {
	b.Helper()
	path := filepath.Join(skerry.Data, "written")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	for range count {
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(path)); err != nil {
		b.Fatal(err)
	}
}
