package identity_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type setup struct {
	ca      *identitytest.CA
	control *identitytest.Control
	dir     string
}

func newSetup(t *testing.T) setup {
	ca := identitytest.NewCA(t)
	return setup{ca: ca, control: identitytest.NewControl(t, ca, identity.ControlURI), dir: t.TempDir()}
}

func (s setup) config() identity.Config {
	return identity.Config{Dir: s.dir, ControlURL: s.control.URL, Pin: s.ca.Pin(), Token: s.control.Token}
}

func open(t *testing.T, cfg identity.Config) *identity.Identity {
	t.Helper()
	i, err := identity.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(i.Close)
	return i
}

func TestH2_RegisterOnceAndKeepTheCredentials(t *testing.T) {
	s := newSetup(t)
	i := open(t, s.config())
	if _, err := i.ServerConfig(); err == nil {
		t.Error("H3: a host without credentials may listen")
	}
	if err := i.Register(t.Context(), identity.Facts{Hostname: "h1", CPUs: 2}); err != nil {
		t.Fatal(err)
	}
	if i.HostID() != s.control.HostID || s.control.Facts["hostname"] != "h1" {
		t.Errorf("registered as %s with %v", i.HostID(), s.control.Facts)
	}
	for _, f := range []string{"host.key", "credentials.json"} {
		info, err := os.Stat(filepath.Join(s.dir, f))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("H3: %s: %v, %v", f, info.Mode(), err)
		}
	}
	again := open(t, s.config())
	if err := again.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	if s.control.Registrations != 1 || again.HostID() != i.HostID() {
		t.Errorf("%d registrations, want 1", s.control.Registrations)
	}
	if _, err := again.ServerConfig(); err != nil {
		t.Error(err)
	}
}

func TestH2_ALostAnswerIsAskedForAgainWithTheSameKey(t *testing.T) {
	s := newSetup(t)
	i := open(t, s.config())
	key, _ := os.ReadFile(filepath.Join(s.dir, "host.key"))
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	// The answer is lost: the credentials never reached the disk.
	if err := os.Remove(filepath.Join(s.dir, "credentials.json")); err != nil {
		t.Fatal(err)
	}
	again := open(t, s.config())
	if err := again.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatalf("the retry: %v", err)
	}
	if got, _ := os.ReadFile(filepath.Join(s.dir, "host.key")); string(got) != string(key) {
		t.Error("the retry used another key")
	}
}

func TestH1_FirstContactIsPinned(t *testing.T) {
	s := newSetup(t)
	other := identitytest.NewCA(t)
	for name, change := range map[string]func(*identity.Config){
		"wrong pin": func(c *identity.Config) { c.Pin = other.Pin() },
		"no pin":    func(c *identity.Config) { c.Pin = "" },
		"no token":  func(c *identity.Config) { c.Token = "" },
		"bad token": func(c *identity.Config) { c.Token = "spent" },
		"other host": func(c *identity.Config) {
			c.ControlURL = identitytest.NewControl(t, s.ca, "skerry://host/"+id.NewHost().UUID().String()).URL
		},
	} {
		cfg := s.config()
		cfg.Dir = t.TempDir()
		change(&cfg)
		if err := open(t, cfg).Register(t.Context(), identity.Facts{}); err == nil {
			t.Errorf("%s: registered", name)
		}
		if _, err := os.Stat(filepath.Join(cfg.Dir, "credentials.json")); err == nil {
			t.Errorf("%s: credentials were written", name)
		}
	}
	for _, u := range []string{"http://127.0.0.1:1", "ftp://x", "", "https://"} {
		cfg := s.config()
		cfg.ControlURL = u
		if _, err := identity.Open(cfg); err == nil {
			t.Errorf("the URL %q is accepted", u)
		}
	}
	if s.control.Registrations != 0 {
		t.Errorf("%d registrations reached the control plane", s.control.Registrations)
	}
}

