// Package bench measures what a user waits for, beside the bare engine doing
// the same in the same run: figures are medians and ratios, since absolute ones
// say more about the machine.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/test/instance"
)

var skerry *instance.Instance

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: run as root")
		os.Exit(1)
	}
	var err error
	if skerry, err = instance.New(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := skerry.Purge(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: purge:", err)
		code = 1
	}
	os.Exit(code)
}

// rounds is how many pairs each comparison takes.
const rounds = 30

// series is what was measured of one thing.
type series []time.Duration

func (s series) at(quantile float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(quantile*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// compare runs ours and bare in turn and reports the medians, the 99th
// percentiles and the ratio of the medians.
func compare(b *testing.B, ours, bare func() time.Duration) {
	b.Helper()
	compareIn(b, rounds, ours, bare)
}

func compareIn(b *testing.B, rounds int, ours, bare func() time.Duration) {
	b.Helper()
	for range 2 {
		ours()
		bare()
	}
	for b.Loop() {
		var a, c series
		for range rounds {
			a, c = append(a, ours()), append(c, bare())
		}
		b.ReportMetric(milliseconds(a.at(.5)), "ours-p50-ms")
		b.ReportMetric(milliseconds(a.at(.99)), "ours-p99-ms")
		b.ReportMetric(milliseconds(c.at(.5)), "bare-p50-ms")
		b.ReportMetric(milliseconds(c.at(.99)), "bare-p99-ms")
		b.ReportMetric(float64(a.at(.5))/float64(c.at(.5)), "ratio-p50")
		b.ReportMetric(milliseconds(a.at(.5)-c.at(.5)), "more-p50-ms")
	}
}

// BenchmarkColdStart is a create through the API up to the first answered
// command, beside runsc with the same image and flags up to the first spawn
// through the same daemon.
func BenchmarkColdStart(b *testing.B) {
	raw := newBare(b)
	compare(b,
		func() time.Duration {
			start := time.Now()
			var made instance.Sandbox
			skerry.Must(b, "POST", "/v1/sandboxes", map[string]any{"template": "base"}, &made)
			exec(b, made.ID)
			took := time.Since(start)
			skerry.Must(b, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
			return took
		},
		func() time.Duration {
			start := time.Now()
			one := raw.start(b)
			one.spawn(b)
			took := time.Since(start)
			one.remove(b)
			return took
		})
}

// BenchmarkExec is a command through the API, beside the same spawn straight to
// the daemon of the same sandbox.
func BenchmarkExec(b *testing.B) {
	var box instance.Sandbox
	skerry.Must(b, "POST", "/v1/sandboxes", map[string]any{"template": "base", "timeout_sec": 7200}, &box)
	defer skerry.Must(b, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
	one := newBare(b).start(b)
	defer one.remove(b)
	compare(b,
		func() time.Duration {
			start := time.Now()
			exec(b, box.ID)
			return time.Since(start)
		},
		func() time.Duration {
			start := time.Now()
			one.spawn(b)
			return time.Since(start)
		})
}

// BenchmarkDelete is a delete through the API of a running sandbox, beside kill
// and delete by runsc.
func BenchmarkDelete(b *testing.B) {
	raw := newBare(b)
	compare(b,
		func() time.Duration {
			var made instance.Sandbox
			skerry.Must(b, "POST", "/v1/sandboxes", map[string]any{"template": "base"}, &made)
			start := time.Now()
			skerry.Must(b, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
			return time.Since(start)
		},
		func() time.Duration {
			one := raw.start(b)
			start := time.Now()
			one.remove(b)
			return time.Since(start)
		})
}

// BenchmarkIdle is the memory and CPU of a sandbox that does nothing, beside
// the bare engine's with the same daemon: of the whole cgroup, over ten
// seconds.
func BenchmarkIdle(b *testing.B) {
	var box instance.Sandbox
	before := leaves(b)
	skerry.Must(b, "POST", "/v1/sandboxes", map[string]any{"template": "base", "timeout_sec": 7200}, &box)
	defer skerry.Must(b, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
	exec(b, box.ID)
	var ours string
	for _, leaf := range leaves(b) {
		if !slices.Contains(before, leaf) {
			ours = leaf
		}
	}
	one := newBare(b).start(b)
	defer one.remove(b)
	one.spawn(b)
	for b.Loop() {
		for name, leaf := range map[string]string{"ours": ours, "bare": one.cgroup} {
			cpu := cgroupNumber(b, leaf, "cpuacct", "cpuacct.usage")
			<-time.After(10 * time.Second)
			b.ReportMetric(float64(cgroupNumber(b, leaf, "cpuacct", "cpuacct.usage")-cpu)/1e6/10, name+"-cpu-ms/s")
			b.ReportMetric(float64(resident(b, leaf))/(1<<20), name+"-MiB")
		}
	}
}

func exec(b *testing.B, id string) {
	b.Helper()
	var result instance.ExecResult
	skerry.Must(b, "POST", "/v1/sandboxes/"+id+"/exec", map[string]any{"cmd": "/bin/echo", "args": []string{"answered"}}, &result)
	if result.Stdout != "answered\n" {
		b.Fatalf("the command gave %+v", result)
	}
}

// leaves are the cgroups of running sandboxes, relative to a controller.
func leaves(b *testing.B) []string {
	b.Helper()
	tag, err := os.ReadFile(filepath.Join(skerry.Data, "agent", "tag"))
	if err != nil {
		b.Fatal(err)
	}
	var found []string
	parent := "skerry-" + strings.TrimSpace(string(tag))
	entries, _ := os.ReadDir(filepath.Join("/sys/fs/cgroup/memory", parent))
	for _, entry := range entries {
		if entry.IsDir() {
			found = append(found, filepath.Join(parent, entry.Name()))
		}
	}
	return found
}

func cgroupNumber(b *testing.B, leaf, controller, file string) int64 {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, leaf, file))
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// resident is the proportional memory of all processes of a cgroup.
func resident(b *testing.B, leaf string) int64 {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", leaf, "cgroup.procs"))
	if err != nil {
		b.Fatal(err)
	}
	var total int64
	for _, pid := range strings.Fields(string(raw)) {
		rollup, _ := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
		for line := range strings.Lines(string(rollup)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				total += kib << 10
			}
		}
	}
	return total
}

func post(ctx context.Context, client *http.Client, url string, header http.Header, body any) (*http.Response, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/json")
	return client.Do(req)
}
