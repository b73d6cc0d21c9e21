package hostlink_test

import (
	"context"
	"net/http"
	"testing"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// guests answers with one guest or one refusal.
type guests struct {
	guest sandbox.Guest
	err   error
}

func (g guests) Guest(context.Context, principal.Principal, id.Sandbox) (sandbox.Guest, error) {
	return g.guest, g.err
}

func TestTargetsSayWhyThereIsNoWay(t *testing.T) {
	pool := hostlink.NewHostClientPool(hostlink.Identity{})
	defer pool.Close()
	x := id.NewSandbox()
	for name, c := range map[string]struct {
		guests guests
		want   string
	}{
		"refused by the room":    {guests{err: sandbox.ErrNotFound}, "sandbox_not_found"},
		"a host without address": {guests{guest: sandbox.Guest{Sandbox: x}}, "host_unavailable"},
	} {
		if _, err := hostlink.NewTargets(c.guests, pool).Target(t.Context(), principal.System("test"), x); !errs.Is(err, c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// What the room says reaches sandboxio whole, and a host that nobody answers at
// is told with each request, not before.
func TestTargetsCarryWhatTheRoomSays(t *testing.T) {
	pool := hostlink.NewHostClientPool(hostlink.Identity{})
	defer pool.Close()
	ended := make(chan struct{})
	g := sandbox.Guest{
		Sandbox: id.NewSandbox(), Host: host.Ref{ID: id.NewHost(), Address: "127.0.0.1:1"}, Incarnation: 3,
		AccessToken: "token", DefaultUser: "user", Ended: ended,
	}
	target, err := hostlink.NewTargets(guests{guest: g}, pool).Target(t.Context(), principal.System("test"), g.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	if target.Sandbox != g.Sandbox || target.AccessToken != "token" || target.DefaultUser != "user" {
		t.Errorf("%+v", target)
	}
	close(ended)
	select {
	case <-target.Ended:
	default:
		t.Error("the end of the incarnation is not passed on")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := target.Transport.RoundTrip(req)
	if err == nil {
		_ = res.Body.Close()
		t.Fatal("somebody answers at port 1")
	}
	if !errs.Is(err, "host_unavailable") {
		t.Errorf("%v", err)
	}
}
