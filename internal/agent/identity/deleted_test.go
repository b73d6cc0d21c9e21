package identity_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// buffer takes log lines from several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// contentOf are the credentials on disk.
func contentOf(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "credentials.json"))
	return string(raw), err
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, what, ok)
}

// TestH5_OnlyThePlatformsOwnWordDeletesAHost: anything but a statement signed
// by the CA this host holds, of the one type, naming installation and host, is
// a refusal like any other.
func TestH5_OnlyThePlatformsOwnWordDeletesAHost(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	host := s.control.HostID
	stranger := identitytest.NewCA(t)
	claim := func(name string, value any) func(*jwt.Token) {
		return func(k *jwt.Token) {
			c := maps.Clone(k.Claims.(jwt.MapClaims))
			if c[name] = value; value == nil {
				delete(c, name)
			}
			k.Claims = c
		}
	}
	head := func(name string, value any) func(*jwt.Token) {
		return func(k *jwt.Token) { k.Header[name] = value }
	}
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"iss": s.ca.Pin(), "sub": id.FormatHost(host), "iat": time.Now().Unix()}).
		SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	good := s.ca.Statement(host)
	last := good[len(good)-4:]
	for name, statement := range map[string]string{
		"none at all": "-", "no token": "deleted", "unsigned": none,
		"another installation's key":  stranger.Statement(host, claim("iss", s.ca.Pin())),
		"another installation's word": stranger.Statement(host),
		"another host":                s.ca.Statement(id.NewHost()),
		"the bare id":                 s.ca.Statement(host, claim("sub", host.UUID().String())),
		"no host":                     s.ca.Statement(host, claim("sub", nil)),
		"another issuer":              s.ca.Statement(host, claim("iss", stranger.Pin())),
		"no issuer":                   s.ca.Statement(host, claim("iss", nil)),
		"no time":                     s.ca.Statement(host, claim("iat", nil)),
		"the type of a login":         s.ca.Statement(host, head("typ", "JWT")),
		"no type":                     s.ca.Statement(host, func(k *jwt.Token) { delete(k.Header, "typ") }),
		"a type that is more":         s.ca.Statement(host, head("typ", "skerry-host-deleted+jwt")),
		"another algorithm":           s.ca.Statement(host, head("alg", "HS256")),
		"spoilt":                      good[:len(good)-4] + string([]byte{last[0] ^ 1}) + last[1:],
	} {
		s.control.Lock()
		s.control.Gone = statement
		s.control.Unlock()
		err := i.Refresh(t.Context(), "")
		if err == nil || errors.Is(err, identity.ErrDeleted) || deleted(i) || i.Turned() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again := open(t, s.config()); deleted(again) {
		t.Fatal("the next start believes it")
	}
	if i.Leave() == nil {
		t.Error("a host that was not deleted may leave")
	}
	s.control.Lock()
	s.control.Gone = good
	s.control.Unlock()
	if err := i.Refresh(t.Context(), ""); !errors.Is(err, identity.ErrDeleted) || !deleted(i) || i.Turned() {
		t.Fatalf("the platform's own word: %v", err)
	}
	again := open(t, s.config())
	if !deleted(again) {
		t.Fatal("the next start has forgotten it")
	}
	if err := again.Leave(); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(s.config()); !errors.Is(err, identity.ErrLeft) {
		t.Errorf("a start after leaving: %v", err)
	}
}

// TestH5_HeartbeatsAndEventsHearOfTheDeletionToo: whichever call is answered
// first.
func TestH5_HeartbeatsAndEventsHearOfTheDeletionToo(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	b := newBox()
	run(t, i, b)
	s.eventually(t, "a heartbeat", func(c *identitytest.Control) bool { return len(c.Heartbeats) > 0 })
	s.control.Lock()
	s.control.Gone = s.ca.Statement(s.control.HostID)
	s.control.Unlock()
	b.add("a")
	within(t, "the deletion", func() bool { return deleted(i) })
}

