package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/mem"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

type fakeClock struct{ now atomic.Int64 }

func (c *fakeClock) Now() time.Time { return time.Unix(c.now.Load(), 0) }

type bench struct {
	store  artifact.Store
	signer *Signer
	clock  *fakeClock
	server *httptest.Server
	gets   atomic.Int64 // chunks read
	puts   atomic.Int64 // chunks stored
	spoil  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newBench(t *testing.T, blobs artifact.Store) *bench {
	t.Helper()
	b := &bench{store: blobs, clock: &fakeClock{}}
	b.clock.now.Store(1_800_000_000)
	var err error
	if b.signer, err = NewSigner(bytes.Repeat([]byte("s"), 32), b.clock); err != nil {
		t.Fatal(err)
	}
	h := NewHandler(blobs, b.signer, Options{Logger: slog.New(slog.DiscardHandler)})
	b.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/chunks/") {
			if r.Method == http.MethodGet {
				b.gets.Add(1)
			} else {
				b.puts.Add(1)
			}
		}
		if s := b.spoil.Load(); s != nil && (*s)(w, r) {
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(b.server.Close)
	return b
}

func (b *bench) readURL(team id.Team, d artifact.Digest) string {
	return b.signer.ReadURL(b.server.URL, team, d, time.Minute)
}

func (b *bench) writeURL(team id.Team) string {
	return b.signer.WriteURL(b.server.URL, team, "upload-1", time.Minute)
}

// sampleFile has data, zeros inside a chunk, whole chunks of holes, the same
// chunk twice and a short end.
func sampleFile(t *testing.T) (path string, content []byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, artifact.ChunkSize)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	content = make([]byte, 9*artifact.ChunkSize+12345)
	copy(content, noise)
	copy(content[2*artifact.ChunkSize+100_000:], "in the middle of zeros")
	copy(content[5*artifact.ChunkSize:], noise)
	copy(content[9*artifact.ChunkSize:], noise[:12345])
	path = filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(int64(len(content))), writeSparse(f, content, 0)); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func store(t *testing.T, b *bench, team id.Team, path string) Uploaded {
	t.Helper()
	u, err := Upload(t.Context(), b.server.Client(), b.writeURL(team), path, artifact.MediaTypeErofs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestP1_TS04_ThereAndBackWithHoles(t *testing.T) {
	blobs, err := fs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, blobs)
	team := id.NewTeam()
	path, content := sampleFile(t)
	var last int64
	u, err := Upload(t.Context(), b.server.Client(), b.writeURL(team), path, artifact.MediaTypeErofs, func(done, total int64) {
		if done < last || total != int64(len(content)) {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || last != int64(len(content)) || u.Digest != artifact.DigestOf(content) {
		t.Fatalf("%+v, progress %d, %v", u, last, err)
	}
	if n := b.puts.Load(); n != 3 { // noise once, the middle, the end
		t.Errorf("%d chunks were sent", n)
	}
	if again := store(t, b, team, path); again.TransferredRaw != 0 || again.Manifest != u.Manifest || b.puts.Load() != 3 {
		t.Errorf("a repeat sent %d bytes, manifest %s", again.TransferredRaw, again.Manifest)
	}

	dst := filepath.Join(t.TempDir(), "copy")
	last = 0
	opts := FetchOptions{Digest: u.Digest, Progress: func(done, _ int64) { last = done }}
	if err := Fetch(t.Context(), b.server.Client(), b.readURL(team, u.Manifest), dst, opts); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, content) || last != int64(len(content)) {
		t.Errorf("the copy differs, or progress %d: %v", last, err)
	}
	info, err := os.Stat(dst)
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("mode %v %v", info.Mode(), err)
	}
	allocated := info.Sys().(*syscall.Stat_t).Blocks * 512
	if data := int64(2*artifact.ChunkSize + 12345 + 4096); allocated > data*105/100+64<<10 {
		t.Errorf("%d bytes allocated for %d of data", allocated, data)
	}
	left, err := filepath.Glob(dst + ".*")
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestFetch_GoesOnWhereItBroke(t *testing.T) {
	b := newBench(t, &mem.Store{})
	team := id.NewTeam()
	path, content := sampleFile(t)
	u := store(t, b, team, path)
	dst := filepath.Join(t.TempDir(), "copy")

	// The line is cut after one chunk; then the part is soiled where a hole
	// belongs, and where a chunk was half written.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := Fetch(ctx, b.server.Client(), b.readURL(team, u.Manifest), dst, FetchOptions{Digest: u.Digest, Progress: func(done, total int64) {
		if done > total-4*artifact.ChunkSize {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("the cut download succeeded")
	}
	if _, err := os.Stat(dst); err == nil {
		t.Fatal("the cut download left a file under its final name")
	}
	part := append([]byte(nil), content...)
	copy(part[3*artifact.ChunkSize:], "soiled")
	copy(part[5*artifact.ChunkSize+77:], "torn")
	if err := os.WriteFile(dst+".part", part[:6*artifact.ChunkSize], 0o600); err != nil {
		t.Fatal(err)
	}
	b.gets.Store(0)
	if err := Fetch(t.Context(), b.server.Client(), b.readURL(team, u.Manifest), dst, FetchOptions{Digest: u.Digest}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dst); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs: %v", err)
	}
	if n := b.gets.Load(); n != 2 { // the torn one and the end
		t.Errorf("%d chunks were fetched again", n)
	}
}

func TestFetch_HostileOrBrokenStore(t *testing.T) {
	b := newBench(t, &mem.Store{})
	team := id.NewTeam()
	path, content := sampleFile(t)
	u := store(t, b, team, path)
	isChunk := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/chunks/") }
	answer := func(change func(*manifestAnswer)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				return false
			}
			rec := httptest.NewRecorder()
			NewHandler(b.store, b.signer, Options{}).ServeHTTP(rec, r)
			var a manifestAnswer
			if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil {
				t.Error(err)
			}
			change(&a)
			_ = json.NewEncoder(w).Encode(a)
			return true
		}
	}
	for name, c := range map[string]struct {
		spoil func(http.ResponseWriter, *http.Request) bool
		opts  FetchOptions
	}{
		"other bytes": {spoil: func(w http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				_, _ = io.WriteString(w, "nonsense")
			}
			return isChunk(r)
		}},
		"endless chunk": {spoil: func(w http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				for range 1000 {
					if _, err := w.Write(make([]byte, 1<<20)); err != nil {
						break
					}
				}
			}
			return isChunk(r)
		}},
		"file scheme": {spoil: answer(func(a *manifestAnswer) {
			for d := range a.URLs {
				a.URLs[d] = "file:///etc/passwd"
			}
		})},
		"no address":     {spoil: answer(func(a *manifestAnswer) { a.URLs = nil })},
		"no manifest":    {spoil: answer(func(a *manifestAnswer) { a.Manifest = []byte("{}") })},
		"another digest": {opts: FetchOptions{Digest: artifact.DigestOf(nil)}},
		"no digest":      {opts: FetchOptions{Digest: "../../x"}},
		"too large":      {opts: FetchOptions{Digest: u.Digest, MaxBytes: int64(len(content)) - 1}},
	} {
		t.Run(name, func(t *testing.T) {
			b.spoil.Store(nil)
			if c.spoil != nil {
				b.spoil.Store(&c.spoil)
			}
			if c.opts.Digest == "" {
				c.opts.Digest = u.Digest
			}
			dst := filepath.Join(t.TempDir(), "copy")
			err := Fetch(t.Context(), b.server.Client(), b.readURL(team, u.Manifest), dst, c.opts)
			var e *errs.Error
			if !errors.As(err, &e) || e.Code == errs.CodeInternal {
				t.Errorf("got %v; want a typed error", err)
			}
			if _, err := os.Stat(dst); err == nil {
				t.Error("a file appeared")
			}
		})
	}
}

