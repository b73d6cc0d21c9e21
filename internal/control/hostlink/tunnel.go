package hostlink

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// Guest returns the way to the guest daemon of one incarnation of a sandbox.
// The host part of a request's URL is of no account. Connections are kept and
// used again, so that a second request costs no handshake.
func (c *Client) Guest(sandbox id.Sandbox, incarnation int64) http.RoundTripper {
	return &guest{client: c, authority: authority(sandbox, incarnation, guestapi.DefaultPort)}
}

// Forget cuts every connection to one incarnation: it has ended, and its
// address may be another's next.
func (c *Client) Forget(sandbox id.Sandbox, incarnation int64) {
	c.tunnels.cutAt(strings.TrimSuffix(authority(sandbox, incarnation, guestapi.DefaultPort), strconv.Itoa(guestapi.DefaultPort)))
}

// Dial opens raw bytes to a port inside one incarnation of a sandbox.
func (c *Client) Dial(ctx context.Context, sandbox id.Sandbox, incarnation int64, port int) (net.Conn, error) {
	return c.tunnels.dial(ctx, "tcp", authority(sandbox, incarnation, port))
}

func authority(sandbox id.Sandbox, incarnation int64, port int) string {
	return sandbox.UUID().String() + "." + strconv.FormatInt(incarnation, 10) + ":" + strconv.Itoa(port)
}

type guest struct {
	client    *Client
	authority string
}

// RoundTrip implements http.RoundTripper.
func (g *guest) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host = "http", g.authority
	return g.client.guests.RoundTrip(out)
}

// tunnels opens connections through an agent's listener and knows all that are
// open, by where they lead.
type tunnels struct {
	address string
	dialer  tls.Dialer

	mu     sync.Mutex
	closed bool
	open   map[string]map[*tunnel]struct{}
}

func newTunnels(address string, config *tls.Config) *tunnels {
	return &tunnels{
		address: address,
		dialer:  tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: config},
		open:    make(map[string]map[*tunnel]struct{}),
	}
}

// dial has the form of net.Dialer.DialContext; where is the authority inside.
func (t *tunnels) dial(ctx context.Context, _, where string) (net.Conn, error) {
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return nil, Unavailable(errCut)
	}
	conn, err := t.dialer.DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, Unavailable(err)
	}
	reader, err := connectTo(ctx, conn, where)
	if err != nil {
		conn.Close()
		return nil, err
	}
	out := &tunnel{Conn: conn, reader: reader, owner: t, where: where}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed { // meanwhile
		conn.Close()
		return nil, Unavailable(errCut)
	}
	if t.open[where] == nil {
		t.open[where] = make(map[*tunnel]struct{})
	}
	t.open[where][out] = struct{}{}
	return out, nil
}

// connectTo asks the agent for the bytes of a port; ctx bounds the answer.
func connectTo(ctx context.Context, conn net.Conn, where string) (*bufio.Reader, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: where}, Host: where, Header: http.Header{}}
	if err := req.Write(conn); err != nil {
		return nil, Unavailable(err)
	}
	reader := bufio.NewReaderSize(conn, 32<<10)
	res, err := http.ReadResponse(reader, req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, Unavailable(err)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, refused(res)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return reader, nil
}

// refused reads why the agent did not open the tunnel.
func refused(res *http.Response) error {
	reason := res.Header.Get(rpcerr.HeaderReason)
	detail, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	cause := fmt.Errorf("CONNECT: %s: %s", res.Status, strings.TrimSpace(string(detail)))
	switch reason {
	case "":
		return Unavailable(cause)
	case "port_closed":
		return errs.Unavailable("port_closed", "Nothing listens on that port inside the sandbox.").Because(cause)
	default:
		return errs.New(errs.Code(res.Header.Get(rpcerr.HeaderCode)), reason, "The host refused the connection to the sandbox. Try again.").Because(cause)
	}
}

func (t *tunnels) forget(c *tunnel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open[c.where], c)
	if len(t.open[c.where]) == 0 {
		delete(t.open, c.where)
	}
}

// cutAll cuts what is open; nothing is opened from then on.
func (t *tunnels) cutAll() {
	t.mu.Lock()
	t.closed = true
	var all []*tunnel
	for _, to := range t.open {
		for c := range to {
			all = append(all, c)
		}
	}
	t.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// tunnel is a connection to a port inside a sandbox.
type tunnel struct {
	net.Conn
	reader *bufio.Reader
	owner  *tunnels
	where  string
	once   sync.Once
}

// Read implements net.Conn; what came with the agent's answer comes first.
func (c *tunnel) Read(p []byte) (int, error) {
	if c.reader.Buffered() > 0 {
		return c.reader.Read(p)
	}
	return c.Conn.Read(p)
}

// CloseWrite tells the port that no more bytes will come.
func (c *tunnel) CloseWrite() error {
	return c.Conn.(*tls.Conn).CloseWrite()
}

// Close implements net.Conn.
func (c *tunnel) Close() error {
	c.once.Do(func() { c.owner.forget(c) })
	return c.Conn.Close()
}
