package transfertest

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/mem"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
)

// Server is a store in memory that hosts bring things to, all of one team's.
type Server struct {
	Ledger Ledger
	Team   id.Team
	// Key is what all is encrypted under.
	Key artifact.ContentKey
	// Gets and Puts count the chunks that were asked for and sent.
	Gets, Puts atomic.Int64

	store  *mem.Store
	signer *transfer.Signer
	http   *httptest.Server
	spoil  atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]
}

// Serve returns a server until the test ends.
func Serve(t testing.TB) *Server {
	t.Helper()
	s := &Server{Team: id.NewTeam(), Key: bytes.Repeat([]byte("k"), artifact.ContentKeyBytes), store: &mem.Store{}}
	signer, err := transfer.NewSigner(bytes.Repeat([]byte("s"), 32), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	s.signer = signer
	handler := transfer.NewHandler(s.store, signer, &s.Ledger, transfer.HandlerOptions{Logger: slog.New(slog.DiscardHandler)})
	s.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if IsChunk(r) {
			if r.Method == http.MethodGet {
				s.Gets.Add(1)
			} else {
				s.Puts.Add(1)
			}
		}
		if spoil := s.spoil.Load(); spoil != nil {
			(*spoil)(w, r, handler)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.http.Close)
	return s
}

// IsChunk tells whether a request moves the bytes of a chunk.
func IsChunk(r *http.Request) bool { return strings.Contains(r.URL.Path, "/chunks/") }

// Spoil puts f before the store; nil takes it away.
func (s *Server) Spoil(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	if f == nil {
		s.spoil.Store(nil)
		return
	}
	s.spoil.Store(&f)
}

// Client is how hosts reach it.
func (s *Server) Client() transfer.Clients { return transfer.Clients{Control: s.http.Client()} }

// To begins an artifact and is where host puts it.
func (s *Server) To(host id.Host) (id.Artifact, artifact.Source) {
	a := s.Ledger.Begin(s.Team, host)
	return a, artifact.Source{URL: s.signer.WriteURL(s.http.URL, a, host, time.Hour), Key: s.Key}
}

// From is where host fetches an artifact.
func (s *Server) From(a id.Artifact, host id.Host) artifact.Source {
	return artifact.Source{URL: s.signer.ReadURL(s.http.URL, a, host, time.Hour), Key: s.Key}
}

// Lose removes one chunk of the team's from the store.
func (s *Server) Lose(t testing.TB) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	list, err := s.store.List(ctx, artifact.Prefix{Team: s.Team, Kind: artifact.KindChunk}, "", 1)
	if err == nil && len(list) == 1 {
		err = s.store.Delete(ctx, list[0].Key)
	}
	if err != nil || len(list) != 1 {
		t.Fatalf("no chunk can be lost: %v", err)
	}
}
