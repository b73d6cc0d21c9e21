package hostpg_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// believed checks a statement as an agent does that holds the CA alone.
func believed(t *testing.T, w world, err error) string {
	t.Helper()
	e := errs.As(err)
	statement, _ := e.Details["statement"].(string)
	if e.Reason != "host_deleted" || statement == "" {
		t.Fatalf("%v %v", err, e.Details)
	}
	claims := jwt.RegisteredClaims{}
	token, err := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"})).ParseWithClaims(statement, &claims, func(*jwt.Token) (any, error) {
		return w.keys.CA().PublicKey, nil
	})
	if err != nil || token.Header["typ"] != keyring.HostDeletedType || claims.Issuer != w.keys.CASHA256() || claims.IssuedAt == nil {
		t.Fatalf("the statement %v %+v: %v", token.Header, claims, err)
	}
	return claims.Subject
}

func TestH11_WhoComesBackHears410(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	admin := w.admin(t)
	made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	c, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.hosts.IssueToken(ctx, admin, made.Host.ID)
	if err != nil {
		t.Fatal(err)
	}
	other := w.another(t, admin)
	claims, err := w.keys.VerifyHost(ctx, c.JWT)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.hosts.Delete(ctx, admin, made.Host.ID, false); err != nil {
		t.Fatal(err)
	}
	// Off for longer than everything it has.
	if _, err := w.pool.Exec(ctx, `UPDATE host_refresh_tokens SET expires_at = now() - interval '1 day'`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(ctx, `UPDATE host_registration_tokens SET expires_at = now() - interval '1 day'`); err != nil {
		t.Fatal(err)
	}
	by := w.caller(t, c)
	for what, err := range map[string]error{
		"the token it has":           second(w.hosts.AuthenticateHost(ctx, claims)),
		"a refresh":                  second(w.hosts.Refresh(ctx, principal.Principal{}, c.RefreshToken, m.csr)),
		"a refresh with another key": second(w.hosts.Refresh(ctx, principal.Principal{}, c.RefreshToken, newMachine(t).csr)),
		"the spent token":            second(w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())),
		"the token that was left":    second(w.hosts.Register(ctx, principal.Principal{}, again.Token, m.csr, facts())),
		"a heartbeat let in before":  w.hosts.Heartbeat(ctx, by, host.Beat{Host: made.Host.ID, Generation: 1, Address: "10.0.0.7:7072", Version: "1"}),
	} {
		t.Run(what, func(t *testing.T) {
			if sub := believed(t, w, err); sub != made.Host.ID.String() {
				t.Errorf("about %s", sub)
			}
		})
	}
	for what, err := range map[string]error{
		"an unknown family": second(w.hosts.AuthenticateHost(ctx, keyring.HostClaims{Host: made.Host.ID, Family: id.NewHostRefreshToken()})),
		"junk":              second(w.hosts.Refresh(ctx, principal.Principal{}, strings.Replace(c.RefreshToken, ".1.", ".2.", 1), m.csr)),
		"an unknown token":  second(w.hosts.Register(ctx, principal.Principal{}, "junk", m.csr, facts())),
	} {
		if errs.CodeOf(err) != errs.CodeUnauthenticated {
			t.Errorf("%s: %v", what, err)
		}
	}
	if otherClaims, err := w.keys.VerifyHost(ctx, other.JWT); err != nil {
		t.Fatal(err)
	} else if _, err := w.hosts.AuthenticateHost(ctx, otherClaims); err != nil {
		t.Errorf("another host: %v", err)
	}
}

