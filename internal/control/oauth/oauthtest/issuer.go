// Package oauthtest is a real OpenID Connect issuer, and a server that speaks
// as GitHub does, for the tests: over HTTP, with signed tokens, and strict about
// what a client must send.
package oauthtest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The client as it is registered.
const (
	Client = "skerry"
	Secret = "client-secret"
)

// Person is who sits in front of the browser.
type Person struct {
	Subject       string // a number for the GitHub server
	Email         string
	EmailVerified bool
	Name          string
}

// Server is a provider. Its browser is logged in as whoever LogIn named last.
type Server struct {
	URL string

	mu     sync.Mutex
	person Person
	refuse bool
	codes  map[string]grant
	tokens map[string]Person
	key    *rsa.PrivateKey
	// tamper, when set, changes the claims of an id_token before it is signed.
	tamper func(jwt.MapClaims)
}

type grant struct {
	person    Person
	redirect  string
	nonce     string
	challenge string
}

// New starts a provider that is stopped when the test ends.
func New(t testing.TB) *Server {
	t.Helper()
	s, stop, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return s
}

// Start starts a provider, for tests that share one.
func Start() (s *Server, stop func(), err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	s = &Server{codes: map[string]grant{}, tokens: map[string]Person{}, key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /keys", s.keys)
	mux.HandleFunc("GET /authorize", s.authorize)
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) { s.token(w, r, true) })
	mux.HandleFunc("GET /login/oauth/authorize", s.authorize)
	mux.HandleFunc("POST /login/oauth/access_token", func(w http.ResponseWriter, r *http.Request) { s.token(w, r, false) })
	mux.HandleFunc("GET /user", s.user)
	mux.HandleFunc("GET /user/emails", s.emails)
	server := httptest.NewServer(mux)
	s.URL = server.URL
	return s, server.Close, nil
}

// LogIn says who is at the browser.
func (s *Server) LogIn(p Person) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.person, s.refuse = p, false
}

// Refuse has the person press "no".
func (s *Server) Refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = true
}

// Tamper changes the next tokens; nil stops it.
func (s *Server) Tamper(change func(claims jwt.MapClaims)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tamper = change
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, map[string]any{
		"issuer": s.URL, "authorization_endpoint": s.URL + "/authorize", "token_endpoint": s.URL + "/token", "jwks_uri": s.URL + "/keys",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
	})
}

func (s *Server) keys(w http.ResponseWriter, _ *http.Request) {
	text := base64.RawURLEncoding.EncodeToString
	answer(w, map[string]any{"keys": []map[string]any{{
		"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": text(s.key.N.Bytes()), "e": text(big.NewInt(int64(s.key.E)).Bytes()),
	}}})
}

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != Client || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" ||
		q.Get("code_challenge") == "" || q.Get("state") == "" {
		http.Error(w, "a client must send client_id, redirect_uri, state and an S256 challenge", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := url.Values{"state": {q.Get("state")}}
	if s.refuse {
		out.Set("error", "access_denied")
	} else {
		code := rand.Text()
		s.codes[code] = grant{s.person, q.Get("redirect_uri"), q.Get("nonce"), q.Get("code_challenge")}
		out.Set("code", code)
	}
	back.RawQuery = out.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound)
}

func (s *Server) token(w http.ResponseWriter, r *http.Request, openID bool) {
	client, secret, basic := r.BasicAuth()
	if !basic {
		client, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, found := s.codes[r.PostFormValue("code")]
	delete(s.codes, r.PostFormValue("code"))
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if client != Client || secret != Secret || !found || r.PostFormValue("redirect_uri") != g.redirect ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != g.challenge {
		w.WriteHeader(http.StatusBadRequest)
		answer(w, map[string]string{"error": "invalid_grant"})
		return
	}
	token := rand.Text()
	s.tokens[token] = g.person
	out := map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 60}
	if openID {
		now := time.Now()
		claims := jwt.MapClaims{
			"iss": s.URL, "aud": Client, "sub": g.person.Subject, "nonce": g.nonce, "iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
			"email": g.person.Email, "email_verified": g.person.EmailVerified, "name": g.person.Name,
		}
		if s.tamper != nil {
			s.tamper(claims)
		}
		unsigned := jwt.NewWithClaims(jwt.SigningMethodRS256, claims)
		unsigned.Header["kid"] = "1"
		signed, err := unsigned.SignedString(s.key)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		out["id_token"] = signed
	}
	answer(w, out)
}

func (s *Server) bearer(r *http.Request) (Person, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	return p, ok
}

func (s *Server) user(w http.ResponseWriter, r *http.Request) {
	p, ok := s.bearer(r)
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	answer(w, map[string]any{"id": json.Number(p.Subject), "login": "login-" + p.Subject, "name": p.Name})
}

func (s *Server) emails(w http.ResponseWriter, r *http.Request) {
	p, ok := s.bearer(r)
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	answer(w, []map[string]any{
		{"email": "other@elsewhere.example", "primary": false, "verified": true},
		{"email": p.Email, "primary": true, "verified": p.EmailVerified},
	})
}