func TestAfterwardsTheStoredCAIsTheRoot(t *testing.T) {
	s := newSetup(t)
	i := open(t, s.config())
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	impostor := identitytest.NewControl(t, identitytest.NewCA(t), identity.ControlURI)
	cfg := s.config()
	cfg.ControlURL = impostor.URL
	if err := open(t, cfg).Refresh(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "not trusted") {
		t.Fatalf("an impostor got the refresh token: %v", err)
	}
}

// box is an outbox in memory.
type box struct {
	mu     sync.Mutex
	events []journal.Event
	wake   chan struct{}
}

func newBox() *box { return &box{wake: make(chan struct{}, 1)} }

func (b *box) add(kinds ...string) {
	b.mu.Lock()
	for _, k := range kinds {
		b.events = append(b.events, journal.Event{Seq: uint64(len(b.events) + 1), Kind: k, Sandbox: id.NewSandbox(), Incarnation: 1, At: time.Now()})
	}
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *box) Events(limit int) ([]journal.Event, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]journal.Event(nil), b.events[:min(limit, len(b.events))]...), nil
}

func (b *box) Confirm(seq uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.events) > 0 && b.events[0].Seq <= seq {
		b.events = b.events[1:]
	}
	return nil
}

func (b *box) Wake() <-chan struct{} { return b.wake }

func (b *box) left() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.events)
}

// run keeps in touch until the test ends or stop is called.
func run(t *testing.T, i *identity.Identity, b *box) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	c := identity.Contact{
		Identity: i, Generation: 4, Version: "v", Address: "1.2.3.4:1", Outbox: b,
		Load:      func() identity.Load { return identity.Load{Sandboxes: 2} },
		Heartbeat: 10 * time.Millisecond, RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond,
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.Beat(ctx) })
	wg.Go(func() { c.Deliver(ctx) })
	wg.Go(func() {
		if err := c.Rejoin(ctx, identity.Facts{}); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func (s setup) registered(t *testing.T) *identity.Identity {
	t.Helper()
	i := open(t, s.config())
	if err := i.Register(t.Context(), identity.Facts{}); err != nil {
		t.Fatal(err)
	}
	return i
}

func (s setup) eventually(t *testing.T, what string, ok func(*identitytest.Control) bool) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, what, func() bool {
		s.control.Lock()
		defer s.control.Unlock()
		return ok(s.control)
	})
}

func TestH5_HeartbeatRefreshesOn401AndGoesOn(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	run(t, i, newBox())
	s.eventually(t, "a heartbeat", func(c *identitytest.Control) bool { return len(c.Heartbeats) > 0 })
	s.control.Lock()
	hb := s.control.Heartbeats[0]
	s.control.JWT = "revoked" // what the host holds is worth nothing from here on
	n := len(s.control.Heartbeats)
	s.control.Unlock()
	if hb["generation"] != 4.0 || hb["address"] != "1.2.3.4:1" || hb["load"].(map[string]any)["sandboxes"] != 2.0 {
		t.Errorf("the heartbeat says %v", hb)
	}
	s.eventually(t, "a renewal and heartbeats after it", func(c *identitytest.Control) bool {
		return c.Refreshes >= 1 && len(c.Heartbeats) > n+1
	})
	// What was renewed is on disk.
	if again := open(t, s.config()); again.HostID() != i.HostID() {
		t.Error("another host on disk")
	}
	raw, _ := os.ReadFile(filepath.Join(s.dir, "credentials.json"))
	if !strings.Contains(string(raw), "refresh-2") {
		t.Error("the renewed credentials are not on disk")
	}
}

func TestH5_AnOutageIsOutlasted(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	var failures atomic.Int32
	s.control.Lock()
	s.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if failures.Add(1) > 20 {
			return false
		}
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	s.control.Unlock()
	b := newBox()
	b.add("a", "b")
	run(t, i, b)
	s.eventually(t, "a heartbeat after the outage", func(c *identitytest.Control) bool { return len(c.Heartbeats) > 0 })
	testkit.Eventually(t, 30*time.Second, "the events", func() bool { return b.left() == 0 })
	if s.control.Refreshes != 0 {
		t.Error("an outage made the host renew its credentials")
	}
}