// another is one more host that has joined.
func (w world) another(t *testing.T, admin principal.Principal) host.Credentials {
	t.Helper()
	made, err := w.hosts.Create(context.Background(), admin, host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.hosts.Register(context.Background(), principal.Principal{}, made.Token, newMachine(t).csr, facts())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHI01_AReplayTakesTheHostOutUntilItJoinsAgain(t *testing.T) {
	w := newWorld(t)
	ctx, m := context.Background(), newMachine(t)
	admin := w.admin(t)
	made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular})
	if err != nil {
		t.Fatal(err)
	}
	first, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())
	if err != nil {
		t.Fatal(err)
	}
	beat := func(c host.Credentials) error {
		t.Helper()
		return w.hosts.Heartbeat(ctx, w.caller(t, c), host.Beat{Host: first.HostID, Generation: 1, Address: "10.0.0.7:7072", Version: "1"})
	}
	see := func() host.Host {
		t.Helper()
		h, err := w.hosts.Get(ctx, admin, first.HostID)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if h := see(); h.NeedsRegistration {
		t.Error("a host that has just joined is to join again")
	}
	if err := beat(first); err != nil {
		t.Fatal(err)
	}
	token := first.RefreshToken
	for range 2 {
		c, err := w.hosts.Refresh(ctx, principal.Principal{}, token, m.csr)
		if err != nil {
			t.Fatal(err)
		}
		token = c.RefreshToken
	}
	if h := see(); h.Status != host.StatusOnline || h.NeedsRegistration {
		t.Fatalf("%s, %t", h.Status, h.NeedsRegistration)
	}
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, first.RefreshToken, newMachine(t).csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("a stranger's replay: %v", err)
	}
	if h := see(); h.Status != host.StatusOnline || h.NeedsRegistration {
		t.Errorf("a stranger took the host out: %s", h.Status)
	}
	if _, err := w.hosts.Refresh(ctx, principal.Principal{}, first.RefreshToken, m.csr); !errs.Is(err, host.ErrRefreshToken.Reason) {
		t.Errorf("its own replay: %v", err)
	}
	h := see()
	if h.Status != host.StatusUnreachable || !h.NeedsRegistration || !strings.Contains(h.Why(), "/token") || !strings.Contains(h.Why(), "twice") {
		t.Errorf("%s, %t: %s", h.Status, h.NeedsRegistration, h.Why())
	}
	now, err := hostpg.New(w.pool).Standings(ctx, []id.Host{first.HostID, id.NewHost()})
	if err != nil || len(now) != 1 || !now[0].Revoked || now[0].Deleted {
		t.Errorf("%+v (%v)", now, err)
	}
	token2, err := w.hosts.IssueToken(ctx, admin, first.HostID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.hosts.Register(ctx, principal.Principal{}, token2.Token, m.csr, facts())
	if err != nil || again.HostID != first.HostID {
		t.Fatalf("joining again: %v", err)
	}
	if err := beat(first); !errs.Is(err, host.ErrHostToken.Reason) {
		t.Errorf("the void credentials' heartbeat: %v", err)
	}
	if err := beat(again); err != nil {
		t.Fatal(err)
	}
	if h := see(); h.Status != host.StatusOnline || h.NeedsRegistration || h.Why() != "" {
		t.Errorf("%s, %t: %s", h.Status, h.NeedsRegistration, h.Why())
	}
	// One that was off for longer than its credentials live.
	if _, err := w.pool.Exec(ctx, `UPDATE host_refresh_tokens SET expires_at = now() - interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	if h := see(); !h.NeedsRegistration || !strings.Contains(h.Why(), "/token") {
		t.Errorf("expired: %t %s", h.NeedsRegistration, h.Why())
	}
}

// Deleting, registering and refreshing lock in one order: none waits for
// another for ever, and who loses hears why.
func TestH11_DeletingRacesWithJoining(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	admin := w.admin(t)
	for range 10 {
		made, err := w.hosts.Create(ctx, admin, host.CreateRequest{Type: host.TypeRegular})
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t)
		c, err := w.hosts.Register(ctx, principal.Principal{}, made.Token, m.csr, facts())
		if err != nil {
			t.Fatal(err)
		}
		again, err := w.hosts.IssueToken(ctx, admin, made.Host.ID)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		start := time.Now()
		for what, call := range map[string]func() error{
			"register": func() error { return second(w.hosts.Register(ctx, principal.Principal{}, again.Token, m.csr, facts())) },
			"refresh":  func() error { return second(w.hosts.Refresh(ctx, principal.Principal{}, c.RefreshToken, m.csr)) },
			"token":    func() error { return second(w.hosts.IssueToken(ctx, admin, made.Host.ID)) },
			"delete":   func() error { return w.hosts.Delete(ctx, admin, made.Host.ID, true) },
		} {
			wg.Go(func() {
				err := call()
				var e *errs.Error
				if err != nil && (!errors.As(err, &e) || e.Code == errs.CodeInternal || e.Code == errs.CodeUnavailable) {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d > 900*time.Millisecond {
			t.Errorf("it took %s: they waited for each other", d)
		}
		f := &fleet{World: &sandboxtest.World{Pool: w.pool}}
		if got := f.left(t, made.Host.ID); got != nothing {
			t.Fatal(got)
		}
	}
}
