package edge

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// world is an edge before one sandbox, in which app listens on 3000 and 3001,
// and daemon on its own port. It stands for the database and for all hosts.
type world struct {
	t      *testing.T
	edge   *Edge
	addr   string // of the edge
	secret keyring.Secret
	team   id.Team
	app    *httptest.Server
	daemon *httptest.Server

	mu       sync.Mutex
	status   sandbox.Status
	ended    chan struct{}
	accesses map[string]port.Admission // by port and token
	reached  int
	sleepy   bool // what is let in resumes it

	transports map[int]*http.Transport
}

func newWorld(t *testing.T, app http.Handler) *world {
	t.Helper()
	secret, _ := keyring.NewSecret()
	w := &world{t: t, secret: secret, team: id.NewTeam(), status: sandbox.StatusRunning, ended: make(chan struct{}), accesses: map[string]port.Admission{}, transports: map[int]*http.Transport{}}
	w.app = httptest.NewUnstartedServer(app)
	w.app.Config.Protocols = new(http.Protocols)
	w.app.Config.Protocols.SetHTTP1(true)
	w.app.Config.Protocols.SetUnencryptedHTTP2(true)
	w.app.Start()
	t.Cleanup(w.app.Close)
	w.daemon = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(rw, "daemon "+r.RequestURI+" "+r.Header.Get("X-Skerry-Init"))
	}))
	t.Cleanup(w.daemon.Close)
	w.edge = New(Config{Origin: origin, Secret: secret, Accesses: w, Sandboxes: w, Hosts: w, Log: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- w.edge.Run(ctx) }()
	go func() { done <- w.edge.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("the edge ended with %v", err)
			}
		}
		if left := w.edge.open.accesses(); len(left) != 0 || len(w.edge.routes.known) != 0 {
			t.Errorf("%d accesses and %d routes are left", len(left), len(w.edge.routes.known))
		}
	})
	return w
}

// let opens a port for a token, empty for everybody.
func (w *world) let(number int, token string) id.PortAccess {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := port.Admission{Access: id.NewPortAccess(), TeamID: w.team, Public: token == ""}
	w.accesses[key(number, token)] = a
	return a.Access
}

func key(number int, token string) string { return string(rune(number)) + token }

func (w *world) revoke(a id.PortAccess) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, known := range w.accesses {
		if known.Access == a {
			delete(w.accesses, k)
		}
	}
}

// kill ends the sandbox as its status says.
func (w *world) kill(to sandbox.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = to
	close(w.ended)
}

// Admit implements Accesses.
func (w *world) Admit(_ context.Context, x id.Sandbox, number int, token string) (port.Admission, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x != one {
		return port.Admission{}, false, nil
	}
	a, ok := w.accesses[key(number, "")]
	if !ok && token != "" {
		a, ok = w.accesses[key(number, token)]
	}
	return a, ok, nil
}

// TeamOf implements Accesses.
func (w *world) TeamOf(_ context.Context, x id.Sandbox) (id.Team, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.team, x == one && w.status.Live(), nil
}

// Living implements Accesses.
func (w *world) Living(_ context.Context, asked []id.PortAccess) ([]id.PortAccess, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var living []id.PortAccess
	for _, a := range w.accesses {
		if slices.Contains(asked, a.Access) {
			living = append(living, a.Access)
		}
	}
	return living, nil
}

// Reach implements Sandboxes.
func (w *world) Reach(_, _ context.Context, team id.Team, x id.Sandbox, wake bool) (sandbox.Guest, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reached++
	if x != one || team != w.team {
		return sandbox.Guest{}, sandbox.ErrNotFound
	}
	if wake && w.status == sandbox.StatusPaused && w.sleepy {
		w.status, w.ended = sandbox.StatusRunning, make(chan struct{})
	}
	if w.status != sandbox.StatusRunning {
		return sandbox.Guest{}, sandbox.InvalidState(sandbox.Sandbox{Status: w.status})
	}
	return sandbox.Guest{Sandbox: x, Incarnation: 1, Ended: w.ended}, nil
}

// Port implements Hosts.
func (w *world) Port(_ host.Ref, x id.Sandbox, _ int64, number int, http2 bool) (http.RoundTripper, error) {
	to := map[int]*httptest.Server{3000: w.app, 3001: w.app, control: w.daemon}[number]
	w.mu.Lock()
	defer w.mu.Unlock()
	if http2 {
		number = -number
	}
	if known := w.transports[number]; known != nil {
		return known, nil
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	w.transports[number] = &http.Transport{
		DisableCompression: true, Protocols: protocols,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			if to == nil || x != one {
				return nil, errs.Unavailable("port_closed", "closed")
			}
			return (&net.Dialer{}).DialContext(ctx, network, to.Listener.Addr().String())
		},
	}
	w.t.Cleanup(w.transports[number].CloseIdleConnections)
	return w.transports[number], nil
}

// client calls the edge, whatever the host's name is.
func (w *world) client() *http.Client {
	transport := &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, w.addr)
		},
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get asks a port for a path.
func (w *world) get(number int, path string, headers ...string) (int, string, http.Header) {
	w.t.Helper()
	return w.call(http.MethodGet, origin.URL(one, number)+path, headers...)
}

func (w *world) call(method, url string, headers ...string) (int, string, http.Header) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := w.client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(body), res.Header
}