func TestHI03_ARunningHostTakesTheTokenItIsOffered(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	was, err := contentOf(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	s.control.Lock()
	s.control.JWT, s.control.Revoked = "over", true
	s.control.Unlock()
	stop := run(t, i, newBox())
	within(t, "the refusal", i.Turned)

	if err := identity.LeaveOffer(s.dir, identity.Offer{Token: "wrong", Pin: s.ca.Pin()}); err != nil {
		t.Fatal(err)
	}
	within(t, "the wrong token dropped", func() bool {
		accepted, waiting, err := identity.Accepted(s.dir, "wrong")
		return err == nil && !accepted && !waiting
	})
	if now, _ := contentOf(s.dir); now != was || !i.Turned() {
		t.Error("a wrong token cost the credentials")
	}

	s.control.Lock()
	s.control.Token = "right"
	s.control.Unlock()
	if err := identity.LeaveOffer(s.dir, identity.Offer{Token: "right", Pin: s.ca.Pin()}); err != nil {
		t.Fatal(err)
	}
	within(t, "the right token taken", func() bool {
		accepted, waiting, err := identity.Accepted(s.dir, "right")
		return err == nil && accepted && !waiting
	})
	within(t, "contact", func() bool { return !i.Turned() && !i.Heard().IsZero() })
	stop()
}

// TestHI03_TheTokenOfADeletedHostIsDropped: it will never be taken, and says
// nothing about this host.
func TestHI03_TheTokenOfADeletedHostIsDropped(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	statement := s.ca.Statement(id.NewHost())
	s.control.Lock()
	s.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v1/hosts/register" {
			return false
		}
		w.WriteHeader(http.StatusGone)
		_, _ = io.WriteString(w, `{"error":{"code":"host_deleted","details":{"statement":"`+statement+`"}}}`)
		return true
	}
	s.control.Unlock()
	dropped := func() bool {
		accepted, waiting, err := identity.Accepted(s.dir, "of-a-deleted-one")
		return err == nil && !accepted && !waiting
	}
	stop := run(t, i, newBox())
	offer := identity.Offer{Token: "of-a-deleted-one", Pin: s.ca.Pin()}
	if err := identity.LeaveOffer(s.dir, offer); err != nil {
		t.Fatal(err)
	}
	within(t, "the token dropped", dropped)
	stop()
	// The same at a start.
	if err := identity.LeaveOffer(s.dir, offer); err != nil {
		t.Fatal(err)
	}
	i = open(t, s.config())
	if err := i.Register(t.Context(), identity.Facts{}); err != nil || !dropped() {
		t.Errorf("the token waits: %v", err)
	}
	if deleted(i) || i.HostID() != s.control.HostID {
		t.Error("this host takes itself for deleted")
	}
}

// A machine that never joined and is given a token that will never do, or none, is
// not started again and again.
func TestHI03_AFirstTokenThatIsVoidIsSaidToBe(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"of a deleted host": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusGone)
			_, _ = io.WriteString(w, `{"error":{"code":"host_deleted","details":{"statement":"x"}}}`)
		},
		"spent": func(w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) },
	} {
		s := newSetup(t)
		s.control.Lock()
		s.control.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
			answer(w)
			return true
		}
		s.control.Unlock()
		if err := open(t, s.config()).Register(t.Context(), identity.Facts{}); !errors.Is(err, identity.ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := newSetup(t)
	c := s.config()
	c.Token = ""
	if err := open(t, c).Register(t.Context(), identity.Facts{}); !errors.Is(err, identity.ErrToken) {
		t.Errorf("without a token: %v", err)
	}
	s.control.Lock()
	s.control.Intercept = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	s.control.Unlock()
	if err := open(t, s.config()).Register(t.Context(), identity.Facts{}); err == nil || errors.Is(err, identity.ErrToken) {
		t.Errorf("without an answer: %v", err)
	}
}

// TestHI03_AHostThatJoinedAnewIsHeardAtOnce: until its heartbeat the server
// takes it for unreachable.
func TestHI03_AHostThatJoinedAnewIsHeardAtOnce(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := identity.Contact{Identity: i, Outbox: newBox(), Load: func() identity.Load { return identity.Load{} }, Heartbeat: time.Hour}
	var wg sync.WaitGroup
	wg.Go(func() { c.Beat(ctx) })
	wg.Go(func() {
		if err := c.Rejoin(ctx, identity.Facts{}); err != nil {
			t.Error(err)
		}
	})
	s.eventually(t, "the first heartbeat", func(c *identitytest.Control) bool { return len(c.Heartbeats) == 1 })
	s.control.Lock()
	s.control.Token = "new"
	s.control.Unlock()
	if err := identity.LeaveOffer(s.dir, identity.Offer{Token: "new", Pin: s.ca.Pin()}); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "a second heartbeat", func(c *identitytest.Control) bool { return len(c.Heartbeats) == 2 })
	cancel()
	wg.Wait()
}

// TestHI03_AnOfferOutlivesAnOutageAndARestart: a token that could not be asked
// about is not lost.
func TestHI03_AnOfferOutlivesAnOutageAndARestart(t *testing.T) {
	s := newSetup(t)
	s.registered(t)
	s.control.Lock()
	s.control.Token, s.control.JWT, s.control.Revoked, s.control.Down = "new", "over", true, true
	s.control.Unlock()
	cfg := s.config()
	cfg.Token = "new"
	i := open(t, cfg)
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatalf("an outage keeps a host with credentials from starting: %v", err)
	}
	cfg.Token = "" // as an operator who removed it from the settings
	i = open(t, cfg)
	s.control.Lock()
	s.control.Down = false
	s.control.Unlock()
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	if accepted, waiting, err := identity.Accepted(s.dir, "new"); err != nil || !accepted || waiting {
		t.Errorf("accepted: %v, waiting: %v, %v", accepted, waiting, err)
	}
}
