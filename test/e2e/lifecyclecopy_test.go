package e2e

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
)

// identity prints what two copies of a sandbox must not share.
const identity = `python3 - <<'P'
import os,random,socket,uuid
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
s.connect(("192.0.2.1",53))
print(os.urandom(16).hex())
print(random.getrandbits(128))
print(uuid.uuid4())
print(socket.gethostname())
print(s.getsockname()[0])
print(open("/proc/sys/kernel/random/uuid").read().strip() if os.path.exists("/proc/sys/kernel/random/uuid") else uuid.uuid4())
P`

// differ fails the test unless every line of the identities differs from one
// sandbox to the next.
func (in *machine) differ(t *testing.T, ids ...string) {
	t.Helper()
	names := []string{"kernel random", "an interpreter's random", "a uuid", "the hostname", "the address", "the kernel's uuid"}
	lines := map[string]map[string]string{}
	for _, id := range ids {
		got := in.Sh(t, id, identity)
		values := strings.Fields(got.Stdout)
		if len(values) != len(names) {
			t.Fatalf("%s tells %+v", id, got)
		}
		for i, value := range values {
			if lines[names[i]] == nil {
				lines[names[i]] = map[string]string{}
			}
			if other := lines[names[i]][value]; other != "" {
				t.Errorf("RS-02: %s and %s have the same %s: %s", other, id, names[i], value)
			}
			lines[names[i]][value] = id
		}
	}
	if hosts := slices.Collect(maps.Keys(lines["the hostname"])); len(hosts) != len(ids) {
		t.Errorf("the hostnames are %v", hosts)
	}
}

// fork makes copies, and removes them at the end of the test.
func (in *machine) fork(t *testing.T, id string, count int) (ids []string) {
	t.Helper()
	var copies struct{ Items []sandbox }
	in.Must(t, "POST", "/v1/sandboxes/"+id+"/fork", map[string]any{"count": count}, &copies)
	for _, c := range copies.Items {
		in.removed(t, c.ID)
		if c.Status != "running" {
			t.Errorf("P4: a copy is %s", c.Status)
		}
		ids = append(ids, c.ID)
	}
	if len(ids) != count {
		t.Fatalf("P4: %d copies, want %d", len(ids), count)
	}
	return ids
}

// removed deletes a sandbox at the end of the test.
func (in *machine) removed(t *testing.T, id string) {
	t.Cleanup(func() {
		if _, err := in.Try(context.Background(), "DELETE", "/v1/sandboxes/"+id, nil, nil); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
}

// Saved under a name or copied, a running sandbox goes on as if nothing had
// happened, and each copy is one that has all it had and shares nothing with it.
func TestP3_P4_S6_RS02_RS03_CopiesOfARunningSandbox(t *testing.T) {
	in := skerry(t)
	w := in.worker(t, nil)
	w.grow(t)
	w.look(t)
	command := in.follow(t, w.id)
	command.flows()

	var made struct {
		ID, Status string
		Size       int64 `json:"size_bytes"`
	}
	in.Must(t, "POST", "/v1/snapshots", map[string]any{"sandbox_id": w.id, "name": "first"}, &made)
	if made.Status != "ready" || made.Size == 0 {
		t.Errorf("P3: the snapshot is %+v, want one that is ready", made)
	}
	atSnapshot := w.copyOf("")
	command.flows()
	w.grow(t) // what comes later is not in it
	w.look(t)
	if code, err := in.Try(t.Context(), "POST", "/v1/snapshots", map[string]any{"sandbox_id": w.id, "name": "first"}, nil); code != 409 {
		t.Errorf("P3: the same name again: %d, %v; want 409", code, err)
	}
	if code, err := in.Try(t.Context(), "POST", "/v1/snapshots", map[string]any{"sandbox_id": w.id, "name": "first/../x"}, nil); code != 400 {
		t.Errorf("P3: a bad name: %d, %v; want 400", code, err)
	}

	var started sandbox
	in.Must(t, "POST", "/v1/sandboxes", map[string]any{"snapshot": "first", "timeout_sec": 7200}, &started)
	in.removed(t, started.ID)
	atSnapshot.id = started.ID
	atSnapshot.look(t)

	forked := in.fork(t, w.id, 3)
	for _, id := range forked {
		w.copyOf(id).look(t)
	}
	w.look(t)
	in.differ(t, append(forked, w.id, started.ID)...)
	// The copies go their own ways.
	own := w.copyOf(forked[0])
	own.grow(t)
	own.look(t)
	w.look(t)
	command.finish(in)
	if cut := strings.Count(command.text(), "\n"); cut < 3 {
		t.Errorf("the command printed %d lines", cut)
	}
	for _, e := range in.history(t, w.id) {
		if e.Kind == "paused" || e.Kind == "resumed" {
			t.Errorf("S10: nobody paused it, but its history says %s", e.Kind)
		}
	}

	// A deleted snapshot is gone with its bytes; what was made from it lives on.
	in.Must(t, "DELETE", "/v1/snapshots/first", nil, nil)
	if code, err := in.Try(t.Context(), "POST", "/v1/sandboxes", map[string]any{"snapshot": "first"}, nil); code != 404 {
		t.Errorf("P3: from a deleted snapshot: %d, %v; want 404", code, err)
	}
	atSnapshot.look(t)
	in.noStates(t)
}

// A paused sandbox is copied without being woken.
func TestP4_RS02_CopiesOfAPausedSandbox(t *testing.T) {
	in := skerry(t)
	w := in.worker(t, nil)
	w.grow(t)
	w.look(t)
	in.pause(t, w.id)
	forked := in.fork(t, w.id, 3)
	for _, id := range forked {
		w.copyOf(id).look(t)
	}
	if x := in.state(t, w.id); x.Status != "paused" {
		t.Errorf("P4: the one that was copied is %s, want paused", x.Status)
	}
	in.resume(t, w.id)
	w.look(t)
	in.differ(t, append(forked, w.id)...)
}
