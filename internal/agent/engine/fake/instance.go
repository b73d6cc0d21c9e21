package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/guest/guestapi"
)

// Instance is one instance of the world. Tests look into it and end it.
type Instance struct {
	Spec engine.Spec

	mu      sync.Mutex
	memory  []byte
	files   map[string][]byte
	started bool
	thawed  chan struct{} // closed while the guest runs
	done    chan struct{} // closed when exit is set
	exit    engine.Exit
	guest   *guest
	began   time.Time
	cpu     time.Duration
}

// guest serves an instance that runs.
type guest struct {
	server *http.Server
	queue  *queue
	ports  map[int]bool
	wg     sync.WaitGroup
}

func newInstance(spec engine.Spec) *Instance {
	open := make(chan struct{})
	close(open)
	return &Instance{Spec: spec, files: map[string][]byte{}, thawed: open, done: make(chan struct{})}
}

// Memory returns a copy of what the guest has in memory; a checkpoint keeps it.
func (i *Instance) Memory() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]byte(nil), i.memory...)
}

// SetMemory changes it.
func (i *Instance) SetMemory(b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.memory = append([]byte(nil), b...)
}

// File returns a file of the guest's disk.
func (i *Instance) File(path string) ([]byte, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b, ok := i.files[path]
	return append([]byte(nil), b...), ok
}

// SetFile writes one.
func (i *Instance) SetFile(path string, b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.files[path] = append([]byte(nil), b...)
}

// Running tells whether it was started and has not ended.
func (i *Instance) Running() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.running()
}

func (i *Instance) running() bool { return i.started && i.exit.Reason == "" }

// Frozen tells whether its time stands still.
func (i *Instance) Frozen() bool {
	select {
	case <-i.gate():
		return false
	default:
		return true
	}
}

func (i *Instance) gate() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.thawed
}

// Done is closed when it has ended.
func (i *Instance) Done() <-chan struct{} { return i.done }

// End ends a running instance now; an ended one keeps its exit. A zero time is
// now.
func (i *Instance) End(x engine.Exit) {
	i.mu.Lock()
	if !i.running() {
		i.mu.Unlock()
		return
	}
	if x.At.IsZero() {
		x.At = now()
	}
	i.exit = x
	g := i.guest
	i.setFrozen(false) // held requests end with the connections
	i.mu.Unlock()
	_ = g.server.Close()
	_ = g.queue.Close()
	close(i.done)
}

// setFrozen needs the lock.
func (i *Instance) setFrozen(frozen bool) {
	select {
	case <-i.thawed:
		if frozen {
			i.thawed = make(chan struct{})
			i.cpu += time.Since(i.began)
		}
	default:
		if !frozen {
			close(i.thawed)
			i.began = time.Now()
		}
	}
}

// boot starts the guest; the lock is held.
func (i *Instance) boot(handler http.Handler, ports map[int]bool) {
	q := &queue{conns: make(chan net.Conn), closed: make(chan struct{})}
	g := &guest{queue: q, ports: ports}
	g.server = &http.Server{
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select { // frozen guests do not answer
			case <-i.gate():
				handler.ServeHTTP(w, r)
			case <-r.Context().Done():
			}
		}),
	}
	g.wg.Go(func() { _ = g.server.Serve(q) })
	i.guest, i.started, i.began = g, true, time.Now()
}

// dial connects to a port, with the words of the kernel when nobody listens.
func (i *Instance) dial(ctx context.Context, port int) (net.Conn, error) {
	i.mu.Lock()
	g, running := i.guest, i.running()
	i.mu.Unlock()
	if !running {
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	}
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("fake: port %d", port)
	}
	if g.ports != nil && !g.ports[port] {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	ours, theirs := net.Pipe()
	select {
	case g.queue.conns <- theirs:
		return ours, nil
	case <-g.queue.closed:
		return nil, fmt.Errorf("%w: %s", engine.ErrExited, i.Spec.ID)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// queue is a listener that is fed by dial.
type queue struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// DefaultGuest is a guest that is healthy, takes every configuration and never
// has anything to tell.
func DefaultGuest(*Instance) http.Handler {
	mux := http.NewServeMux()
	none := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	mux.HandleFunc("GET "+guestapi.PathHealth, none)
	mux.HandleFunc("POST "+guestapi.PathInit, none)
	mux.HandleFunc("GET "+guestapi.PathEvents, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err == nil || errors.Is(err, http.ErrNotSupported) {
			<-r.Context().Done()
		}
	})
	return mux
}

// copyFiles is a deep copy; callers hold the lock.
func copyFiles(files map[string][]byte) map[string][]byte {
	out := maps.Clone(files)
	for name, b := range out {
		out[name] = append([]byte(nil), b...)
	}
	return out
}
