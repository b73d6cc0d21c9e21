package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/mem"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/kernel/id"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type fakeClock struct{ now atomic.Int64 }

func (c *fakeClock) Now() time.Time { return time.Unix(c.now.Load(), 0) }

// altered is a store that hands out what somebody made of its blobs.
type altered struct {
	artifact.Store
	change atomic.Pointer[func(artifact.Key, []byte) []byte] // nil: the blob is gone
}

func (a *altered) Open(ctx context.Context, key artifact.Key) (io.ReadCloser, artifact.Info, error) {
	r, info, err := a.Store.Open(ctx, key)
	change := a.change.Load()
	if err != nil || change == nil {
		return r, info, err
	}
	b, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		return nil, info, err
	}
	if b = (*change)(key, b); b == nil {
		return nil, artifact.Info{}, artifact.ErrNotFound
	}
	info.Size = int64(len(b))
	return io.NopCloser(bytes.NewReader(b)), info, nil
}

// world is a control plane with a store, and one host.
type world struct {
	store  *altered
	ledger *transfertest.Ledger
	clock  *fakeClock
	signer *transfer.Signer
	server *httptest.Server
	host   id.Host
	gets   atomic.Int64 // chunks read
	puts   atomic.Int64 // chunks stored
	spoil  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	inner  http.Handler
}

func newWorld(t testing.TB, blobs artifact.Store) *world {
	t.Helper()
	w := &world{store: &altered{Store: blobs}, ledger: &transfertest.Ledger{}, clock: &fakeClock{}, host: id.NewHost()}
	w.clock.now.Store(1_800_000_000)
	var err error
	w.signer, err = transfer.NewSigner(bytes.Repeat([]byte("s"), 32), w.clock)
	must(t, err)
	w.inner = transfer.NewHandler(w.store, w.signer, w.ledger, transfer.HandlerOptions{Logger: slog.New(slog.DiscardHandler)})
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if isChunk(r) {
			if r.Method == http.MethodGet {
				w.gets.Add(1)
			} else {
				w.puts.Add(1)
			}
		}
		if s := w.spoil.Load(); s != nil && (*s)(rw, r) {
			return
		}
		w.inner.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.server.Close)
	return w
}

func isChunk(r *http.Request) bool { return strings.Contains(r.URL.Path, "/chunks/") }

func (w *world) clients() transfer.Clients { return transfer.Clients{Control: w.server.Client()} }

func (w *world) read(a id.Artifact, key artifact.ContentKey) artifact.Source {
	return artifact.Source{URL: w.signer.ReadURL(w.server.URL, a, w.host, time.Minute), Key: key}
}

func (w *world) write(a id.Artifact, key artifact.ContentKey) artifact.Source {
	return artifact.Source{URL: w.signer.WriteURL(w.server.URL, a, w.host, time.Minute), Key: key}
}

func (w *world) put(t testing.TB, team id.Team, key artifact.ContentKey, files ...transfer.File) (id.Artifact, transfer.Uploaded) {
	t.Helper()
	a := w.ledger.Begin(team, w.host)
	u, err := transfer.Upload(t.Context(), w.clients(), w.write(a, key), files, artifact.MediaTypeState, transfer.Options{})
	must(t, err)
	if !w.ledger.IsReady(a) {
		t.Fatal("the artifact is not ready")
	}
	return a, u
}

func (w *world) fetch(t testing.TB, a id.Artifact, key artifact.ContentKey, dir string, change func(*transfer.Want, *transfer.Options)) error {
	want, opts := transfer.Want{MediaType: artifact.MediaTypeState}, transfer.Options{}
	if change != nil {
		change(&want, &opts)
	}
	return transfer.Fetch(t.Context(), w.clients(), w.read(a, key), want, transfer.Into(dir), opts)
}

func teamKey(n byte) artifact.ContentKey { return bytes.Repeat([]byte{n}, artifact.ContentKeyBytes) }

func onDisk(t testing.TB) artifact.Store {
	t.Helper()
	s, err := fs.New(t.TempDir())
	must(t, err)
	return s
}

func inMemory() artifact.Store { return &mem.Store{} }

var noise = sync.OnceValue(func() []byte {
	b := make([]byte, artifact.ChunkSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

// sample has data, zeros inside a chunk, whole chunks of holes, the same chunk
// twice and a short end: three chunks to be stored.
func sample(t testing.TB) (path string, content []byte) {
	t.Helper()
	content = make([]byte, 9*artifact.ChunkSize+12345)
	copy(content, noise())
	copy(content[2*artifact.ChunkSize+100_000:], "in the middle of zeros")
	copy(content[5*artifact.ChunkSize:], noise())
	copy(content[9*artifact.ChunkSize:], noise()[:12345])
	path = filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(int64(len(content))))
	for at := 0; at < len(content); at += 4096 {
		if b := content[at:min(at+4096, len(content))]; len(bytes.Trim(b, "\x00")) > 0 {
			_, err := f.WriteAt(b, int64(at))
			must(t, err)
		}
	}
	return path, content
}

func small(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "small")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// holds checks a directory's files, and that there are no others.
func holds(t testing.TB, dir string, want map[string][]byte) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		seen++
		got, err := os.ReadFile(path)
		if content, ok := want[name]; !ok || !bytes.Equal(got, content) {
			t.Errorf("%s, %d bytes, is not as it should be", name, len(got))
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	must(t, err)
	if seen != len(want) {
		t.Errorf("%d files, want %d", seen, len(want))
	}
}

// blobs lists what the store has of a team.
func (w *world) blobs(t testing.TB, team id.Team, kind artifact.Kind) []artifact.Info {
	t.Helper()
	list, err := w.store.List(t.Context(), artifact.Prefix{Team: team, Kind: kind}, "", 10_000)
	must(t, err)
	return list
}

// childContext is that of a process that only its parent ends.
func childContext() context.Context { return context.Background() }
