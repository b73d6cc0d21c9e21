package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
)

// EngineFact is one engine as this host offers it.
type EngineFact struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"`
	// CPUFeatures are what saved memory may depend on.
	CPUFeatures []string `json:"cpu_features,omitempty"`
	// Digest is the SHA-256 of the engine's program, hex; Builds are the others of
	// it that are kept here.
	Digest string      `json:"digest,omitempty"`
	Builds []BuildFact `json:"builds,omitempty"`
}

// BuildFact is a build of an engine's program.
type BuildFact struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// Facts describe the host at its registration.
type Facts struct {
	Hostname    string       `json:"hostname"`
	Arch        string       `json:"arch"`
	CPUs        int          `json:"cpus"`
	MemoryBytes int64        `json:"memory_bytes"`
	DiskBytes   int64        `json:"disk_bytes"`
	Kernel      string       `json:"kernel"`
	Version     string       `json:"version"`
	Address     string       `json:"address"`
	Engines     []EngineFact `json:"engines"`
}

// Config says where the control plane is and how it is known.
type Config struct {
	Dir string
	// ControlURL is the control plane's address, https only.
	ControlURL string
	// Pin is the SHA-256 of the platform's CA, hex; needed for the first contact.
	Pin string
	// Token is the one-time registration token.
	Token  string
	Clock  clock.Clock
	Logger *slog.Logger
	// Step, when not nil, is called after each step named in Steps. Crash tests
	// end the process there.
	Step func(Step)
}

// Identity is this host's standing with the control plane. Safe for concurrent
// use.
type Identity struct {
	cfg   Config
	base  *url.URL
	store store
	key   *ecdsa.PrivateKey
	http  *http.Client
	// nameless presents no certificate: for registering, when there is none, and
	// for renewing, when it may have expired.
	nameless *http.Client
	// elsewhere reaches what is not the control plane.
	elsewhere *http.Transport

	current  atomic.Pointer[material] // nil until registered
	heard    atomic.Pointer[time.Time]
	refused  atomic.Bool
	skewed   atomic.Bool   // the machine's clock was found wrong
	renewal  sync.Mutex    // one change of the credentials at a time
	rejoined chan struct{} // holds one when the next heartbeat should not wait
	deleted  chan struct{} // closed once the statement of our deletion is on disk
	believe  sync.Mutex    // guards the closing
}

// Open reads what is on disk and makes the key when there is none. It talks to
// nobody. ErrLeft is a host that was deleted and of which nothing is left; a
// registration token it has not seen makes it another one.
func Open(cfg Config) (*Identity, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Step == nil {
		cfg.Step = func(Step) {}
	}
	base, err := url.Parse(strings.TrimRight(cfg.ControlURL, "/"))
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("identity: the control plane's URL must be https://host[:port], not %q", cfg.ControlURL)
	}
	i := &Identity{
		base: base, store: store{dir: cfg.Dir, step: cfg.Step}, deleted: make(chan struct{}), rejoined: make(chan struct{}, 1),
		elsewhere: &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
		},
	}
	if err := i.store.tidy(); err != nil {
		return nil, err
	}
	if o, ok, err := i.store.offer(); err != nil {
		return nil, err
	} else if ok {
		cfg.Token, cfg.Pin = o.Token, o.Pin
	}
	i.cfg = cfg
	farewell, parted, err := i.store.farewell()
	if err != nil {
		return nil, err
	}
	if parted && farewell.Done {
		if err := i.forget(farewell); err != nil {
			return nil, err
		}
	}
	if i.key, err = i.store.key(); err != nil {
		return nil, err
	}
	creds, ok, err := i.store.load()
	if err != nil {
		return nil, err
	}
	if ok {
		m, err := check(creds, i.key, "")
		if err != nil {
			return nil, err
		}
		i.current.Store(m)
	}
	if parted && !farewell.Done {
		i.resume(farewell)
	}
	i.http, i.nameless = i.client(true), i.client(false)
	return i, nil
}

