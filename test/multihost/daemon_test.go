package multihost

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// anotherDaemon is a build of the guest daemon whose code lies elsewhere than that of
// the fleet's, so that no memory of the one goes on with the other.
func anotherDaemon(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "skerry-guest")
	build := exec.Command("go", "build", "-gcflags=skerry.dev/skerry/internal/guest/...=-N -l", "-o", path, "skerry.dev/skerry/cmd/skerry-guest")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the guest daemon: %v\n%s", err, out)
	}
	return path
}

// What runs goes on over an upgrade of its host's guest daemon; what was saved with
// either goes on on hosts that never had that daemon, after the first is gone for
// good. Where a daemon is lost everywhere, that is the refusal, and the disk is left.
func TestP7_TS05_AnUpgradeOfTheDaemonStrandsNothing(t *testing.T) {
	w := open(t)
	defer w.heal()
	h, gone := w.extra(t)
	before := w.on(t, h)
	w.restart(t, h, "SKERRY_GUEST="+anotherDaemon(t))
	before.look(t)
	after := w.on(t, h)
	w.Servers[0].Must(t, "POST", "/v1/snapshots", map[string]any{"sandbox_id": after.id, "name": "daemon"}, nil)
	t.Cleanup(func() { _, _ = w.Servers[0].Try(context.Background(), "DELETE", "/v1/snapshots/daemon", nil, nil) })
	fromSnapshot := *after
	w.stored(t, "/v1/snapshots/daemon")
	w.pause(t, before)
	w.resume(t, before, 0)
	w.pause(t, before)
	w.pause(t, after)
	gone()
	if err := h.Wait(t.Context(), "unreachable"); err != nil {
		t.Fatal(err)
	}
	for i, k := range []*worker{before, after} {
		w.resume(t, k, i)
		if k.host == h {
			t.Fatal("it says it runs on a host that is gone")
		}
	}
	var box sandbox
	w.Servers[0].Must(t, "POST", "/v1/sandboxes", small(map[string]any{"snapshot": "daemon"}), &box)
	w.copyOf(t, &fromSnapshot, box.ID).look(t)
	var forks struct{ Items []sandbox }
	w.Servers[1].Must(t, "POST", "/v1/sandboxes/"+after.id+"/fork", map[string]any{"count": 2}, &forks)
	for _, f := range forks.Items {
		w.copyOf(t, after, f.ID).look(t)
	}

	// Its daemon is lost before the state is stored.
	for _, f := range append(forks.Items, box) { // while they run their hosts keep it
		w.Servers[0].Must(t, "DELETE", "/v1/sandboxes/"+f.ID, nil, nil)
		w.made = slices.DeleteFunc(w.made, func(id string) bool { return id == f.ID })
	}
	w.Servers[0].Must(t, "POST", "/v1/sandboxes/"+after.id+"/pause", map[string]any{}, nil)
	_, bare, _ := strings.Cut(after.id, "-")
	if err := after.host.Run(t.Context(), "sh", "-c", "cd "+filepath.Join(after.host.Data, "agent", "states")+
		" && for f in $(grep -l "+bare+" */state.json); do rm -f $(dirname $f)/guest; done"); err != nil {
		t.Fatal(err)
	}
	w.stored(t, "/v1/sandboxes/"+after.id)
	testkit.Eventually(t, time.Minute, "each host keeps its own daemon alone", func() bool {
		return !slices.ContainsFunc(w.Hosts, func(h *fleet.Host) bool {
			return h.Run(t.Context(), "sh", "-c", "test $(ls "+filepath.Join(h.Data, "agent", "images", "guests")+" | wc -l) = 1") != nil
		})
	})
	status, err := w.Servers[0].Try(t.Context(), "POST", "/v1/sandboxes/"+after.id+"/resume", map[string]any{}, nil)
	if status/100 != 4 || err == nil || !strings.Contains(err.Error(), "guest_build_missing") {
		t.Fatalf("without its daemon: %d, %v", status, err)
	}
	t.Logf("the refusal: %d, %v", status, err)
	if x := w.status(t, after.id); x.Status != "paused" {
		t.Errorf("after the refusal it is %s", x.Status)
	}
	w.Servers[1].Must(t, "POST", "/v1/sandboxes/"+after.id+"/resume", map[string]any{"memory": false}, nil)
	got := strings.Fields(w.Servers[0].Sh(t, after.id, "cat /proc/sys/kernel/random/boot_id && sha256sum </home/user/data").Stdout)
	if len(got) < 2 || got[0] == after.boot || got[1] != after.sum {
		t.Errorf("from its disk: %v, want %s, and not %s", got, after.sum, after.boot)
	}
	w.Servers[0].Must(t, "DELETE", "/v1/hosts/"+h.ID, nil, nil)
	before.look(t)
	w.sound(t)
}
