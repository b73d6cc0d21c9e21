package identitytest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/kernel/id"
)

// Event is an event as the control plane got it.
type Event struct {
	Seq         uint64         `json:"seq"`
	Kind        string         `json:"kind"`
	SandboxID   string         `json:"sandbox_id"`
	Incarnation uint64         `json:"incarnation"`
	At          time.Time      `json:"at"`
	Data        map[string]any `json:"data"`
}

// Control is a scripted control plane. Set the exported fields before the
// first call or under Lock.
type Control struct {
	sync.Mutex
	CA     *CA
	URL    string
	Token  string
	HostID id.Host
	// Lifetime of what it issues.
	Lifetime time.Duration
	// Intercept, when not nil, may answer a request itself by returning true.
	// It is called with the lock held.
	Intercept func(w http.ResponseWriter, r *http.Request) bool

	// Refuse is a kind of event that is answered with 400.
	Refuse string

	Registrations int
	Refreshes     int
	Heartbeats    []map[string]any
	Events        []Event
	Samples       []map[string]any
	Facts         map[string]any
	RefreshToken  string
	JWT           string
	firstKey      any
	issued        int
}

// NewControl serves a control plane under ca; its certificate names serverURI.
func NewControl(t testing.TB, ca *CA, serverURI string) *Control {
	t.Helper()
	c := &Control{CA: ca, Token: "join-" + id.NewHost().String(), HostID: id.NewHost(), Lifetime: time.Hour}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/hosts/register", c.register)
	mux.HandleFunc("POST /v1/hosts/auth/refresh", c.refresh)
	mux.HandleFunc("POST /v1/hosts/{id}/heartbeat", c.authorized(c.heartbeat))
	mux.HandleFunc("POST /v1/hosts/{id}/events", c.authorized(c.events))
	mux.HandleFunc("POST /v1/hosts/{id}/samples", c.authorized(c.samples))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Lock()
		answered := c.Intercept != nil && c.Intercept(w, r)
		c.Unlock()
		if !answered {
			mux.ServeHTTP(w, r)
		}
	}))
	srv.TLS = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{ca.Certificate(serverURI, time.Now().Add(time.Hour))},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: ca.Pool(),
	}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c.URL = srv.URL
	return c
}

type ask struct {
	RegistrationToken string         `json:"registration_token"`
	RefreshToken      string         `json:"refresh_token"`
	CSR               string         `json:"csr"`
	Facts             map[string]any `json:"facts"`
}

func (c *Control) register(w http.ResponseWriter, r *http.Request) {
	c.Lock()
	defer c.Unlock()
	var in ask
	csr, err := readCSR(r, &in)
	if err != nil || in.RegistrationToken != c.Token {
		refuse(w, http.StatusUnauthorized, "invalid_registration_token")
		return
	}
	if key, ok := c.firstKey.(interface{ Equal(x any) bool }); ok && !key.Equal(csr.PublicKey) {
		refuse(w, http.StatusUnauthorized, "invalid_registration_token")
		return
	}
	c.firstKey = csr.PublicKey
	c.Registrations++
	c.Facts = in.Facts
	c.issue(w, csr)
}

func (c *Control) refresh(w http.ResponseWriter, r *http.Request) {
	c.Lock()
	defer c.Unlock()
	var in ask
	csr, err := readCSR(r, &in)
	if err != nil || in.RefreshToken != c.RefreshToken {
		refuse(w, http.StatusUnauthorized, "invalid_refresh_token")
		return
	}
	c.Refreshes++
	c.issue(w, csr)
}

func (c *Control) issue(w http.ResponseWriter, csr *x509.CertificateRequest) {
	c.issued++
	c.JWT, c.RefreshToken = fmt.Sprintf("jwt-%d", c.issued), fmt.Sprintf("refresh-%d", c.issued)
	until := time.Now().Add(c.Lifetime)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"host_id": id.FormatHost(c.HostID), "host_jwt": c.JWT, "host_jwt_expires_at": until,
		"refresh_token": c.RefreshToken, "ca": c.CA.PEM(),
		"certificate": toPEM(c.CA.Sign(csr.PublicKey, identity.HostURI(c.HostID), until)),
	})
}

func (c *Control) authorized(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.Lock()
		defer c.Unlock()
		cert := r.TLS.PeerCertificates
		switch {
		case r.PathValue("id") != id.FormatHost(c.HostID),
			strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") != c.JWT,
			len(cert) == 0 || len(cert[0].URIs) != 1 || cert[0].URIs[0].String() != identity.HostURI(c.HostID):
			refuse(w, http.StatusUnauthorized, "unauthenticated")
		default:
			next(w, r)
		}
	}
}

func (c *Control) heartbeat(w http.ResponseWriter, r *http.Request) {
	var in map[string]any
	_ = json.NewDecoder(r.Body).Decode(&in)
	c.Heartbeats = append(c.Heartbeats, in)
	w.WriteHeader(http.StatusNoContent)
}

func (c *Control) events(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Events []Event `json:"events"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	for _, e := range in.Events {
		if c.Refuse != "" && e.Kind == c.Refuse {
			refuse(w, http.StatusBadRequest, "invalid_request")
			return
		}
	}
	c.Events = append(c.Events, in.Events...)
	w.WriteHeader(http.StatusNoContent)
}

func (c *Control) samples(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Samples []map[string]any `json:"samples"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	c.Samples = append(c.Samples, in.Samples...)
	w.WriteHeader(http.StatusNoContent)
}

func readCSR(r *http.Request, in *ask) (*x509.CertificateRequest, error) {
	if err := json.NewDecoder(r.Body).Decode(in); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil {
		return nil, fmt.Errorf("no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return csr, csr.CheckSignature()
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code}})
}
