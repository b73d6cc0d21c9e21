package fleet

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Front stands between agents and servers as a balancer does: it passes
// connections on unread, to the servers in turn. For single hosts it can answer
// every request itself, with the platform's certificate, as a broken
// server or a wrong one behind the balancer would.
type Front struct {
	listener net.Listener
	backends []string
	broken   *http.Server
	queue    *queue
	wg       sync.WaitGroup

	mu      sync.Mutex
	next    int
	answers map[netip.Addr]int
	asked   map[netip.Addr]int
	open    map[net.Conn]netip.Addr
}

func newFront(addr string) (*Front, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	f := &Front{
		listener: listener, answers: map[netip.Addr]int{}, asked: map[netip.Addr]int{}, open: map[net.Conn]netip.Addr{},
		queue: &queue{conns: make(chan net.Conn), ended: make(chan struct{}), addr: listener.Addr()},
	}
	f.wg.Go(f.accept)
	return f, nil
}

// certify lets the front answer by itself from now on.
func (f *Front) certify(cert *tls.Certificate) {
	f.broken = &http.Server{
		Handler:   http.HandlerFunc(f.answer),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS13},
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), ReadHeaderTimeout: 10 * time.Second,
	}
	f.wg.Go(func() { _ = f.broken.ServeTLS(f.queue, "", "") })
}

// Answer has every request from an address answered with a status; 0 lets the
// servers answer again. Connections that are open are closed.
func (f *Front) Answer(from netip.Addr, status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if status == 0 {
		delete(f.answers, from)
	} else {
		f.answers[from] = status
	}
	for conn, whose := range f.open {
		if whose == from {
			_ = conn.Close()
		}
	}
}

// Answered is how many requests of an address were answered here.
func (f *Front) Answered(from netip.Addr) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[from]
}

func (f *Front) answer(w http.ResponseWriter, r *http.Request) {
	from := remote(r.RemoteAddr)
	f.mu.Lock()
	status := f.answers[from]
	f.asked[from]++
	f.mu.Unlock()
	if status == 0 {
		status = http.StatusServiceUnavailable // changed while it was on its way
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"code":"not_found","message":"There is nothing here."}`)
}

func remote(addr string) netip.Addr {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

func (f *Front) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		from := remote(conn.RemoteAddr().String())
		f.mu.Lock()
		f.open[conn] = from
		status := f.answers[from]
		f.mu.Unlock()
		closing := &tracked{Conn: conn, closed: sync.OnceFunc(func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.open, conn)
		})}
		if status != 0 {
			if !f.queue.push(closing) {
				_ = closing.Close()
			}
			continue
		}
		f.wg.Go(func() { f.pass(closing) })
	}
}

// pass joins a connection with the next server that takes it.
func (f *Front) pass(conn net.Conn) {
	defer conn.Close()
	f.mu.Lock()
	first := f.next
	f.next++
	f.mu.Unlock()
	var server net.Conn
	for i := range f.backends {
		var err error
		if server, err = net.DialTimeout("tcp", f.backends[(first+i)%len(f.backends)], 2*time.Second); err == nil {
			break
		}
	}
	if server == nil {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{server, conn}, {conn, server}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			// One side is done or broken: neither can go on without it.
			_, _ = conn.Close(), server.Close()
		})
	}
	both.Wait()
}

func (f *Front) close() error {
	err := f.listener.Close()
	close(f.queue.ended)
	if f.broken != nil {
		err = errors.Join(err, f.broken.Close())
	}
	f.mu.Lock()
	for conn := range f.open {
		_ = conn.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
	return err
}

// tracked is a connection that says when it is closed.
type tracked struct {
	net.Conn
	closed func()
}

func (c *tracked) Close() error {
	c.closed()
	return c.Conn.Close()
}

// queue is a listener of connections that were accepted elsewhere.
type queue struct {
	conns chan net.Conn
	ended chan struct{}
	addr  net.Addr
}

func (q *queue) push(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.ended:
		return false
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.ended:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { return nil }
func (q *queue) Addr() net.Addr { return q.addr }
