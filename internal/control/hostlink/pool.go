// Package hostlink is the control plane's way to its hosts: one client a host,
// made when first needed, over mutual TLS in which both ends prove who they
// are, and byte tunnels to the ports inside sandboxes over the same listener.
package hostlink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	dialTimeout = 5 * time.Second
	retryAfter  = 5 * time.Second
	// maxAnswer bounds one message of an agent, in bytes.
	maxAnswer = 16 << 20
)

// Identity is how the control plane proves itself and knows its hosts.
type Identity struct {
	// Certificate returns the current certificate of skerry://control.
	Certificate func(ctx context.Context) (*tls.Certificate, error)
	// Roots hold the platform's CA.
	Roots *x509.CertPool
}

// HostClientPool keeps one Client a host. It is safe for concurrent use.
type HostClientPool struct {
	identity Identity
	watchers []connect.Interceptor

	mu      sync.Mutex
	closed  bool
	clients map[id.Host]*Client
	gone    gone
}

// NewHostClientPool returns an empty pool. All calls of its clients pass through
// the watchers.
func NewHostClientPool(identity Identity, watchers ...connect.Interceptor) *HostClientPool {
	return &HostClientPool{identity: identity, watchers: watchers, clients: make(map[id.Host]*Client)}
}

// Client returns the host's client, a new one when the host's address has
// changed, and with none of its connections idle when its agent has started
// anew. It makes no connection yet. A deleted host gets none.
func (p *HostClientPool) Client(ref host.Ref) (*Client, error) {
	if ref.Address == "" {
		return nil, Unavailable(errors.New("the host has no address yet"))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, Unavailable(errors.New("the pool is closed"))
	}
	if p.gone.has(ref.ID) {
		return nil, Unavailable(errors.New("the host was deleted"))
	}
	if c := p.clients[ref.ID]; c != nil {
		if c.address == ref.Address {
			c.restarted(ref.Generation)
			return c, nil
		}
		c.close()
	}
	c := newClient(p.identity, ref, p.watchers)
	p.clients[ref.ID] = c
	return c, nil
}

// Evict drops a host's client for good and cuts its connections, those in use
// too: the host was deleted.
func (p *HostClientPool) Evict(h id.Host) {
	p.mu.Lock()
	p.gone.add(h)
	p.mu.Unlock()
	p.drop(h)
}

// drop drops a host's client and cuts its connections; who calls it next gets a
// new one.
func (p *HostClientPool) drop(h id.Host) {
	p.mu.Lock()
	c := p.clients[h]
	delete(p.clients, h)
	p.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// Close drops all clients.
func (p *HostClientPool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for h, c := range p.clients {
		c.close()
		delete(p.clients, h)
	}
}

// Client reaches one host at one address.
type Client struct {
	agentv1connect.AgentServiceClient

	address string
	rpc     *http.Transport
	guests  *http.Transport
	ports   *http.Transport
	ports2  *http.Transport
	calls   *dials
	tunnels *tunnels
	greets  *greets

	// Of the pool's: how the host was when it was last looked at.
	generation int64
	registered time.Time
}

func newClient(identity Identity, ref host.Ref, watchers []connect.Interceptor) *Client {
	tun := newTunnels(ref.Address, tlsConfig(identity, ref.ID, "http/1.1"))
	calls := newDials()
	c := &Client{
		address:    ref.Address,
		generation: ref.Generation,
		calls:      calls,
		tunnels:    tun,
		greets:     newGreets(),
		rpc: &http.Transport{
			DialContext:         calls.dial,
			TLSClientConfig:     tlsConfig(identity, ref.ID, "h2"),
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: dialTimeout,
			IdleConnTimeout:     2 * time.Minute,
			HTTP2: &http.HTTP2Config{
				// A host that vanished without a word is noticed on a call in flight.
				SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second,
			},
		},
		ports: newPorts(tun, false), ports2: newPorts(tun, true),
		guests: &http.Transport{
			DialContext:            tun.dial,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    8,
			MaxIdleConns:           1024,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	c.AgentServiceClient = agentv1connect.NewAgentServiceClient(
		&http.Client{Transport: c.rpc}, "https://"+ref.Address, connect.WithReadMaxBytes(maxAnswer), connect.WithInterceptors(watchers...))
	return c
}

// restarted lets go of connections to an agent that is no more; those in use
// find out by themselves. Generation 0 says nothing.
func (c *Client) restarted(generation int64) {
	if generation <= c.generation {
		return
	}
	if c.generation != 0 {
		c.rpc.CloseIdleConnections()
		c.guests.CloseIdleConnections()
		c.ports.CloseIdleConnections()
		c.ports2.CloseIdleConnections()
	}
	c.generation = generation
}

// close cuts everything.
func (c *Client) close() {
	c.greets.end()
	defer c.greets.wg.Wait()
	c.calls.cutAll()
	c.rpc.CloseIdleConnections()
	c.guests.CloseIdleConnections()
	c.ports.CloseIdleConnections()
	c.ports2.CloseIdleConnections()
	c.tunnels.cutAll()
}

// tlsConfig demands a certificate of the platform's CA that names exactly this
// host. Its address says nothing about who answers there.
func tlsConfig(identity Identity, h id.Host, protocol string) *tls.Config {
	want := keyring.HostIdentity(h)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// Chain and name are checked below, by identity instead of address.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyHost(state.PeerCertificates, identity.Roots, want)
		},
		GetClientCertificate: func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return identity.Certificate(info.Context())
		},
	}
}

func verifyHost(chain []*x509.Certificate, roots *x509.CertPool, want string) error {
	if len(chain) == 0 {
		return errors.New("the host shows no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return fmt.Errorf("the host's certificate: %w", err)
	}
	for _, uri := range chain[0].URIs {
		if uri.String() == want {
			return nil
		}
	}
	return fmt.Errorf("another host answers: its certificate does not name %s", want)
}

// Unavailable is what callers get when a host cannot be reached.
func Unavailable(cause error) error {
	return errs.Unavailable("host_unavailable", "The host that runs this sandbox cannot be reached now. Try again in a few seconds.").
		After(retryAfter).Because(cause)
}
