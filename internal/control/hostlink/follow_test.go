package hostlink

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// hosts say how they are.
type hosts struct {
	mu  sync.Mutex
	now map[id.Host]host.Standing
	err error
}

func (h *hosts) Standings(_ context.Context, asked []id.Host) (out []host.Standing, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range asked {
		if s, ok := h.now[x]; ok {
			out = append(out, s)
		}
	}
	return out, h.err
}

func (h *hosts) set(s host.Standing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now[s.ID] = s
}

// agent answers Hello, holds Inventory until it is let go, and echoes tunnels.
type agent struct {
	agentv1connect.UnimplementedAgentServiceHandler
	ref  host.Ref
	held chan struct{}
	open atomic.Int64 // connections
	made atomic.Int64

	carries // uploads and fetches
}

func (a *agent) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{HostId: a.ref.ID.UUID().String(), Generation: 1}, nil
}

func (a *agent) Inventory(ctx context.Context, _ *agentv1.InventoryRequest) (*agentv1.InventoryResponse, error) {
	close(a.held)
	<-ctx.Done()
	return nil, ctx.Err()
}

func newPool(t *testing.T) (*HostClientPool, *agent) {
	t.Helper()
	secret, _ := keyring.NewSecret()
	keys, err := keyring.Load(t.Context(), keyringpg.New(pgtest.New(t)), secret, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{held: make(chan struct{})}
	a.ref.ID = id.NewHost()
	cert, err := keys.SignHostCertificate(a.ref.ID, csr)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.ref.Address = listener.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(a))
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			mux.ServeHTTP(w, r)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err == nil {
			_, _ = io.Copy(conn, buffered)
		}
	}), ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			a.open.Add(1)
			a.made.Add(1)
		case http.StateClosed, http.StateHijacked:
			a.open.Add(-1)
		}
	}}
	done := make(chan error, 1)
	go func() {
		done <- server.Serve(tls.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: keys.CAPool(), NextProtos: []string{"h2", "http/1.1"},
		}))
	}()
	own, err := keys.IssueServer(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := NewHostClientPool(Identity{Certificate: func(context.Context) (*tls.Certificate, error) { return own, nil }, Roots: keys.CAPool()})
	t.Cleanup(func() {
		pool.Close()
		_ = server.Close()
		<-done
	})
	return pool, a
}

func hello(t *testing.T, c *Client) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Hello(ctx, &agentv1.HelloRequest{})
	return err
}

// A host is deleted on another server: within a second the calls in flight and
// the tunnels are cut, and neither the pool nor whoever still holds the client
// reaches it again.
func TestHI06_ADeletedHostIsCutOffAndNeverReachedAgain(t *testing.T) {
	pool, a := newPool(t)
	now := &hosts{now: map[id.Host]host.Standing{}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- pool.Follow(now, slog.New(slog.DiscardHandler))(ctx) }()
	c, err := pool.Client(a.ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := hello(t, c); err != nil {
		t.Fatal(err)
	}
	tunnel, err := c.Dial(t.Context(), id.NewSandbox(), 1, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	flight := make(chan error, 1)
	go func() {
		_, err := c.Inventory(t.Context(), &agentv1.InventoryRequest{})
		flight <- err
	}()
	<-a.held
	start := time.Now()
	now.set(host.Standing{ID: a.ref.ID, Deleted: true})
	select {
	case err := <-flight:
		if connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("the call in flight: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the call in flight goes on")
	}
	if _, err := tunnel.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel is open")
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("cut after %s", d)
	}
	testkit.Eventually(t, 5*time.Second, "no connection is open", func() bool { return a.open.Load() == 0 })
	made := a.made.Load()
	if _, err := pool.Client(a.ref); err == nil {
		t.Error("a deleted host got a new client")
	}
	if err := hello(t, c); err == nil {
		t.Error("the old client reaches it")
	}
	if conn, err := c.Dial(t.Context(), id.NewSandbox(), 1, 80); err == nil {
		conn.Close()
		t.Error("the old client opens tunnels")
	}
	if n := a.made.Load() - made; n != 0 {
		t.Errorf("%d new connections", n)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestH6_ClientsAreReplacedWhenTheHostIsAnother(t *testing.T) {
	pool, a := newPool(t)
	now := &hosts{now: map[id.Host]host.Standing{}}
	first, err := pool.Client(a.ref)
	if err != nil {
		t.Fatal(err)
	}
	reach := func(ref host.Ref) *Client {
		t.Helper()
		c, err := pool.Client(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := hello(t, c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	look := func() {
		t.Helper()
		if err := pool.look(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	reach(a.ref)
	joined := time.Now()
	now.set(host.Standing{ID: a.ref.ID, RegisteredAt: joined})
	look()
	look()
	if reach(a.ref) != first || a.made.Load() != 1 {
		t.Fatal("replaced without a reason")
	}
	// A new start of the agent: the same client, other connections.
	started := a.ref
	for _, generation := range []int64{0, 1} { // says nothing; is the first that is said
		if started.Generation = generation; reach(started) != first || a.made.Load() != 1 {
			t.Errorf("generation %d: %d connections", generation, a.made.Load())
		}
	}
	started.Generation = 2
	testkit.Eventually(t, 10*time.Second, "another connection", func() bool { return reach(started) == first && a.made.Load() == 2 })
	started.Generation = 1 // somebody's old view
	if reach(started) != first || a.made.Load() != 2 {
		t.Error("an old view changed something")
	}
	// It has joined anew: whoever answers there proves it anew.
	now.set(host.Standing{ID: a.ref.ID, RegisteredAt: joined.Add(time.Minute)})
	look()
	second := reach(a.ref)
	if second == first || a.made.Load() != 3 {
		t.Error("the client of before the host joined anew is used")
	}
	look()
	// Its credentials are void.
	now.set(host.Standing{ID: a.ref.ID, RegisteredAt: joined.Add(time.Minute), Revoked: true})
	look()
	testkit.Eventually(t, 5*time.Second, "no connection is open", func() bool { return a.open.Load() == 0 })
	if err := hello(t, second); err == nil {
		t.Error("a client that was dropped reaches the host")
	}
	now.set(host.Standing{ID: a.ref.ID, RegisteredAt: joined.Add(2 * time.Minute)})
	third := reach(a.ref)
	// Another address.
	moved := a.ref
	moved.Address = strings.Replace(a.ref.Address, "127.0.0.1", "localhost", 1)
	if reach(moved) == third {
		t.Error("a client of another address is used")
	}
	// The database is away: nothing changes.
	now.err = errors.New("database away")
	if err := pool.look(t.Context(), now); err == nil {
		t.Error("no error")
	}
	reach(moved)
}

func TestDeletedHostsAreRememberedWithinBounds(t *testing.T) {
	var g gone
	first := id.NewHost()
	g.add(first)
	g.add(first)
	for range maxGone - 1 {
		g.add(id.NewHost())
	}
	if !g.has(first) || len(g.order) != maxGone {
		t.Fatalf("%d remembered, the first %t", len(g.order), g.has(first))
	}
	last := id.NewHost()
	g.add(last)
	if g.has(first) || !g.has(last) || len(g.hosts) != maxGone || len(g.order) != maxGone {
		t.Errorf("%d and %d remembered", len(g.hosts), len(g.order))
	}
}
