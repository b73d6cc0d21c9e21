package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/net/publicsuffix"

	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/port/portpg"
)

// listenSandboxes opens the listener of the sandbox origin.
func listenSandboxes(set settings) (net.Listener, error) {
	l, err := net.Listen("tcp", set.SandboxListen)
	if err != nil {
		return nil, fmt.Errorf("SKERRY_SANDBOX_LISTEN: %w", err)
	}
	if set.SandboxTLSCert == "" {
		return l, nil
	}
	pair, err := tls.LoadX509KeyPair(set.SandboxTLSCert, set.SandboxTLSKey)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("SKERRY_SANDBOX_TLS_CERT: %w", err), l.Close())
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
	}), nil
}

// openEdge makes what is reached of sandboxes from outside. It comes after
// sandboxes and links.
func (c *control) openEdge() {
	c.ports = port.NewService(portpg.New(c.pool), c.sandboxes)
	c.edge = edge.New(edge.Config{
		Origin: c.cfg.sandboxes, Secret: c.cfg.secret, Accesses: c.ports, Sandboxes: c.sandboxes, Hosts: c.links, Log: c.log,
		Trusted: func(remote string) bool {
			peer, err := netip.ParseAddrPort(remote)
			if err != nil {
				return false
			}
			for _, prefix := range c.cfg.proxies {
				if prefix.Contains(peer.Addr().Unmap()) {
					return true
				}
			}
			return false
		},
	})
}

// apart checks that what sandboxes serve can share nothing with the dashboard
// in a browser: no origin, no cookie, no site. Names below localhost are sites of
// their own.
func apart(api string, sandboxes port.Origin) error {
	u, err := url.Parse(api)
	if err != nil {
		return nil //nolint:nilerr // said of SKERRY_URL
	}
	host, domain := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), sandboxes.Domain
	if _, err := netip.ParseAddr(host); err == nil || domain == "localhost" {
		return nil
	}
	same := host == domain || strings.HasSuffix(host, "."+domain) || strings.HasSuffix(domain, "."+host)
	if !same {
		a, errA := publicsuffix.EffectiveTLDPlusOne(host)
		b, errB := publicsuffix.EffectiveTLDPlusOne(domain)
		same = errA == nil && errB == nil && a == b
	}
	if same {
		return fmt.Errorf("must be another site than %s, so that pages in sandboxes share no cookie with the dashboard: not below the same registered domain", host)
	}
	return nil
}
