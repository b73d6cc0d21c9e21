package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/instance"
)

const (
	// pool is how many instances are kept ready for a burst, and how wide it is.
	pool = 100
	// coldWidth is how wide a burst is without them.
	coldWidth = 32
	// warmRounds is how many starts are measured one after the other.
	warmRounds = 100
)

// pooled restarts the installation with so many instances kept ready, and waits
// until they are; without them again at the end.
func pooled(b *testing.B, n int) {
	b.Helper()
	restart := func(n int) {
		if err := skerry.Stop(); err != nil {
			b.Fatal(err)
		}
		skerry.Set("SKERRY_WARM_POOL="+strconv.Itoa(n), "SKERRY_AGENT_WARM="+strconv.Itoa(n), "SKERRY_CPU_OVERCOMMIT=1000", "SKERRY_MEMORY_OVERCOMMIT=1000")
		if err := skerry.Start(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	// What sandboxes may write is reserved in full: a hundred of the usual size fit
	// on few machines.
	resized(b, 512)
	restart(n)
	refilled(b, n)
	b.Cleanup(func() {
		resized(b, 4096)
		restart(0)
	})
}

// resized changes the default disk of the default template.
func resized(b *testing.B, mb int) {
	b.Helper()
	pid, err := os.ReadFile(filepath.Join(skerry.Data, "postgres", "postmaster.pid"))
	if err != nil {
		b.Fatal(err)
	}
	lines := strings.Split(string(pid), "\n") // its port and its socket's directory are the fourth and the fifth
	if len(lines) < 5 {
		b.Fatalf("postmaster.pid is %q", pid)
	}
	db, err := pgx.Connect(context.Background(), fmt.Sprintf("user=skerry dbname=skerry host=%s port=%s sslmode=disable", lines[4], lines[3]))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close(context.Background())
	if _, err := db.Exec(context.Background(), "UPDATE templates SET disk_mb = $1 WHERE name = 'base' AND deleted_at IS NULL", mb); err != nil {
		b.Fatal(err)
	}
}

// refilled waits until so many instances wait.
func refilled(b *testing.B, n int) {
	b.Helper()
	testkit.Eventually(b, 5*time.Minute, "instances that wait", func() bool { return skerry.Waiting() >= n })
}

// start creates a sandbox and runs its first command; how long both took.
func start() (id string, create, all time.Duration, err error) {
	began := time.Now()
	var made instance.Sandbox
	if _, err := skerry.Try(context.Background(), "POST", "/v1/sandboxes", map[string]any{"template": "base"}, &made); err != nil {
		return "", 0, 0, err
	}
	create = time.Since(began)
	var result instance.ExecResult
	_, err = skerry.Try(context.Background(), "POST", "/v1/sandboxes/"+made.ID+"/exec", map[string]any{"cmd": "/bin/true", "args": []string{}}, &result)
	return made.ID, create, time.Since(began), err
}

// BenchmarkWarmStart is a create through the API that takes an instance which
// waits, up to the end of its first command.
func BenchmarkWarmStart(b *testing.B) {
	pooled(b, 8)
	for b.Loop() {
		var creates, all series
		for n := range warmRounds + 5 {
			refilled(b, 8)
			id, create, took, err := start()
			if err != nil {
				b.Fatal(err)
			}
			if n >= 5 {
				creates, all = append(creates, create), append(all, took)
			}
			remove(b, id)
		}
		b.ReportMetric(milliseconds(creates.at(.5)), "create-p50-ms")
		b.ReportMetric(milliseconds(all.at(.5)), "command-p50-ms")
		b.ReportMetric(milliseconds(all.at(.99)), "command-p99-ms")
	}
}

// BenchmarkWarmBurst starts as many sandboxes at once as wait, after it looked at
// what they use while they wait: each of them, of the whole cgroup, in ten seconds.
func BenchmarkWarmBurst(b *testing.B) {
	pooled(b, pool)
	all := filepath.Dir(leaves(b)[0])
	for b.Loop() {
		refilled(b, pool)
		cpu := cgroupNumber(b, all, "cpuacct", "cpuacct.usage")
		<-time.After(10 * time.Second)
		b.ReportMetric(float64(cgroupNumber(b, all, "cpuacct", "cpuacct.usage")-cpu)/1e6/10/pool, "idle-cpu-ms/s")
		refilled(b, pool)
		took := burst(b, pool)
		b.ReportMetric(milliseconds(took.at(.5)), "command-p50-ms")
		b.ReportMetric(milliseconds(took.at(.99)), "command-p99-ms")
	}
}

// burst starts so many at once, each up to its first command, and removes them.
func burst(b *testing.B, width int) series {
	b.Helper()
	ids, took, failed := make([]string, width), make(series, width), make([]error, width)
	var wg sync.WaitGroup
	for i := range width {
		wg.Go(func() { ids[i], _, took[i], failed[i] = start() })
	}
	wg.Wait()
	for i, id := range ids {
		if failed[i] != nil {
			b.Errorf("start %d: %v", i, failed[i])
		}
		if id != "" {
			wg.Go(func() { remove(b, id) })
		}
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return took
}

// BenchmarkColdBurst starts many sandboxes at once where none wait, beside the
// bare engine at the same width.
func BenchmarkColdBurst(b *testing.B) {
	raw := newBare(b)
	for b.Loop() {
		var ours, bare series
		for range 3 {
			ours = append(ours, burst(b, coldWidth)...)
			bare = append(bare, raw.burst(b, coldWidth)...)
		}
		b.ReportMetric(milliseconds(ours.at(.5)), "ours-p50-ms")
		b.ReportMetric(milliseconds(ours.at(.99)), "ours-p99-ms")
		b.ReportMetric(milliseconds(bare.at(.5)), "bare-p50-ms")
		b.ReportMetric(milliseconds(bare.at(.99)), "bare-p99-ms")
		b.ReportMetric(float64(ours.at(.5))/float64(bare.at(.5)), "ratio-p50")
		b.ReportMetric(float64(ours.at(.99))/float64(bare.at(.99)), "ratio-p99")
	}
}

// burst starts so many by hand at once, on what was placed before, each up to its
// first command.
func (r *bare) burst(b *testing.B, width int) series {
	b.Helper()
	all, took := make([]*one, width), make(series, width)
	for i := range all {
		all[i] = r.place(b)
	}
	init, err := json.Marshal(guestapi.Init{DefaultUser: "user"})
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, o := range all {
		wg.Go(func() {
			began := time.Now()
			o.begin(b, "run")
			res, err := post(context.Background(), o.client, o.url+guestapi.PathInit, http.Header{guestapi.HeaderInit: {secret}}, json.RawMessage(init))
			if err != nil {
				b.Error(err)
				return
			}
			res.Body.Close()
			o.spawn(b)
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	for _, o := range all {
		wg.Go(func() { o.remove(b) })
	}
	wg.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return took
}
