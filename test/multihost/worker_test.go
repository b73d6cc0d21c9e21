package multihost

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// worker is a sandbox that counts in memory for ever, keeps a file, and
// remembers what was seen of both.
type worker struct {
	w    *world
	id   string
	host *fleet.Host
	boot string
	sum  string
	seen int
}

// small is a sandbox of which many fit on a small machine.
func small(more map[string]any) map[string]any {
	options := map[string]any{"vcpus": 0.2, "memory_mb": 128, "disk_mb": 256, "timeout_sec": 7200}
	maps.Copy(options, more)
	return options
}

// counting counts without starting processes, which are dear; telling prints the
// boot's id, the count, and the digest of the file.
const (
	counting = `head -c 300000 /dev/urandom >/home/user/data; mkfifo /tmp/never; setsid bash -c 'exec 3<>/tmp/never; i=0; while :; do i=$((i+1)); echo $i >/tmp/n; read -rt 0.1 -u 3 _; done' </dev/null >/dev/null 2>&1 &`
	telling  = `cat /proc/sys/kernel/random/boot_id /tmp/n && sha256sum </home/user/data`
)

// worker makes one through a server.
func (w *world) worker(t *testing.T, through int, more map[string]any) *worker {
	t.Helper()
	k := w.place(t, through, more)
	k.begin(t, through)
	return k
}

// place makes the sandbox of a worker.
func (w *world) place(t *testing.T, through int, more map[string]any) *worker {
	t.Helper()
	request := small(more)
	request["template"] = "base"
	var box sandbox
	w.Servers[through].Must(t, "POST", "/v1/sandboxes", request, &box)
	w.made = append(w.made, box.ID)
	return &worker{w: w, id: box.ID, host: w.hostOf(t, box.ID)}
}

// begin has it count.
func (k *worker) begin(t *testing.T, through int) {
	t.Helper()
	k.w.Servers[through].Sh(t, k.id, counting)
	k.look(t)
}

// hostOf is where a sandbox is.
func (w *world) hostOf(t *testing.T, box string) *fleet.Host {
	t.Helper()
	rows, err := w.Rows(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.ID.String() != box {
			continue
		}
		for _, h := range w.Hosts {
			if h.ID == r.Host {
				return h
			}
		}
	}
	t.Fatalf("%s is on no host of the fleet", box)
	return nil
}

// try asks the servers in turn until one answers the call.
func (w *world) try(ctx context.Context, method, path string, body, out any) (status int, err error) {
	for _, s := range w.Servers {
		if status, err = s.Try(ctx, method, path, body, out); status != 0 {
			break
		}
	}
	return status, err
}

// look waits until it answers: it is the same machine with the same file, and
// has gone on counting.
func (k *worker) look(t *testing.T) {
	t.Helper()
	last := ""
	defer func() {
		if t.Failed() {
			t.Logf("%s on %s: %s", k.id, k.host.Name, last)
		}
	}()
	testkit.Eventually(t, time.Minute, "sandbox "+k.id+" on "+k.host.Name+" answers and counts on", func() bool {
		var result execResult
		if _, err := k.w.try(t.Context(), "POST", "/v1/sandboxes/"+k.id+"/exec", map[string]any{"cmd": telling}, &result); err != nil {
			last = err.Error()
			return false
		}
		last = fmt.Sprintf("%+v", result)
		words := strings.Fields(result.Stdout)
		if len(words) < 3 {
			return false
		}
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return false
		}
		boot, sum := words[0], words[2]
		if k.boot == "" {
			k.boot, k.sum = boot, sum
		}
		if boot != k.boot || sum != k.sum || n < k.seen {
			t.Fatalf("%s is another one: boot %s (was %s), file %s (was %s), count %d (was %d)", k.id, boot, k.boot, sum, k.sum, n, k.seen)
		}
		if n == k.seen {
			return false
		}
		k.seen = n
		return true
	})
}

// status is what the API says of it now.
func (w *world) status(t *testing.T, box string) (x boxState) {
	t.Helper()
	testkit.Eventually(t, time.Minute, "a server answers", func() bool {
		status, err := w.try(t.Context(), "GET", "/v1/sandboxes/"+box, nil, &x)
		if status/100 == 4 {
			t.Fatal(err)
		}
		return err == nil
	})
	return x
}

type boxState struct {
	Status       string
	EndReason    string `json:"end_reason"`
	PausedReason string `json:"paused_reason"`
}

// becomes waits for a status.
func (w *world) becomes(t *testing.T, box, want string, within time.Duration) {
	t.Helper()
	var last boxState
	defer func() {
		if t.Failed() {
			t.Logf("%s is %+v", box, last)
		}
	}()
	testkit.Eventually(t, within, box+" is "+want, func() bool {
		last = w.status(t, box)
		return last.Status == want
	})
}

// kinds are those of a sandbox's events, the oldest first.
func (w *world) kinds(t *testing.T, box string) (kinds []string) {
	t.Helper()
	var events struct {
		Items []struct{ Kind string }
	}
	w.Servers[0].Must(t, "GET", "/v1/sandboxes/"+box+"/events?limit=200", nil, &events)
	for _, e := range events.Items {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}
