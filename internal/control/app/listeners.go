package app

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
)

// storePrefix is where hosts move artifacts.
const storePrefix = "/v1/store/"

// forAgents tells the paths that agents call, and nobody else.
func forAgents(path string) bool {
	if path == "/v1/hosts/register" || path == "/v1/hosts/auth/refresh" || strings.HasPrefix(path, storePrefix) {
		return true
	}
	rest, ok := strings.CutPrefix(path, "/v1/hosts/")
	return ok && (strings.HasSuffix(rest, "/heartbeat") || strings.HasSuffix(rest, "/events") || strings.HasSuffix(rest, "/samples"))
}

// nowhere sends a request to a path that does not exist, so that it is answered
// and logged like any other such.
func nowhere(next http.Handler, w http.ResponseWriter, r *http.Request) {
	lost := r.Clone(r.Context())
	lost.URL = &url.URL{Path: "/not-on-this-listener" + r.URL.Path}
	next.ServeHTTP(w, lost)
}

// onlyPublic hides the agents' paths.
func onlyPublic(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if forAgents(r.URL.Path) {
			if strings.HasPrefix(r.URL.Path, storePrefix) {
				// A grant is in the path; it must not reach a log.
				r = r.Clone(r.Context())
				r.URL.Path = strings.TrimSuffix(storePrefix, "/")
			}
			nowhere(api, w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// onlyAgents hides all other paths, and demands a host's certificate but where
// the host has none, or none that is still valid.
func (c *control) onlyAgents() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		certified := r.TLS != nil && len(r.TLS.VerifiedChains) > 0
		switch {
		case !forAgents(path):
			nowhere(c.api, w, r)
		case !certified && path != "/v1/hosts/register" && path != "/v1/hosts/auth/refresh":
			web.WriteError(w, r, errs.Unauthenticated("client_certificate_required", "Show the host's certificate, or register the host."))
		case strings.HasPrefix(path, storePrefix):
			c.moves.ServeHTTP(w, r)
		default:
			c.api.ServeHTTP(w, r)
		}
	})
}

// agentTLS speaks TLS with the platform's own certificate and checks those of
// clients that show one.
func (c *control) agentTLS(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  c.keys.CAPool(),
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.certs.current(hello.Context())
		},
	})
}

// certificates keeps this server's own certificate fresh: it is renewed when
// half of its life is over.
type certificates struct {
	keys  *keyring.Keyring
	names []string
	ips   []net.IP

	mu   sync.Mutex
	cert *tls.Certificate
	due  time.Time
}

func newCertificates(keys *keyring.Keyring, agentURL string) *certificates {
	c := &certificates{keys: keys}
	if u, err := url.Parse(agentURL); err == nil {
		if ip := net.ParseIP(u.Hostname()); ip != nil {
			c.ips = []net.IP{ip}
		} else {
			c.names = []string{u.Hostname()}
		}
	}
	return c
}

func (c *certificates) current(context.Context) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && time.Now().Before(c.due) {
		return c.cert, nil
	}
	cert, err := c.keys.IssueServer(c.names, c.ips)
	if err != nil {
		return nil, err
	}
	c.cert, c.due = cert, time.Now().Add(keyring.LeafLifetime/2)
	return cert, nil
}