func TestFetch_ShortTroublesAreRidden(t *testing.T) {
	b := newBench(t, &mem.Store{})
	team := id.NewTeam()
	path, _ := sampleFile(t)
	u := store(t, b, team, path)
	var n atomic.Int64
	spoil := func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1)%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	b.spoil.Store(&spoil)
	dst := filepath.Join(t.TempDir(), "copy")
	if err := Fetch(t.Context(), b.server.Client(), b.readURL(team, u.Manifest), dst, FetchOptions{Digest: u.Digest}); err != nil {
		t.Fatal(err)
	}
}

func TestTransfer_MemoryIsFlat(t *testing.T) {
	blobs, err := fs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, blobs)
	team := id.NewTeam()
	path := filepath.Join(t.TempDir(), "large")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.NewChaCha8([32]byte{7})
	if _, err := io.CopyN(f, rng, 160<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	watch := func(done, _ int64) {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak.HeapInuse = max(peak.HeapInuse, now.HeapInuse)
	}
	u, err := Upload(t.Context(), b.server.Client(), b.writeURL(team), path, artifact.MediaTypeErofs, watch)
	if err != nil {
		t.Fatal(err)
	}
	up := peak.HeapInuse
	runtime.GC()
	peak.HeapInuse = 0
	if err := Fetch(t.Context(), b.server.Client(), b.readURL(team, u.Manifest), filepath.Join(t.TempDir(), "c"), FetchOptions{Digest: u.Digest, Progress: watch}); err != nil {
		t.Fatal(err)
	}
	t.Logf("heap before %d MB, upload %d MB, fetch %d MB", before.HeapInuse>>20, up>>20, peak.HeapInuse>>20)
	if limit := before.HeapInuse + 96<<20; up > limit || peak.HeapInuse > limit {
		t.Errorf("160 MB took %d and %d MB of heap", up>>20, peak.HeapInuse>>20)
	}
}

