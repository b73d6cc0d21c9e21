package guestlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest serves handler as the daemon of a sandbox that dial reaches.
func guest(t *testing.T, handler http.Handler) func(context.Context, int) (net.Conn, error) {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return func(ctx context.Context, _ int) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}
}

func newLink(t *testing.T, o Options) *Link {
	t.Helper()
	l := New(o)
	t.Cleanup(l.Close)
	return l
}

func TestAwaitAndInit(t *testing.T) {
	var tries atomic.Int32
	var got guestapi.Init
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(guestapi.HeaderInit) != "s3cret" {
			w.WriteHeader(401)
			return
		}
		_ = json.NewDecoder(r.Body).Decode(&got)
		w.WriteHeader(204)
	})
	dial := guest(t, mux)
	slow := func(ctx context.Context, port int) (net.Conn, error) {
		if port != guestapi.DefaultPort {
			t.Errorf("dialled port %d", port)
		}
		if tries.Add(1) < 20 {
			return nil, errors.New("connection refused")
		}
		return dial(ctx, port)
	}
	l := newLink(t, Options{Dial: slow, InitSecret: "s3cret"})
	if err := l.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Init(t.Context(), guestapi.Init{AccessToken: "tok"}); err != nil || got.AccessToken != "tok" {
		t.Fatalf("init: %v, the daemon got %+v", err, got)
	}
	wrong := newLink(t, Options{Dial: dial, InitSecret: "other"})
	if err := wrong.Init(t.Context(), guestapi.Init{}); err == nil {
		t.Error("a refused init succeeded")
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	l := newLink(t, Options{Dial: func(context.Context, int) (net.Conn, error) { return nil, errors.New("refused") }})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := l.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestS15_CloseCutsOpenConnections(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // a guest whose network died: it accepts and never says a word
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	l := newLink(t, Options{MaxConns: 2, Dial: func(ctx context.Context, _ int) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	}})
	a, err := l.Dial(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Dial(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Dial(t.Context(), 80); !errs.Is(err, "too_many_connections") {
		t.Fatalf("a third connection: %v", err)
	}
	_ = b.Close()
	read := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		read <- err
	}()
	l.Close()
	select {
	case err := <-read:
		if err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a cut connection looks like an orderly end: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("a read still hangs after Close")
	}
	if _, err := l.Dial(t.Context(), 80); !errors.Is(err, ErrClosed) {
		t.Errorf("Dial after Close: %v", err)
	}
}

type sink struct {
	mu   sync.Mutex
	seqs []int64
	cmds []string
	fail int
}

func (s *sink) take(e guestapi.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail > 0 {
		s.fail--
		return errors.New("journal is busy")
	}
	s.seqs = append(s.seqs, e.Seq)
	s.cmds = append(s.cmds, e.Cmd)
	return nil
}

func (s *sink) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seqs)
}

func TestEventsAreFollowedOverBreaks(t *testing.T) {
	var calls atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		after, _ := strconv.Atoi(r.URL.Query().Get("after"))
		for i := after + 1; i <= after+2; i++ {
			fmt.Fprintf(w, "\n{\"seq\":%d,\"kind\":\"oom_kill\",\"cmd\":\"python\\n3\"}\n", i)
		}
		w.(http.Flusher).Flush()
		if n >= 3 {
			<-r.Context().Done()
		}
	})
	s := &sink{fail: 1}
	l := newLink(t, Options{Dial: guest(t, mux), After: 5, OnEvent: s.take})
	l.Follow()
	testkit.Eventually(t, 30*time.Second, "events over two breaks", func() bool { return s.len() >= 4 })
	l.Close()
	if diff := cmp.Diff([]int64{6, 7, 8, 9}, s.seqs); diff != "" {
		t.Error(diff)
	}
}

func TestHostileEventsAreBounded(t *testing.T) {
	done := make(chan struct{})
	var once sync.Once
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("after") != "0" {
			once.Do(func() { close(done) })
			<-r.Context().Done()
			return
		}
		for i := 1; i <= 500; i++ {
			fmt.Fprintf(w, "{\"seq\":%d,\"kind\":\"disk_full\",\"cmd\":%q}\n", i, strings.Repeat("x", 10_000))
			fmt.Fprintf(w, "{\"seq\":%d,\"kind\":\"disk_full\"}\n", i) // again
		}
		fmt.Fprintf(w, "{\"seq\":501,\"kind\":\"made_up\"}\n")
		_, _ = io.WriteString(w, strings.Repeat("y", 1<<20)) // a line without end
	})
	s := &sink{}
	l := newLink(t, Options{Dial: guest(t, mux), OnEvent: s.take, EventsPerMinute: 7})
	l.Follow()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the link did not come back after the endless line")
	}
	l.Close()
	if s.len() != 7 {
		t.Errorf("%d events were taken, want 7", s.len())
	}
	for _, c := range s.cmds {
		if len(c) > maxCmd {
			t.Errorf("a command of %d bytes was passed on", len(c))
		}
	}
}

func TestAnEndlessAnswerIsCutOff(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /init", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(500)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	l := newLink(t, Options{Dial: guest(t, mux)})
	if err := l.Init(t.Context(), guestapi.Init{}); err == nil || len(err.Error()) > 2000 {
		t.Fatalf("got %d bytes of error", len(fmt.Sprint(err)))
	}
}
