package guestlink

import (
	"encoding/json"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// waking is a daemon that wakes up in a copy, with the secret of its source.
type waking struct {
	mu     sync.Mutex
	secret string
	token  string
	lose   int // answers to lose
	inits  int
	idle   time.Duration
}

func (d *waking) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.URL.Path {
	case guestapi.PathInit:
		if r.Header.Get(guestapi.HeaderInit) != d.secret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var in guestapi.Init
		_ = json.NewDecoder(r.Body).Decode(&in)
		if in.NewInitSecret != "" {
			d.secret = in.NewInitSecret
		}
		d.token = in.AccessToken
		d.inits++
		if d.lose--; d.lose >= 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusNoContent)
	case guestapi.PathMetrics:
		if r.Header.Get(guestapi.HeaderAccessToken) != d.token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(guestapi.Metrics{IdleMS: d.idle.Milliseconds()})
	}
}

func TestRS06_ACopyGetsASecretOfItsOwn(t *testing.T) {
	for _, lose := range []int{0, 1} {
		d := &waking{secret: "old", lose: lose}
		l := newLink(t, Options{Dial: guest(t, d), InitSecret: "old"})
		if err := l.Init(t.Context(), guestapi.Init{NewInitSecret: "new", AccessToken: "tok"}); err != nil {
			t.Fatalf("with %d answers lost: %v", lose, err)
		}
		if err := l.Init(t.Context(), guestapi.Init{AccessToken: "tok2"}); err != nil {
			t.Errorf("the link does not use the new secret: %v", err)
		}
		if d.secret != "new" || d.inits != 2+lose {
			t.Errorf("the daemon has %q after %d calls", d.secret, d.inits)
		}
	}
	d := &waking{secret: "somebody else's"}
	l := newLink(t, Options{Dial: guest(t, d), InitSecret: "old"})
	if err := l.Init(t.Context(), guestapi.Init{NewInitSecret: "new"}); err == nil || d.secret != "somebody else's" {
		t.Errorf("refused: %v, %q", err, d.secret)
	}
}

func TestTL05_AnOpenConnectionIsActivity(t *testing.T) {
	d := &waking{secret: "s", token: "tok", idle: time.Hour}
	l := newLink(t, Options{Dial: guest(t, d), InitSecret: "s", AccessToken: "tok"})
	idle := func() time.Duration {
		t.Helper()
		got, err := l.Idle(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	// We began to look just now: what was before is not known.
	if got := idle(); got > time.Minute {
		t.Errorf("idle for %v", got)
	}
	l.mu.Lock()
	l.spoken = time.Now().Add(-2 * time.Hour)
	l.mu.Unlock()
	if got := idle(); got != time.Hour {
		t.Errorf("idle for %v, the daemon says an hour", got)
	}
	var open []net.Conn
	for _, port := range []int{guestapi.DefaultPort, 8080} {
		c, err := l.Dial(t.Context(), port)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		want := time.Duration(0)
		if port == guestapi.DefaultPort { // the daemon knows what goes on there
			want = time.Hour
		}
		if got := idle(); got != want {
			t.Errorf("port %d open: idle for %v, want %v", port, got, want)
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	if got := idle(); got == 0 || got > time.Minute {
		t.Errorf("TL-05: after its end idle for %v", got)
	}
	d.mu.Lock()
	d.idle = -time.Second // hostile
	d.mu.Unlock()
	if got := idle(); got != 0 {
		t.Errorf("idle for %v", got)
	}
}