// call sends a request and returns status and reason.
func call(t *testing.T, b *bench, method, url string, body []byte) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var a errorAnswer
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 400 {
		if err := json.Unmarshal(raw, &a); err != nil || a.Error.Message == "" || a.Error.Code == "" {
			t.Errorf("%s: error body %q", method, raw)
		}
	}
	return resp.StatusCode, a.Error.Reason
}

func TestP1_GrantsOpenOnlyWhatTheyName(t *testing.T) {
	b := newBench(t, &mem.Store{})
	team, other := id.NewTeam(), id.NewTeam()
	path, _ := sampleFile(t)
	u := store(t, b, team, path)
	stranger := artifact.DigestOf([]byte("not in the manifest"))
	if err := b.store.Put(t.Context(), artifact.ChunkKey(team, stranger), strings.NewReader("not in the manifest"), 19); err != nil {
		t.Fatal(err)
	}
	read, write := b.readURL(team, u.Manifest), b.writeURL(team)
	in := func(url, name string) string { return strings.TrimSuffix(url, "manifest") + name }
	expired := b.signer.ReadURL(b.server.URL, team, u.Manifest, -time.Second)
	foreign, err := NewSigner(bytes.Repeat([]byte("x"), 32), b.clock)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, artifact.MaxChunkBytes+1)
	manifest, err := artifact.Manifest{
		Version: 1, MediaType: "x/y", Digest: stranger, Size: 5, ChunkSize: artifact.ChunkSize,
		Chunks: []artifact.Chunk{{RawSize: 5, RawDigest: stranger, Size: 7, Digest: artifact.DigestOf([]byte("absent"))}},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	wrongSize := bytes.Replace(manifest, []byte(artifact.DigestOf([]byte("absent"))), []byte(stranger), 1)
	for name, c := range map[string]struct {
		method, url string
		body        []byte
		status      int
		reason      string
	}{
		"read":                       {"GET", read, nil, 200, ""},
		"a chunk of another file":    {"GET", in(read, "chunks/"+string(stranger)), nil, 403, "chunk_not_granted"},
		"another team's manifest":    {"GET", b.readURL(other, u.Manifest), nil, 404, "no_such_artifact"},
		"read by a write grant":      {"GET", write, nil, 403, "wrong_grant"},
		"write by a read grant":      {"PUT", in(read, "chunks/"+string(stranger)), []byte("x"), 403, "wrong_grant"},
		"ask by a read grant":        {"POST", in(read, "chunks"), []byte("{}"), 403, "wrong_grant"},
		"expired":                    {"GET", expired, nil, 401, "grant_expired"},
		"signed by another":          {"GET", foreign.ReadURL(b.server.URL, team, u.Manifest, time.Hour), nil, 401, "invalid_grant"},
		"garbage":                    {"GET", b.server.URL + pathPrefix + "abc/manifest", nil, 401, "invalid_grant"},
		"very long":                  {"GET", b.server.URL + pathPrefix + strings.Repeat("A", 4000) + "/manifest", nil, 401, "invalid_grant"},
		"path as digest":             {"GET", in(read, "chunks/..%2F..%2Fetc%2Fpasswd"), nil, 400, "invalid_digest"},
		"unknown route":              {"GET", in(read, "other"), nil, 404, "no_such_route"},
		"unknown method":             {"DELETE", read, nil, 404, "no_such_route"},
		"wrong content":              {"PUT", in(write, "chunks/"+string(u.Digest)), []byte("x"), 400, "content_mismatch"},
		"empty chunk":                {"PUT", in(write, "chunks/"+string(u.Digest)), nil, 400, "length_required"},
		"chunk too large":            {"PUT", in(write, "chunks/"+string(u.Digest)), big, 413, "too_large"},
		"manifest before its chunks": {"PUT", write, manifest, 409, "chunks_missing"},
		"a chunk of another size":    {"PUT", write, wrongSize, 409, "chunks_missing"},
		"no manifest":                {"PUT", write, []byte(`{"version":1}`), 400, "invalid_manifest"},
		"no question":                {"POST", in(write, "chunks"), []byte(`[`), 400, "invalid_request"},
		"digest of no form":          {"POST", in(write, "chunks"), []byte(`{"digests":["../x"]}`), 400, "invalid_digest"},
		"question too large":         {"POST", in(write, "chunks"), big, 413, "too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, reason := call(t, b, c.method, c.url, c.body); status != c.status || reason != c.reason {
				t.Errorf("got %d %s; want %d %s", status, reason, c.status, c.reason)
			}
		})
	}
	start := len(b.server.URL + pathPrefix)
	for i := start; i < len(read)-len("/manifest"); i++ {
		bent := []byte(read)
		bent[i] = 'A'
		if read[i] == 'A' {
			bent[i] = 'B'
		}
		if status, _ := call(t, b, "GET", string(bent), nil); status != 401 {
			t.Fatalf("a grant bent at %d is answered with %d", i-start, status)
		}
	}
	b.clock.now.Add(61)
	if status, reason := call(t, b, "GET", read, nil); status != 401 || reason != "grant_expired" {
		t.Errorf("after a minute: %d %s", status, reason)
	}
}

func FuzzGrant(f *testing.F) {
	clock := &fakeClock{}
	clock.now.Store(1_800_000_000)
	s, err := NewSigner(bytes.Repeat([]byte("s"), 32), clock)
	if err != nil {
		f.Fatal(err)
	}
	good := s.seal(grant{op: opRead, team: id.NewTeam(), expires: clock.Now().Add(time.Hour), manifest: artifact.DigestOf(nil)})
	for _, seed := range []string{good, good[:10], "", "AQ", fmt.Sprint(good, "=")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		g, err := s.open(token)
		if err != nil {
			return
		}
		if s.seal(g) != token {
			t.Errorf("%q opens, and is not what was sealed", token)
		}
	})
}
