package hostlink

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// Connections to applications are let go of before most of these do so
	// themselves: after five seconds.
	portIdle = 4 * time.Second
	// A port that nothing listens on yet is tried again, a little later each time.
	portTries = 4
	portPause = 100 * time.Millisecond
	// maxPortHeader bounds the header of an application's answer, in bytes.
	maxPortHeader = 256 << 10
)

// Port returns the way to a port of one incarnation of a sandbox, where HTTP/1.1
// is spoken or, with http2, HTTP/2 without encryption.
func (p *HostClientPool) Port(ref host.Ref, sandbox id.Sandbox, incarnation int64, port int, http2 bool) (http.RoundTripper, error) {
	c, err := p.Client(ref)
	if err != nil {
		return nil, err
	}
	transport := c.ports
	if http2 {
		transport = c.ports2
	}
	return &inside{transport: transport, authority: authority(sandbox, incarnation, port)}, nil
}

// newPorts makes what speaks to applications in sandboxes.
func newPorts(t *tunnels, http2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, network, where string) (net.Conn, error) {
			for try := time.Duration(1); ; try++ {
				conn, err := t.dial(ctx, network, where)
				if err == nil || try == portTries || !errs.Is(err, "port_closed") {
					return conn, err
				}
				timer := time.NewTimer(try * portPause)
				select {
				case <-timer.C:
				case <-ctx.Done():
					timer.Stop()
					return nil, err
				}
			}
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    32,
		MaxIdleConns:           2048,
		IdleConnTimeout:        portIdle,
		MaxResponseHeaderBytes: maxPortHeader,
		WriteBufferSize:        32 << 10,
		ReadBufferSize:         32 << 10,
	}
}

// inside carries requests to one port, with all that they say of it untouched.
type inside struct {
	transport *http.Transport
	authority string
}

// RoundTrip implements http.RoundTripper.
func (i *inside) RoundTrip(req *http.Request) (*http.Response, error) {
	out := req.WithContext(req.Context())
	u := *req.URL
	u.Scheme, u.Host = "http", i.authority
	out.URL = &u
	return i.transport.RoundTrip(out)
}

// cutAt cuts what leads to any port of an incarnation; where is its authority
// up to the port.
func (t *tunnels) cutAt(where string) {
	t.mu.Lock()
	var all []*tunnel
	for to, conns := range t.open {
		if strings.HasPrefix(to, where) {
			for c := range conns {
				all = append(all, c)
			}
		}
	}
	t.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}
