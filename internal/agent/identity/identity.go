package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

const (
	maxAnswer   = 1 << 20
	callTimeout = 30 * time.Second
)

// EngineFact is one engine as this host offers it.
type EngineFact struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Healthy bool     `json:"healthy"`
	Reasons []string `json:"reasons"`
	// CPUFeatures are what saved memory may depend on.
	CPUFeatures []string `json:"cpu_features,omitempty"`
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

	current atomic.Pointer[material] // nil until registered
	heard   atomic.Pointer[time.Time]
	refused atomic.Bool
	renewal sync.Mutex // one renewal at a time
}

// Refused is an answer of the control plane that is not a success.
type Refused struct {
	Status int
	Code   string // stable reason word, where there was one
	// RetryAfter is how long the control plane asks us to wait.
	RetryAfter time.Duration
}

// Error implements error.
func (r *Refused) Error() string {
	if r.Code == "" {
		return fmt.Sprintf("identity: the control plane answered %d", r.Status)
	}
	return fmt.Sprintf("identity: the control plane answered %d (%s)", r.Status, r.Code)
}

// Unauthorized reports whether err is a refusal of our credentials.
func Unauthorized(err error) bool {
	var r *Refused
	return errors.As(err, &r) && (r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden)
}

// Open reads what is on disk and makes the key when there is none. It talks to
// nobody.
func Open(cfg Config) (*Identity, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	base, err := url.Parse(strings.TrimRight(cfg.ControlURL, "/"))
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("identity: the control plane's URL must be https://host[:port], not %q", cfg.ControlURL)
	}
	i := &Identity{cfg: cfg, base: base, store: store{cfg.Dir}, elsewhere: &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
	}}
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
					return rooted(m.roots)(s)
				}
				return pinned(i.cfg.Pin)(s)
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

// Register makes sure this host is registered. With credentials on disk it
// does nothing, unless a new registration token was given; then a refusal of
// that token leaves the old credentials in force.
func (i *Identity) Register(ctx context.Context, facts Facts) error {
	have := i.current.Load()
	sum := sha256.Sum256([]byte(i.cfg.Token))
	hash := hex.EncodeToString(sum[:])
	if have != nil && (i.cfg.Token == "" || have.creds.TokenHash == hash) {
		return nil
	}
	if i.cfg.Token == "" {
		return errors.New("identity: this host is not registered: give it the registration token of its install command")
	}
	if have == nil && len(i.cfg.Pin) != sha256.Size*2 {
		return errors.New("identity: the first contact needs the SHA-256 of the platform's CA, 64 hex digits, from the install command")
	}
	err := i.register(ctx, facts, hash)
	if err != nil && have != nil {
		i.cfg.Logger.Warn("the new registration token was refused; going on with the credentials this host has", "err", err)
		return nil
	}
	return err
}

func (i *Identity) register(ctx context.Context, facts Facts, tokenHash string) error {
	csr, err := certificateRequest(i.key)
	if err != nil {
		return err
	}
	var got answer
	err = i.call(ctx, "/v1/hosts/register", false, map[string]any{
		"registration_token": i.cfg.Token, "csr": csr, "facts": facts,
	}, &got)
	if err != nil {
		return err
	}
	return i.adopt(got, tokenHash, i.cfg.Pin)
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
		if Unauthorized(err) {
			i.refused.Store(true)
		}
		return err
	}
	i.refused.Store(false)
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
	i.current.Store(m)
	i.http.CloseIdleConnections() // they carry the old certificate
	return nil
}

// call posts in and reads the answer into out, which may be nil. With bearer it
// is made as this host; without, what in holds is the proof.
func (i *Identity) call(ctx context.Context, path string, bearer bool, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := i.nameless
	if bearer {
		client = i.http
		m := i.current.Load()
		if m == nil {
			return errors.New("identity: not registered")
		}
		req.Header.Set("Authorization", "Bearer "+m.creds.HostJWT)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("identity: %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		return refusal(resp, raw)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("identity: %s: %w", path, err)
	}
	return nil
}

func refusal(resp *http.Response, raw []byte) *Refused {
	r := &Refused{Status: resp.StatusCode}
	var said struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
		Code string `json:"code"`
	}
	if json.Unmarshal(raw, &said) == nil {
		r.Code = said.Error.Code
		if r.Code == "" {
			r.Code = said.Code
		}
	}
	if d, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s"); err == nil && d > 0 && d <= time.Hour {
		r.RetryAfter = d
	}
	return r
}