func (i *Identity) client(named bool) *http.Client {
	return &http.Client{
		Timeout:       callTimeout,
		Transport:     i.transport(named),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// transport verifies the peer on every new connection with what is known at
// that moment: the stored CA, or the pin before there is one. Where named it
// presents the host's certificate.
func (i *Identity) transport(named bool) *http.Transport {
	return &http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// The identity is a URI, which the standard check does not know;
			// VerifyConnection does all of it.
			InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
			VerifyConnection: func(s tls.ConnectionState) error {
				if m := i.current.Load(); m != nil {
					return rooted(m.roots, i.cfg.Clock)(s)
				}
				return pinned(i.cfg.Pin, i.cfg.Clock)(s)
			},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if m := i.current.Load(); m != nil && named {
					return &m.cert, nil
				}
				return &tls.Certificate{}, nil
			},
		},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 2,
	}
}

// Close drops idle connections.
func (i *Identity) Close() {
	i.http.CloseIdleConnections()
	i.nameless.CloseIdleConnections()
	i.elsewhere.CloseIdleConnections()
}

// RoundTrip implements http.RoundTripper for transfers of any length: to the
// control plane as this host, to other places (an object store's presigned
// URLs) as anybody, by the machine's own trust.
func (i *Identity) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == i.base.Scheme && r.URL.Host == i.base.Host {
		return i.http.Transport.RoundTrip(r)
	}
	return i.elsewhere.RoundTrip(r)
}

// HostID returns who this host is; zero before it is registered.
func (i *Identity) HostID() id.Host {
	if m := i.current.Load(); m != nil {
		return m.creds.HostID
	}
	return id.Host{}
}

// ServerConfig is the TLS side of an agent's listener: our newest certificate,
// and only the control plane as a client. It fails before registration: an
// agent without mutual TLS never listens.
func (i *Identity) ServerConfig() (*tls.Config, error) {
	if i.current.Load() == nil {
		return nil, errors.New("identity: not registered; there is no certificate to listen with")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := i.current.Load()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Time:                   i.cfg.Clock.Now,
				NextProtos:             []string{"h2", "http/1.1"},
				Certificates:           []tls.Certificate{m.cert},
				ClientAuth:             tls.RequireAndVerifyClientCert,
				ClientCAs:              m.roots,
				SessionTicketsDisabled: true, // every connection proves itself anew
				VerifyConnection: func(s tls.ConnectionState) error {
					if len(s.PeerCertificates) == 0 || !names(s.PeerCertificates[0], ControlURI) {
						return errors.New("identity: only the control plane may call")
					}
					return nil
				},
			}, nil
		},
	}, nil
}

type answer struct {
	HostID           string    `json:"host_id"`
	HostJWT          string    `json:"host_jwt"`
	HostJWTExpiresAt time.Time `json:"host_jwt_expires_at"`
	RefreshToken     string    `json:"refresh_token"`
	Certificate      string    `json:"certificate"`
	CA               string    `json:"ca"`
}

// ErrToken ends an agent without credentials whose registration token is missing
// or void for good: to start it again does not help.
var ErrToken = errors.New("identity: this machine needs another registration token")

// Register makes sure this host is registered. With credentials on disk it
// does nothing, unless a new registration token was given; then a refusal of
// that token leaves the old credentials in force. Without any it is ErrToken.
func (i *Identity) Register(ctx context.Context, facts Facts) error {
	have := i.current.Load()
	if have != nil && (i.cfg.Token == "" || have.creds.TokenHash == hash(i.cfg.Token)) {
		return i.store.withdraw(i.cfg.Token)
	}
	if i.cfg.Token == "" {
		return fmt.Errorf("%w: it is not registered; run the install command of a host (skerry host create, skerry host token)", ErrToken)
	}
	if have == nil && len(i.cfg.Pin) != sha256.Size*2 {
		return errors.New("identity: the first contact needs the SHA-256 of the platform's CA, 64 hex digits, from the install command")
	}
	o := Offer{Token: i.cfg.Token, Pin: i.cfg.Pin}
	err := i.register(ctx, facts, o)
	switch {
	case have == nil && voidToken(err):
		return fmt.Errorf("%w: the one it was given is void, or that of a host that was deleted; run the install command of another (skerry host create, skerry host token): %w", ErrToken, err)
	case err == nil || have == nil || errors.Is(err, ErrDeleted):
		return err
	case voidToken(err):
		i.cfg.Logger.Warn("the new registration token was refused; going on with the credentials this host has", "err", err)
		return nil
	default: // Rejoin tries again
		i.cfg.Logger.Warn("the new registration token could not be used yet; going on with the credentials this host has", "err", err)
		return i.store.saveOffer(o)
	}
}

