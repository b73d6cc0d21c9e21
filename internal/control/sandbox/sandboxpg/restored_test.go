package sandboxpg_test

import (
	"testing"

	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
)

// A backup was restored a moment ago, and nobody has looked yet at the host on
// which a sandbox went on since: it is not started a second time meanwhile. Hosts
// that were looked at, and those that do not come, hold nobody up.
func TestH8_NothingIsStartedTwiceBeforeHostsWereLookedAt(t *testing.T) {
	w, s := travellers(t)
	ctx := t.Context()
	x := paused(t, w, s, create(t, w, s, request()).ID)
	y := paused(t, w, s, create(t, w, s, request()).ID)
	stored(t, w)
	away(t, w, x.Host.ID, 0)
	there := resumed(t, w, s, x.ID).Host.ID
	exec(t, w, `UPDATE hosts SET status = 'online', last_heartbeat_at = now()`)
	exec(t, w, `DELETE FROM departures`)
	exec(t, w, `UPDATE sandboxes SET host_id = $2, status = 'paused', incarnation = 1, paused_at = now(), deadline_at = NULL WHERE id = $1`, x.ID, x.Host.ID)
	exec(t, w, `UPDATE hosts SET awaited_until = '9999-01-01'`)
	hosts := hostpg.New(w.Pool)
	for range 2 { // each server as it starts
		if err := hosts.AwaitLooks(ctx); err != nil {
			t.Fatal(err)
		}
	}
	waited := func() int {
		t.Helper()
		return tally(t, w, `hosts WHERE awaited_until BETWEEN now() AND now() + interval '10 minutes'`)
	}
	if waited() != 2 {
		t.Fatalf("%d hosts are waited for", waited())
	}
	refused := func(want string) {
		t.Helper()
		if _, err := s.Service.Resume(ctx, w.User(), x.ID, nil, false, true); !errs.Is(err, want) {
			t.Errorf("resumed: %v, want %s", err, want)
		}
	}
	refused("just_restored")
	exec(t, w, `UPDATE sandboxes SET status = 'missing' WHERE id = $1`, x.ID)
	if _, err := s.Service.Recover(ctx, w.User(), x.ID); !errs.Is(err, "just_restored") {
		t.Errorf("recovered: %v", err)
	}
	exec(t, w, `UPDATE sandboxes SET status = 'paused' WHERE id = $1`, x.ID)
	look(t, w, s, x.Host.ID)
	if waited() != 1 {
		t.Errorf("%d hosts are waited for, though one was looked at", waited())
	}
	refused("just_restored")
	look(t, w, s, there)
	if waited() != 1 {
		t.Error("what was seen once is not sure yet, and nobody waits")
	}
	refused("just_restored")
	for range 2 {
		look(t, w, s, there)
	}
	if waited() != 0 {
		t.Errorf("%d hosts are waited for, though all were looked at", waited())
	}
	refused("later_life")
	if phase, at := w.Agents.On(there, x.ID); phase != sandbox.PhaseRunning || at != 2 {
		t.Errorf("it is %q/%d where it went", phase, at)
	}
	// One that never comes holds up nobody for ever.
	exec(t, w, `UPDATE hosts SET awaited_until = now() + interval '1 minute' WHERE id = $1`, there)
	if _, err := s.Service.Resume(ctx, w.User(), y.ID, nil, false, true); !errs.Is(err, "just_restored") {
		t.Errorf("another one: %v", err)
	}
	exec(t, w, `UPDATE hosts SET awaited_until = now() - interval '1 second' WHERE id = $1`, there)
	resumed(t, w, s, y.ID)
}
