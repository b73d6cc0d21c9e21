package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// TestS1_WarmStarts: sandboxes that were started before they were asked for are
// what all others are, and share nothing; switched off, none are left.
func TestS1_WarmStarts(t *testing.T) {
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
		var events struct {
			Items []struct {
				Kind string
				Data map[string]any
			}
		}
		testkit.Eventually(t, 30*time.Second, "the host's word of the start", func() bool {
			in.Must(t, "GET", "/v1/sandboxes/"+box.ID+"/events", nil, &events)
			return slices.ContainsFunc(events.Items, func(e struct {
				Kind string
				Data map[string]any
			},
			) bool {
				return e.Kind == "started"
			})
		})
		for _, e := range events.Items {
			if e.Kind == "started" && e.Data["warm"] != true {
				t.Errorf("it was started cold: %v", e.Data)
			}
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
	restart("off")
}
