package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	dialTimeout   = 15 * time.Second
	answerTimeout = time.Minute
	// stallTimeout ends a download that gives nothing for so long.
	stallTimeout = time.Minute
)

// client is the way to one registry and to where it keeps its bytes.
type client struct {
	transport *http.Transport
	loopback  bool // the reference itself names a registry on this machine
	denied    []netip.Prefix
	inside    []netip.Prefix
	stall     time.Duration
}

func (r Registries) client(registry name.Registry) *client {
	host := registry.RegistryStr()
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	c := &client{loopback: isLoopback(host), denied: r.Denied, inside: r.Inside, stall: cmp.Or(r.stall, stallTimeout)}
	c.transport = &http.Transport{
		DialContext: c.dial, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: answerTimeout,
		MaxIdleConnsPerHost: parallel, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
	}
	if r.Proxy != nil { // nothing else is connected to
		c.transport.Proxy, c.transport.DialContext = http.ProxyURL(r.Proxy), (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return c
}

// parallel is how many layers are fetched at once.
const parallel = 3

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(trimBrackets(host))
	return err == nil && ip.Unmap().IsLoopback()
}

func trimBrackets(host string) string {
	if len(host) > 1 && host[0] == '[' && host[len(host)-1] == ']' {
		return host[1 : len(host)-1]
	}
	return host
}

// CloseIdleConnections ends what is kept for the next request.
func (c *client) CloseIdleConnections() { c.transport.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !(c.loopback && isLoopback(r.URL.Hostname())) {
		return nil, errs.FailedPrecondition("registry_insecure", fmt.Sprintf(
			"The registry wants %.100s to be read without encryption. Registries are read by HTTPS only.", r.URL.Host))
	}
	ctx, cancel := context.WithCancel(r.Context())
	resp, err := c.transport.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	b := &watchedBody{body: resp.Body, cancel: cancel, within: c.stall}
	b.timer = time.AfterFunc(c.stall, b.expire)
	resp.Body = b
	if r.Context().Value(content{}) == nil {
		resp.Body = reader{io.LimitReader(b, maxDocument), b.Close}
	}
	return resp, nil
}

// content marks the requests whose answers are bounded by who reads them; all
// others are documents.
type content struct{}

// watchedBody is cut off when nothing comes.
type watchedBody struct {
	body    io.ReadCloser
	cancel  context.CancelFunc
	within  time.Duration
	timer   *time.Timer
	mu      sync.Mutex
	stalled bool
}

func (b *watchedBody) expire() {
	b.mu.Lock()
	b.stalled = true
	b.mu.Unlock()
	b.cancel()
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.within)
	n, err := b.body.Read(p)
	b.timer.Stop() // the reader may take its time
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && b.stalled {
		err = fmt.Errorf("nothing came for %s: %w", b.within, context.DeadlineExceeded)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.timer.Stop()
	err := b.body.Close()
	b.cancel()
	return err
}

// errDenied is what a connection to a forbidden address fails with.
var errDenied = errors.New("the address is not one a registry may have")

// dial connects to where registries may be. What a name leads to is looked at
// when it is connected to, so that nothing comes in between.
func (c *client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return c.allowed(at.Addr())
	}}
	return d.DialContext(ctx, network, address)
}

func (c *client) allowed(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	refused := ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || ip.IsLoopback() && !c.loopback ||
		!public(ip) && !within(ip, c.inside) || within(ip, c.denied)
	if refused {
		return errs.Forbidden("registry_denied", "The registry leads to an address this host does not connect to. Registries are on the public internet; an operator lets them be in other networks by SKERRY_REGISTRY_NETWORKS on the host.").Because(fmt.Errorf("%w: %s", errDenied, ip))
	}
	return nil
}

func within(ip netip.Addr, networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(ip) })
}

var (
	// unpublic are addresses of this network and this machine, private ones, those
	// of carriers, protocols and benchmarks, reserved ones, and such as stand for
	// others.
	unpublic = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
		netip.MustParsePrefix("2001::/32"), netip.MustParsePrefix("2002::/16"),
	}
	// global6 is all of IPv6 that is given to anybody.
	global6 = netip.MustParsePrefix("2000::/3")
	// nat64 is where networks without IPv4 find it.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

// public reports whether an address is of the public internet.
func public(ip netip.Addr) bool {
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	return !within(ip, unpublic) && (ip.Is4() || global6.Contains(ip))
}
