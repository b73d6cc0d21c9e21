package identitytest

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
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

	// Cut, when not nil, may say after how many bytes the answer to a request is
	// cut off; negative leaves it whole. The request has its effect all the same.
	Cut func(r *http.Request) int

	// Refuse is a kind of event that is answered with 400.
	Refuse string
	// Gone is a statement with which every call is answered 410 host_deleted; "-"
	// is none at all.
	Gone string
	// Down has every call fail.
	Down bool

	Registrations int
	Refreshes     int
	Heartbeats    []map[string]any
	Events        []Event
	Samples       []map[string]any
	Facts         map[string]any
	// RefreshToken is the newest, Predecessor the one it was issued for, which
	// is good for it again. An older one makes it Revoked.
	RefreshToken, Predecessor string
	Revoked                   bool
	JWT                       string
	firstKey                  any
	issued                    int
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
			c.answer(w, r, mux)
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

// NewHost has the next registration make another host.
func (c *Control) NewHost() {
	c.Lock()
	defer c.Unlock()
	c.HostID, c.firstKey = id.NewHost(), nil
}

func (c *Control) answer(w http.ResponseWriter, r *http.Request, mux http.Handler) {
	c.Lock()
	gone, down, at := c.Gone, c.Down, -1
	if c.Cut != nil {
		at = c.Cut(r)
	}
	c.Unlock()
	switch {
	case down:
		w.WriteHeader(http.StatusBadGateway)
	case gone != "":
		details := map[string]any{}
		if gone != "-" {
			details["statement"] = gone
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGone)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": "host_deleted", "details": details}})
	case at >= 0:
		whole := httptest.NewRecorder()
		mux.ServeHTTP(whole, r)
		body := whole.Body.Bytes()
		w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
		w.WriteHeader(whole.Code)
		_, _ = w.Write(body[:min(at, len(body))])
		panic(http.ErrAbortHandler)
	default:
		mux.ServeHTTP(w, r)
	}
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
	c.issued++
	c.RefreshToken, c.Predecessor, c.Revoked = fmt.Sprintf("refresh-%d", c.issued), "", false
	c.issue(w, csr)
}

func (c *Control) refresh(w http.ResponseWriter, r *http.Request) {
	c.Lock()
	defer c.Unlock()
	var in ask
	csr, err := readCSR(r, &in)
	switch {
	case err != nil || c.Revoked || in.RefreshToken == "":
		refuse(w, http.StatusUnauthorized, "invalid_refresh_token")
	case in.RefreshToken == c.RefreshToken:
		c.Refreshes++
		c.issued++
		c.Predecessor, c.RefreshToken = c.RefreshToken, fmt.Sprintf("refresh-%d", c.issued)
		c.issue(w, csr)
	case in.RefreshToken == c.Predecessor:
		c.issue(w, csr)
	default:
		c.Revoked = strings.HasPrefix(c.RefreshToken, "refresh-")
		refuse(w, http.StatusUnauthorized, "invalid_refresh_token")
	}
}

func (c *Control) issue(w http.ResponseWriter, csr *x509.CertificateRequest) {
	c.JWT = fmt.Sprintf("jwt-%d", c.issued)
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
