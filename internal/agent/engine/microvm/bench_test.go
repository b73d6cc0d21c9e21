package microvm_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

// answers returns when the guest has answered once.
func answers(tb testing.TB, e engine.Engine, h engine.Handle) {
	tb.Helper()
	testkit.Eventually(tb, time.Minute, "the guest answers", func() bool {
		ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
		defer cancel()
		c, err := e.Dial(ctx, h, 7000)
		if err != nil {
			return false
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /keep HTTP/1.0\r\n\r\n")); err != nil {
			return false
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		return err == nil && strings.Contains(line, "200")
	})
}

// BenchmarkStart: to the workload running, and to its first answer.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	answers(b, e, start(b, e, w.spec(b))) // one that is booted
	var running, answered time.Duration
	for range b.N {
		spec := w.spec(b)
		h, err := e.Prepare(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		if h, err = e.Start(b.Context(), h); err != nil {
			b.Fatal(err)
		}
		running += time.Since(began)
		answers(b, e, h)
		answered += time.Since(began)
		if err := e.Destroy(b.Context(), spec.ID); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(running.Milliseconds())/float64(b.N), "running-ms")
	b.ReportMetric(float64(answered.Milliseconds())/float64(b.N), "answer-ms")
}

// BenchmarkCheckpoint: the source stands still and goes on; then a copy runs and
// answers; with 64 MB dirtied and without.
func BenchmarkCheckpoint(b *testing.B) {
	for _, dirty := range []int{0, 64_000_000} {
		b.Run(fmt.Sprintf("dirty=%dMB", dirty/1_000_000), func(b *testing.B) {
			w := newWorld(b)
			e := w.engine(b)
			h := start(b, e, w.spec(b))
			answers(b, e, h)
			if dirty > 0 {
				if err := get(b, e, h, http.MethodPost, fmt.Sprintf("/alloc?bytes=%d", dirty), nil); err != nil {
					b.Fatal(err)
				}
			}
			var still, running, answered time.Duration
			var size int64
			for range b.N {
				dir := b.TempDir()
				began := time.Now()
				if err := e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
					b.Fatal(err)
				}
				still += time.Since(began)
				size = 0
				for _, name := range []string{"memory", "devices", "disk"} {
					if st, err := os.Stat(filepath.Join(dir, name)); err == nil {
						size += st.Size()
					}
				}
				spec := w.spec(b)
				prepared, err := e.Prepare(b.Context(), spec)
				if err != nil {
					b.Fatal(err)
				}
				began = time.Now()
				r, err := e.Restore(b.Context(), prepared, dir)
				if err != nil {
					b.Fatal(err)
				}
				running += time.Since(began)
				answers(b, e, r)
				answered += time.Since(began)
				if err := e.Destroy(b.Context(), spec.ID); err != nil {
					b.Fatal(err)
				}
			}
			n := float64(b.N)
			b.ReportMetric(float64(still.Milliseconds())/n, "checkpoint-ms")
			b.ReportMetric(float64(size)/1e6, "checkpoint-MB")
			b.ReportMetric(float64(running.Milliseconds())/n, "restore-ms")
			b.ReportMetric(float64(answered.Milliseconds())/n, "restore-answer-ms")
		})
	}
}

// BenchmarkForkOfEight: eight copies of one checkpoint at once, to the last
// one's first answer, and what each takes of the host.
func BenchmarkForkOfEight(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	h := start(b, e, w.spec(b))
	answers(b, e, h)
	dir := b.TempDir()
	if err := e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true}); err != nil {
		b.Fatal(err)
	}
	var answered time.Duration
	var pss int64
	for range b.N {
		specs := make([]engine.Spec, 8)
		for i := range specs {
			specs[i] = w.spec(b)
		}
		copies := make([]engine.Handle, 8)
		began := time.Now()
		var wg sync.WaitGroup
		for i, spec := range specs {
			wg.Go(func() {
				r, err := e.Prepare(b.Context(), spec)
				if err == nil {
					r, err = e.Restore(b.Context(), r, dir)
				}
				if err != nil {
					b.Error(err)
					return
				}
				answers(b, e, r)
				copies[i] = r
			})
		}
		wg.Wait()
		if b.Failed() {
			return
		}
		answered += time.Since(began)
		pss = 0
		for i, r := range copies {
			pss += proportional(b, pid(b, r))
			if err := e.Destroy(b.Context(), specs[i].ID); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(answered.Milliseconds())/float64(b.N), "all-answer-ms")
	b.ReportMetric(float64(pss)/8/1e6, "PSS-MB/copy")
}

// proportional is the process's share of the host's memory in bytes.
func proportional(tb testing.TB, pid int) int64 {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kb << 10
		}
	}
	tb.Fatal("no Pss")
	return 0
}