// register spends a token. It may be repeated with the same one; an offer that
// was taken, or never will be, is withdrawn.
func (i *Identity) register(ctx context.Context, facts Facts, o Offer) error {
	i.renewal.Lock()
	defer i.renewal.Unlock()
	csr, err := certificateRequest(i.key)
	if err != nil {
		return err
	}
	var got answer
	err = i.call(ctx, "/v1/hosts/register", false, map[string]any{
		"registration_token": o.Token, "csr": csr, "facts": facts,
	}, &got)
	if err == nil {
		i.cfg.Step(StepAnswered)
		err = i.adopt(got, hash(o.Token), o.Pin)
	}
	if err == nil || voidToken(err) {
		err = errors.Join(err, i.store.withdraw(o.Token))
	}
	return err
}

// voidToken reports whether a registration was refused for good: the token is
// void, or is that of a host that was deleted and is not this one.
func voidToken(err error) bool {
	var r *Refused
	return Unauthorized(err) || errors.As(err, &r) && r.Status == http.StatusGone && r.Code == "host_deleted" && !errors.Is(err, ErrDeleted)
}

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Refresh renews all credentials. seen is the JWT that was found wanting; when
// a renewal replaced it meanwhile there is nothing to do. Empty renews always.
func (i *Identity) Refresh(ctx context.Context, seen string) error {
	i.renewal.Lock()
	defer i.renewal.Unlock()
	m := i.current.Load()
	if m == nil {
		return errors.New("identity: not registered")
	}
	if seen != "" && seen != m.creds.HostJWT {
		return nil
	}
	csr, err := certificateRequest(i.key)
	if err != nil {
		return err
	}
	var got answer
	err = i.call(ctx, "/v1/hosts/auth/refresh", false, map[string]any{
		"refresh_token": m.creds.RefreshToken, "csr": csr,
	}, &got)
	if err != nil {
		if Unauthorized(err) && !i.refused.Swap(true) {
			i.cfg.Logger.Error("the control plane refuses this host's credentials: its sandboxes are paused until it has new ones; "+
				"have a registration token issued for it (skerry host token) and hand it over here (skerry join)",
				"host_id", m.creds.HostID.String(), "err", err)
		}
		return err
	}
	i.cfg.Step(StepAnswered)
	if got.HostID != id.FormatHost(m.creds.HostID) {
		return fmt.Errorf("identity: the control plane renewed the credentials of %q, which is another host", got.HostID)
	}
	return i.adopt(got, m.creds.TokenHash, "")
}

// adopt puts an answer in force, once it is on disk.
func (i *Identity) adopt(got answer, tokenHash, pin string) error {
	host, err := id.ParseHost(got.HostID)
	if err != nil {
		return fmt.Errorf("identity: the control plane's answer: %w", err)
	}
	creds := Credentials{
		HostID: host, HostJWT: got.HostJWT, HostJWTExpiresAt: got.HostJWTExpiresAt,
		RefreshToken: got.RefreshToken, Certificate: got.Certificate, CA: got.CA,
		ObtainedAt: i.cfg.Clock.Now(), TokenHash: tokenHash,
	}
	m, err := check(creds, i.key, pin)
	if err != nil {
		return err
	}
	if err := i.store.save(creds); err != nil {
		return err
	}
	i.cfg.Step(StepKept)
	i.current.Store(m)
	i.refused.Store(false)
	i.http.CloseIdleConnections() // they carry the old certificate
	return nil
}
