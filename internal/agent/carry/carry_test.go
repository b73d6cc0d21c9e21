package carry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/carry"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// host is one with a directory of its own.
type host struct {
	*carry.Carrier
	id     id.Host
	dir    string
	states *state.Store
	engine *builds
}

func newHost(t *testing.T, store *transfertest.Server, daemon ...byte) *host {
	t.Helper()
	h := &host{id: id.NewHost(), dir: t.TempDir(), engine: &builds{}}
	var err error
	if h.states, err = state.Open(filepath.Join(h.dir, "states"), nil, nil); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(h.dir, "daemon")
	if err := errors.Join(os.WriteFile(own, daemon, 0o600), os.Chmod(own, 0o555)); err != nil {
		t.Fatal(err)
	}
	h.Carrier, err = carry.New(carry.Config{
		States: h.states, Images: noImages{}, Clients: store.Client(), Dir: filepath.Join(h.dir, "incoming"), Daemon: own, DaemonDigest: artifact.DigestOf(daemon),
		Engines: map[string]engine.Engine{"fake": h.engine},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

type noImages struct{}

func (noImages) Fetch(context.Context, journal.Image, transfer.Progress) error {
	return errors.New("no images")
}

// save makes a state of some megabytes, with holes.
func (h *host) save(t *testing.T) state.State {
	t.Helper()
	d, err := h.states.Create(id.NewSnapshot(), 1)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	pages := make([]byte, 21<<20)
	for i := 0; i < 13<<20; i++ {
		pages[i] = byte(rng.Uint32())
	}
	for name, content := range map[string][]byte{"pages.img": pages, "checkpoint.img": []byte("about it"), "empty.img": nil} {
		if err := os.WriteFile(filepath.Join(d.Dir(), name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st, err := d.Seal(t.Context(), state.Manifest{Sandbox: id.NewSandbox(), Incarnation: 1, Engine: "fake", Memory: true, InitSecret: "secret", CreatedAt: time.Now().UTC()})
	if err != nil {
		t.Fatal(err)
	}
	d.Keep()
	return st
}

// saveOn makes a state whose memory has a daemon.
func (h *host) saveOn(t *testing.T, daemon []byte) state.State {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	d, err := h.states.Create(id.NewSnapshot(), 1)
	if err == nil {
		err = errors.Join(os.WriteFile(program, daemon, 0o600), os.Chmod(program, 0o555), d.KeepGuest(program), os.WriteFile(filepath.Join(d.Dir(), "pages.img"), []byte("x"), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	st, err := d.Seal(t.Context(), state.Manifest{
		Sandbox: id.NewSandbox(), Incarnation: 1, Engine: "fake", Memory: true, CreatedAt: time.Now().UTC(), GuestDigest: string(artifact.DigestOf(daemon)),
	})
	if err != nil {
		t.Fatal(err)
	}
	d.Keep()
	return st
}

// A daemon travels with its state to where it is not, and is fetched once; that
// which a host ships it need not fetch at all.
func TestP7_ADaemonGoesFromHostToHostOnce(t *testing.T) {
	store := transfertest.Serve(t)
	rng := rand.New(rand.NewPCG(7, 8))
	made := func() []byte {
		program := make([]byte, 5<<20)
		for i := range program {
			program[i] = byte(rng.Uint32())
		}
		return program
	}
	one, other, own := made(), made(), made() // of one size
	a, b := newHost(t, store), newHost(t, store, own...)
	var chunks atomic.Int64
	store.Spoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if transfertest.IsChunk(r) && r.Method == http.MethodGet {
			chunks.Add(1)
		}
		next.ServeHTTP(w, r)
	})
	for i, want := range []struct {
		daemon []byte
		chunks int64
	}{{own, 0}, {one, 2}, {one, 0}, {other, 2}} {
		st := a.saveOn(t, want.daemon)
		stored := a.upload(t, store, st.ID)
		chunks.Store(0)
		if err := b.FetchState(t.Context(), copyOf(st), store.From(stored, b.id), nil); err != nil {
			t.Fatal(err)
		}
		equal(t, a, b, st.ID)
		if got := chunks.Load() - 2; got != want.chunks { // besides the image and the description
			t.Errorf("state %d: %d chunks of the daemon were fetched, want %d", i, got, want.chunks)
		}
		h, err := b.states.Hold(t.Context(), st.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(h.GuestFile()); err != nil || !bytes.Equal(got, want.daemon) {
			t.Errorf("state %d has another daemon: %v", i, err)
		}
		h.Release()
	}
}

func (h *host) upload(t *testing.T, store *transfertest.Server, which id.Snapshot) id.Artifact {
	t.Helper()
	a, to := store.To(h.id)
	up, err := h.UploadState(t.Context(), which, to, nil)
	if err != nil || up.Manifest == "" || !store.Ledger.IsReady(a) {
		t.Fatalf("upload: %+v, %v", up, err)
	}
	return a
}

func copyOf(st state.State) state.Copy {
	return state.Copy{ID: st.ID, Digest: st.Digest, SizeBytes: st.SizeBytes}
}

// equal compares every file of the state on both hosts.
func equal(t *testing.T, a, b *host, which id.Snapshot) {
	t.Helper()
	x, err := a.states.Hold(t.Context(), which)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Release()
	y, err := b.states.Hold(t.Context(), which)
	if err != nil {
		t.Fatal(err)
	}
	defer y.Release()
	for i, p := range x.Parts() {
		want, err := os.ReadFile(p.Path)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(y.Parts()[i].Path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %v", p.Name, err)
		}
	}
}

func wantReason(t *testing.T, err error, reason string) {
	t.Helper()
	if !errs.Is(err, reason) {
		t.Errorf("got %v, want %s", err, reason)
	}
}

func TestP5_AStateGoesFromHostToHost(t *testing.T) {
	store := transfertest.Serve(t)
	a, b := newHost(t, store), newHost(t, store)
	st := a.save(t)
	stored := a.upload(t, store, st.ID)
	var last, total int64
	slow := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if transfertest.IsChunk(r) {
			<-time.After(150 * time.Millisecond)
		}
		next.ServeHTTP(w, r)
	}
	store.Spoil(slow)
	if err := b.FetchState(t.Context(), copyOf(st), store.From(stored, b.id), func(d, n int64) { last, total = d, n }); err != nil {
		t.Fatal(err)
	}
	store.Spoil(nil)
	if last == 0 || total < st.SizeBytes {
		t.Errorf("progress was told up to %d of %d", last, total)
	}
	equal(t, a, b, st.ID)

	// What is there is not moved again, from either side.
	gets, puts := store.Gets.Load(), store.Puts.Load()
	if err := b.FetchState(t.Context(), copyOf(st), artifact.Source{URL: "http://nobody.invalid/"}, nil); err != nil {
		t.Error(err)
	}
	b.upload(t, store, st.ID)
	if store.Gets.Load() != gets || store.Puts.Load() != puts {
		t.Errorf("%d chunks were fetched and %d sent again", store.Gets.Load()-gets, store.Puts.Load()-puts)
	}
	_, to := store.To(a.id)
	_, err := a.UploadState(t.Context(), id.NewSnapshot(), to, nil)
	wantReason(t, err, "unknown_state")
	store.Ledger.Bar(a.id)
	_, to = store.To(a.id)
	_, err = a.UploadState(t.Context(), st.ID, to, nil)
	wantReason(t, err, "upload_gone")
}

// A flipped byte and a missing chunk are named and nothing of them gets the
// state's name.
func TestST06_DamageOnTheWayIsNamed(t *testing.T) {
	for reason, damage := range map[string]func(*transfertest.Server){
		"content_mismatch": func(s *transfertest.Server) {
			s.Spoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if !transfertest.IsChunk(r) {
					next.ServeHTTP(w, r)
					return
				}
				rec := httptest.NewRecorder()
				next.ServeHTTP(rec, r)
				b := rec.Body.Bytes()
				b[len(b)/2] ^= 1
				_, _ = w.Write(b)
			})
		},
		"chunk_missing": func(s *transfertest.Server) { s.Lose(t) },
	} {
		t.Run(reason, func(t *testing.T) {
			store := transfertest.Serve(t)
			a, b := newHost(t, store), newHost(t, store)
			st := a.save(t)
			stored := a.upload(t, store, st.ID)
			damage(store)
			err := b.FetchState(t.Context(), copyOf(st), store.From(stored, b.id), nil)
			wantReason(t, err, reason)
			if d := errs.As(err).Details; d["file"] == nil || d["digest"] == nil {
				t.Errorf("which bytes are wrong is not said: %v", d)
			}
			if b.states.Has(st.ID) {
				t.Error("a damaged state has its name")
			}
		})
	}
}

// Whoever asks for what is under way waits for the same; it ends with the last
// one, and what came is of use to the next.
func TestP5_OneTransferOfAStateAtATime(t *testing.T) {
	store := transfertest.Serve(t)
	a, b := newHost(t, store), newHost(t, store)
	st := a.save(t)
	stored := a.upload(t, store, st.ID)
	first, go1 := make(chan struct{}), make(chan struct{})
	var once sync.Once
	gate := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if transfertest.IsChunk(r) && store.Gets.Load() > 2 {
			once.Do(func() { close(first) })
			select {
			case <-go1:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
	}
	fetch := func(ctx context.Context) chan error {
		out := make(chan error, 1)
		go func() { out <- b.FetchState(ctx, copyOf(st), store.From(stored, b.id), nil) }()
		return out
	}
	store.Spoil(gate)
	one, leave := context.WithCancel(t.Context())
	two, leaveToo := context.WithCancel(t.Context())
	x := fetch(one)
	<-first
	y := fetch(two)
	leave()
	if err := <-x; !errors.Is(err, context.Canceled) {
		t.Errorf("who left was told %v", err)
	}
	select {
	case err := <-y:
		t.Fatalf("the other one ended with it: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	leaveToo()
	<-y
	close(go1)
	testkit.Eventually(t, 10*time.Second, "what came is kept", func() bool {
		left, _ := filepath.Glob(filepath.Join(b.dir, "states", "*.in"))
		return len(left) == 1 && !b.states.Has(st.ID)
	})
	store.Spoil(nil)
	store.Gets.Store(0)
	x, y = fetch(t.Context()), fetch(t.Context())
	if err := errors.Join(<-x, <-y); err != nil {
		t.Fatal(err)
	}
	if n := store.Gets.Load(); n > 5 {
		t.Errorf("%d chunks were fetched: those that came before, or everything twice", n)
	}
	equal(t, a, b, st.ID)
}

// An upload to a newer artifact takes the place of the one before, and a state
// that is to be deleted is not waited for.
func TestP3_AnUploadMakesWay(t *testing.T) {
	store := transfertest.Serve(t)
	a := newHost(t, store)
	st := a.save(t)
	begun := make(chan struct{}, 100)
	store.Spoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if transfertest.IsChunk(r) {
			_, _ = io.Copy(io.Discard, r.Body) // before that its end is not noticed
			begun <- struct{}{}
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
	upload := func() chan error {
		out := make(chan error, 1)
		_, to := store.To(a.id)
		go func() { _, err := a.UploadState(t.Context(), st.ID, to, nil); out <- err }()
		<-begun
		return out
	}
	former := upload()
	later := upload()
	wantReason(t, <-former, "superseded")
	if err := errors.Join(a.Drop(t.Context(), st.ID), a.states.Delete(t.Context(), st.ID)); err != nil {
		t.Fatal(err)
	}
	wantReason(t, <-later, "unknown_state")
}

// builds is an engine that only keeps builds.
type builds struct {
	engine.Engine
	mu   sync.Mutex
	kept []engine.Kept
}

func (b *builds) Builds(context.Context) ([]engine.Kept, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept, nil
}

func (b *builds) Keep(_ context.Context, path string, want engine.Build) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := string(artifact.DigestOf(content)); got != want.Digest || !strings.Contains(string(content), want.Version) {
		return errors.New("another program")
	}
	b.kept = append(b.kept, engine.Kept{Build: want, Path: path + "-kept", SizeBytes: int64(len(content))})
	return os.WriteFile(path+"-kept", content, 0o500)
}

func (b *builds) SweepBuilds(context.Context, func() map[string]bool) error { return nil }

func TestP7_AnEngineGoesFromHostToHost(t *testing.T) {
	store := transfertest.Serve(t)
	a, b := newHost(t, store), newHost(t, store)
	program := []byte("program of version 3")
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, program, 0o500); err != nil {
		t.Fatal(err)
	}
	build := carry.Build{Engine: "fake", Version: "3", Digest: string(artifact.DigestOf(program))}
	if err := a.engine.Keep(t.Context(), path, engine.Build{Version: build.Version, Digest: build.Digest}); err != nil {
		t.Fatal(err)
	}
	stored, to := store.To(a.id)
	if _, err := a.UploadEngine(t.Context(), build, to, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.FetchEngine(t.Context(), build, store.From(stored, b.id), nil); err != nil {
		t.Fatal(err)
	}
	have, _ := b.engine.Builds(t.Context())
	if len(have) != 1 || have[0].Digest != build.Digest {
		t.Fatalf("kept: %+v", have)
	}
	if got, err := os.ReadFile(have[0].Path); err != nil || !bytes.Equal(got, program) {
		t.Errorf("the program is another: %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir, "incoming", build.Digest)); err == nil {
		t.Error("what was fetched is left beside what is kept")
	}
	other := build
	other.Digest = strings.Repeat("0", 64)
	if err := newHost(t, store).FetchEngine(t.Context(), other, store.From(stored, b.id), nil); err == nil {
		t.Error("another program was kept")
	}
	_, to = store.To(b.id)
	other = build
	other.Version = "4"
	_, err := b.UploadEngine(t.Context(), other, to, nil)
	wantReason(t, err, "engine_build_missing")
	other.Engine = "none"
	_, err = b.UploadEngine(t.Context(), other, to, nil)
	wantReason(t, err, "engine_unavailable")
}