func TestH5_ARefusedRenewalIsKnownAndForgotten(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	if !i.Heard().IsZero() || i.Turned() {
		t.Error("contact before the first heartbeat")
	}
	s.control.Lock()
	token := s.control.RefreshToken
	s.control.JWT, s.control.RefreshToken = "revoked", "revoked"
	s.control.Unlock()
	run(t, i, newBox())
	testkit.Eventually(t, 30*time.Second, "the refusal", i.Turned)
	if !i.Heard().IsZero() {
		t.Error("a refused heartbeat counts as contact")
	}
	s.control.Lock()
	s.control.RefreshToken = token
	s.control.Unlock()
	testkit.Eventually(t, 30*time.Second, "contact", func() bool { return !i.Turned() && !i.Heard().IsZero() })
	if time.Since(i.Heard()) > time.Minute {
		t.Errorf("heard at %v", i.Heard())
	}
}

func TestH4_TwentyRefusalsAreOneRenewal(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := i.Refresh(t.Context(), "jwt-1"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s.control.Refreshes != 1 {
		t.Errorf("%d renewals, want 1", s.control.Refreshes)
	}
}

func TestH3_RenewalAtHalfLife(t *testing.T) {
	s := newSetup(t)
	s.control.Lifetime = 8 * time.Second
	i := s.registered(t)
	if i.RenewalDue() {
		t.Fatal("due at once")
	}
	run(t, i, newBox())
	s.eventually(t, "a renewal before the end", func(c *identitytest.Control) bool { return c.Refreshes >= 1 })
}

func TestH4_AHostThatWasOffPastTheEndOfItsCertificateRenewsIt(t *testing.T) {
	s := newSetup(t)
	s.control.Lifetime = -time.Minute // expired already when the host comes back
	i := s.registered(t)
	i.Close()
	s.control.Lock()
	s.control.Lifetime = time.Hour
	s.control.Unlock()
	cfg := s.config()
	cfg.Token = ""
	run(t, open(t, cfg), newBox())
	s.eventually(t, "a renewal and a heartbeat with the new certificate", func(c *identitytest.Control) bool {
		return c.Refreshes == 1 && len(c.Heartbeats) > 0
	})
}

func TestEventsAreDeliveredAtLeastOnceAndInOrder(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	b := newBox()
	fail := 0
	s.control.Lock()
	s.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			return false
		}
		if fail++; fail%3 == 0 {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	s.control.Unlock()
	for range 450 {
		b.add("k")
	}
	run(t, i, b)
	testkit.Eventually(t, 30*time.Second, "an empty outbox", func() bool { return b.left() == 0 })
	b.mu.Lock()
	b.events = nil
	b.mu.Unlock()
	s.control.Lock()
	defer s.control.Unlock()
	var got []uint64
	for _, e := range s.control.Events {
		if len(got) == 0 || e.Seq > got[len(got)-1] {
			got = append(got, e.Seq)
		}
	}
	want := make([]uint64, 450)
	for n := range want {
		want[n] = uint64(n + 1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnEventNobodyTakesHoldsUpNoOther(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	b := newBox()
	b.add("a", "b", "poison", "c", "d")
	s.control.Lock()
	s.control.Refuse = "poison"
	s.control.Unlock()
	run(t, i, b)
	testkit.Eventually(t, 30*time.Second, "an empty outbox", func() bool { return b.left() == 0 })
	s.control.Lock()
	defer s.control.Unlock()
	got := map[string]bool{}
	for _, e := range s.control.Events {
		got[e.Kind] = true
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "b": true, "c": true, "d": true}, got); diff != "" {
		t.Error(diff)
	}
}

func TestServerConfigPresentsTheNewestCertificate(t *testing.T) {
	s := newSetup(t)
	i := s.registered(t)
	cfg, err := i.ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	first, _ := cfg.GetConfigForClient(&tls.ClientHelloInfo{})
	if err := i.Refresh(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	second, _ := cfg.GetConfigForClient(&tls.ClientHelloInfo{})
	if string(first.Certificates[0].Certificate[0]) == string(second.Certificates[0].Certificate[0]) {
		t.Error("the old certificate is still presented")
	}
}
