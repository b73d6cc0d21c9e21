package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// TestS1_P1_RS02_WarmStarts: sandboxes that were started before they were asked for are
// what all others are, and share nothing; switched off, none are left. It comes
// before the tests that start many sandboxes: hosts keep what was asked for most.
func TestS1_P1_RS02_WarmStarts(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	t.Cleanup(func() { in.noTraces(t) })
	restart := func(pool string) {
		t.Helper()
		if err := in.Stop(); err != nil {
			t.Fatal(err)
		}
		in.Set("SKERRY_WARM_POOL=" + pool)
		if err := in.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	const looks = "ls -A /tmp /var/tmp ~; ls /proc | grep -c '^[0-9]*$'; whoami; pwd; env | sort | grep -v ID"
	unused := in.Sh(t, in.Create(t, nil).ID, looks).Stdout
	lively := in.lively(t)
	cold := []string{lively.start(t, false), lively.start(t, false)} // twice: from here on it is a habit
	restart("auto")
	seen := map[string][]string{}
	for range 2 {
		// Other tests' templates and sizes are waited for as well, one after the other.
		testkit.Eventually(t, time.Minute, "as many instances wait as are to", func() bool {
			wanted := in.Wanted()
			return wanted > 0 && in.Waiting() >= wanted
		})
		began := time.Now()
		box := in.Create(t, nil)
		took := time.Since(began)
		if !in.startedWarm(t, box.ID) {
			t.Error("it was started cold")
		}
		t.Logf("a warm start through the API took %v", took)
		for name, line := range map[string]string{
			"host name": "hostname", "own name": "grep 127.0.1.1 /etc/hosts", "boot id": "cat /proc/sys/kernel/random/boot_id",
			"random bytes": "head -c 16 /dev/urandom | od -An -tx1", "random numbers": "python3 -c 'import random; print(random.random())'",
		} {
			said := strings.TrimSpace(in.Sh(t, box.ID, line).Stdout)
			if said == "" || slices.Contains(seen[name], said) {
				t.Errorf("%s: %q, after %q", name, said, seen[name])
			}
			seen[name] = append(seen[name], said)
		}
		if said := in.Sh(t, box.ID, looks).Stdout; said != unused {
			t.Errorf("it looks used, or is another: %q, a cold one %q", said, unused)
		}
	}
	for range 2 {
		testkit.Eventually(t, time.Minute, "the template's own wait too", func() bool {
			wanted := in.Wanted()
			return wanted > 1 && in.Waiting() >= wanted
		})
		cold = append(cold, lively.start(t, true))
	}
	in.differ(t, cold...)
	restart("off")
}

// startedWarm says whether a sandbox took an instance that waited.
func (in *machine) startedWarm(t *testing.T, box string) (warm bool) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "the host's word of the start", func() bool {
		for _, e := range in.history(t, box) {
			if e.Kind == "started" {
				warm = e.Data["warm"] == true
				return true
			}
		}
		return false
	})
	return warm
}

// lively is a template whose sandboxes go on from memory: a server that made a
// number up when it began.
type lively struct {
	in     *machine
	number string
}

const livelyServer = `import http.server, os
number = os.urandom(16).hex().encode()
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(number)
http.server.HTTPServer(("127.0.0.1", 8000), Tell).serve_forever()
`

// lively builds it, and removes it at the end of the test.
func (in *machine) lively(t *testing.T) *lively {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"tell.py":    livelyServer,
		"Skerryfile": "FROM base\nCOPY tell.py /srv/\nSTART exec python3 /srv/tell.py\nREADY curl -sf http://127.0.0.1:8000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if said, err := in.CLI("template", "build", "lively", dir, "--vcpus", "0.5", "--memory", "256", "--disk", "512").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Cleanup(func() {
		if _, err := in.Try(context.Background(), "DELETE", "/v1/templates/lively", nil, nil); err != nil {
			t.Error(err)
		}
	})
	return &lively{in: in}
}

// start starts one, which runs what all others of them run.
func (l *lively) start(t *testing.T, warm bool) string {
	t.Helper()
	began := time.Now()
	box := l.in.Create(t, map[string]any{"template": "lively"})
	took := time.Since(began)
	if got := l.in.startedWarm(t, box.ID); got != warm {
		t.Errorf("warm is %v, want %v", got, warm)
	}
	got := l.in.Sh(t, box.ID, "curl -s http://127.0.0.1:8000")
	if l.number == "" {
		l.number = got.Stdout
	}
	if len(got.Stdout) != 32 || got.Stdout != l.number {
		t.Errorf("what START began tells %+v, and told %q", got, l.number)
	}
	t.Logf("a start from memory took %v, warm: %v", took, warm)
	return box.ID
}
