package transfer_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/mem"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestP1_TS04_ThereAndBackWithHoles(t *testing.T) {
	for name, key := range map[string]artifact.ContentKey{"plain": nil, "encrypted": teamKey(1)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, onDisk(t))
			team := id.NewTeam()
			path, content := sample(t)
			files := []transfer.File{
				{Name: "image/pages.img", Path: path, Mode: 0o640}, {Name: "image/empty", Path: small(t, "")}, {Name: "state.json", Path: small(t, "{}")},
			}
			total := int64(len(content) + 2)
			var last int64
			watch := func(done, of int64) {
				if done < last || of != total {
					t.Errorf("progress %d of %d after %d", done, of, last)
				}
				last = done
			}
			a := w.ledger.Begin(team, w.host)
			u, err := transfer.Upload(t.Context(), w.clients(), w.write(a, key), files, artifact.MediaTypeState, transfer.Options{Progress: watch})
			must(t, err)
			sums := map[string]artifact.Digest{
				"image/pages.img": artifact.DigestOf(content), "image/empty": artifact.DigestOf(nil), "state.json": artifact.DigestOf([]byte("{}")),
			}
			if last != total || !cmp.Equal(u.Files, sums) || u.SizeBytes != total {
				t.Fatalf("%+v, progress %d", u, last)
			}
			if n := w.puts.Load(); n != 4 { // noise once, the middle, the end, state.json
				t.Errorf("%d chunks were sent", n)
			}
			if _, again := w.put(t, team, key, files...); again.SentBytes != 0 || again.Manifest != u.Manifest || w.puts.Load() != 4 {
				t.Errorf("a repeat sent %d bytes, manifest %s", again.SentBytes, again.Manifest)
			}

			dir := t.TempDir()
			last = 0
			must(t, w.fetch(t, a, key, dir, func(want *transfer.Want, o *transfer.Options) { want.Files, o.Progress = sums, watch }))
			if last != total {
				t.Errorf("progress %d of %d", last, total)
			}
			holds(t, dir, map[string][]byte{"image/pages.img": content, "image/empty": {}, "state.json": []byte("{}")})
			for name, mode := range map[string]os.FileMode{"image/pages.img": 0o640, "state.json": 0o400} {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
					t.Errorf("%s: mode %v %v", name, info.Mode(), err)
				}
			}
			data := int64(2*artifact.ChunkSize + 12345 + 4096)
			if got := allocated(t, filepath.Join(dir, "image/pages.img")); got > data*105/100+64<<10 {
				t.Errorf("%d bytes allocated for %d of data", got, data)
			}
		})
	}
}

func TestTS04_AnImageOfHolesStaysOne(t *testing.T) {
	w := newWorld(t, onDisk(t))
	size, data := int64(testkit.Scaled(10<<30, 1<<30)), int64(testkit.Scaled(200<<20, 20<<20))
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	for at := int64(0); at < data; at += artifact.ChunkSize { // all over the file, and not where chunks begin
		_, err := f.WriteAt(noise(), at*(size/data)+4096*(at/artifact.ChunkSize%1000))
		must(t, err)
	}
	must(t, f.Close())
	a, u := w.put(t, id.NewTeam(), teamKey(1), transfer.File{Name: "disk", Path: path})
	dir := t.TempDir()
	must(t, w.fetch(t, a, teamKey(1), dir, func(want *transfer.Want, _ *transfer.Options) { want.Files = u.Files }))
	if was, is := allocated(t, path), allocated(t, filepath.Join(dir, "disk")); is > data*105/100 {
		t.Errorf("%d bytes allocated for %d of data; the original has %d", is, data, was)
	}
}

func TestFetch_GoesOnWhereItBroke(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	a, _ := w.put(t, id.NewTeam(), teamKey(1), transfer.File{Name: "f", Path: path})
	dir := t.TempDir()
	dst := filepath.Join(dir, "f")

	// The line is cut late; then the part is soiled where a hole belongs, and where
	// a chunk was half written.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cut := transfer.Options{Progress: func(done, total int64) {
		if done > total-4*artifact.ChunkSize {
			cancel()
		}
	}}
	want := transfer.Want{MediaType: artifact.MediaTypeState}
	if err := transfer.Fetch(ctx, w.clients(), w.read(a, teamKey(1)), want, transfer.Into(dir), cut); err == nil {
		t.Fatal("the cut download succeeded")
	}
	if _, err := os.Stat(dst); err == nil {
		t.Fatal("the cut download left a file under its final name")
	}
	part := bytes.Clone(content)
	copy(part[3*artifact.ChunkSize:], "soiled")
	copy(part[5*artifact.ChunkSize+77:], "torn")
	must(t, os.WriteFile(dst+".part", part[:6*artifact.ChunkSize], 0o600))
	w.gets.Store(0)
	must(t, w.fetch(t, a, teamKey(1), dir, nil))
	holds(t, dir, map[string][]byte{"f": content})
	if n := w.gets.Load(); n != 2 { // the torn one and the end
		t.Errorf("%d chunks were fetched again", n)
	}
}

func TestFetch_WhatHasItsNameAlreadyStays(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "a", Path: path}, transfer.File{Name: "z", Path: small(t, "last")})
	dir := t.TempDir()
	must(t, w.fetch(t, a, nil, dir, nil))
	want := map[string][]byte{"a": content, "z": []byte("last")}
	w.gets.Store(0)
	must(t, w.fetch(t, a, nil, dir, nil))
	if n := w.gets.Load(); n != 0 {
		t.Errorf("%d chunks were fetched of what is there", n)
	}
	holds(t, dir, want)
	// As after a crash between two names, and with a file that is damaged.
	must(t, os.Remove(filepath.Join(dir, "z")))
	must(t, w.fetch(t, a, nil, dir, nil))
	if n := w.gets.Load(); n != 1 {
		t.Errorf("%d chunks were fetched for the last file", n)
	}
	must(t, os.Chmod(filepath.Join(dir, "a"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("damaged"), 0o600))
	must(t, w.fetch(t, a, nil, dir, nil))
	holds(t, dir, want)
}

func TestFetch_OneAtATime(t *testing.T) {
	w := newWorld(t, inMemory())
	path, _ := sample(t)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: path})
	dir := t.TempDir()
	var once atomic.Bool
	must(t, w.fetch(t, a, nil, dir, func(_ *transfer.Want, o *transfer.Options) {
		o.Progress = func(int64, int64) {
			if once.CompareAndSwap(false, true) {
				if err := w.fetch(t, a, nil, dir, nil); !errs.Is(err, "download_running") {
					t.Errorf("a second download: %v", err)
				}
			}
		}
	}))
}

func TestUpload_SendsOnlyWhatIsLacking(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	a, team := w.ledger.Begin(id.PlatformTeamID, w.host), id.PlatformTeamID
	// The third chunk meets a store that is full.
	full := func(rw http.ResponseWriter, r *http.Request) bool {
		if isChunk(r) && len(w.blobs(t, team, artifact.KindChunk)) >= 2 {
			rw.WriteHeader(http.StatusConflict)
			return true
		}
		return false
	}
	w.spoil.Store(&full)
	files := []transfer.File{{Name: "f", Path: path}}
	_, err := transfer.Upload(t.Context(), w.clients(), w.write(a, nil), files, artifact.MediaTypeState, transfer.Options{Parallel: 1})
	if err == nil || w.ledger.IsReady(a) {
		t.Fatalf("a broken upload: %v", err)
	}
	w.spoil.Store(nil)
	w.puts.Store(0)
	u, err := transfer.Upload(t.Context(), w.clients(), w.write(a, nil), files, artifact.MediaTypeState, transfer.Options{Parallel: 1})
	must(t, err)
	if n := w.puts.Load(); n != 1 || u.SentBytes != 12345 {
		t.Errorf("the rest was %d chunks, %d bytes", n, u.SentBytes)
	}
	dir := t.TempDir()
	must(t, w.fetch(t, a, nil, dir, nil))
	holds(t, dir, map[string][]byte{"f": content})
}

func TestUpload_AChunkThatNeverCameIsBroughtAgain(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	var lost atomic.Int64
	// As when a presigned PUT of somebody else's was announced, and did not happen.
	lose := func(rw http.ResponseWriter, r *http.Request) bool {
		if isChunk(r) && lost.Add(1) == 2 {
			rw.WriteHeader(http.StatusNoContent)
			return true
		}
		return false
	}
	w.spoil.Store(&lose)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: path})
	dir := t.TempDir()
	must(t, w.fetch(t, a, nil, dir, nil))
	holds(t, dir, map[string][]byte{"f": content})
}

// What the store has lost of what others brought long ago is brought again, and
// heals what they brought.
func TestTS01_WhatTheStoreLostIsBroughtAgain(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	team := id.NewTeam()
	before, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
	blobs := w.blobs(t, team, artifact.KindChunk)
	must(t, w.store.Delete(t.Context(), blobs[1].Key))
	w.puts.Store(0)
	again, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
	if n := w.puts.Load(); n != 1 {
		t.Errorf("%d chunks were brought again", n)
	}
	for _, a := range []id.Artifact{before, again} {
		dir := t.TempDir()
		must(t, w.fetch(t, a, nil, dir, nil))
		holds(t, dir, map[string][]byte{"f": content})
	}
}

// Damage that has the right size is found by who reads it, and from then on brought
// again; who cries wolf changes nothing.
func TestTS01_WhatIsDamagedIsBroughtAgain(t *testing.T) {
	blobs := &mem.Store{}
	w := newWorld(t, blobs)
	path, content := sample(t)
	team := id.NewTeam()
	before, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
	victim := w.blobs(t, team, artifact.KindChunk)[1].Key
	doubted := func() {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, strings.TrimSuffix(w.read(before, nil).URL, "manifest")+"chunks/"+string(victim.Digest)+"/doubt", nil)
		must(t, err)
		resp, err := w.server.Client().Do(r)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Errorf("a doubt: %s", resp.Status)
		}
	}
	again := func(want int64) {
		t.Helper()
		w.puts.Store(0)
		a, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
		if n := w.puts.Load(); n != want {
			t.Errorf("%d chunks were brought again, want %d", n, want)
		}
		for _, a := range []id.Artifact{before, a} {
			dir := t.TempDir()
			must(t, w.fetch(t, a, nil, dir, nil))
			holds(t, dir, map[string][]byte{"f": content})
		}
	}
	doubted()
	again(0)
	blobs.Spoil(victim)
	if err := w.fetch(t, before, nil, t.TempDir(), nil); !errs.Is(err, "content_mismatch") {
		t.Fatalf("fetched: %v", err)
	}
	again(1)
}

func TestUpload_ALostAnswerIsNoFailure(t *testing.T) {
	w := newWorld(t, inMemory())
	var lost atomic.Bool
	lose := func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && !isChunk(r) && lost.CompareAndSwap(false, true) {
			w.inner.ServeHTTP(discard{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		return false
	}
	w.spoil.Store(&lose)
	w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: small(t, "x")})
	if !lost.Load() {
		t.Error("no answer was lost")
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

func TestTransfer_ShortTroublesAreRidden(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	var n atomic.Int64
	spoil := func(rw http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1)%2 == 1 {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	w.spoil.Store(&spoil)
	a, _ := w.put(t, id.NewTeam(), teamKey(3), transfer.File{Name: "f", Path: path})
	dir := t.TempDir()
	must(t, w.fetch(t, a, teamKey(3), dir, nil))
	holds(t, dir, map[string][]byte{"f": content})
}

func TestTransfer_EndsWhenItIsTold(t *testing.T) {
	w := newWorld(t, inMemory())
	path, _ := sample(t)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: path})
	b := w.ledger.Begin(id.NewTeam(), w.host)
	hold := func(_ http.ResponseWriter, r *http.Request) bool {
		if isChunk(r) {
			_, _ = io.Copy(io.Discard, r.Body) // until then nobody hears that the other side is gone
			<-r.Context().Done()
		}
		return isChunk(r)
	}
	w.spoil.Store(&hold)
	for name, move := range map[string]func(context.Context) error{
		"upload": func(ctx context.Context) error {
			_, err := transfer.Upload(ctx, w.clients(), w.write(b, nil), []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{})
			return err
		},
		"fetch": func(ctx context.Context) error {
			return transfer.Fetch(ctx, w.clients(), w.read(a, nil), transfer.Want{MediaType: artifact.MediaTypeState}, transfer.Into(t.TempDir()), transfer.Options{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.gets.Store(0)
			w.puts.Store(0)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- move(ctx) }()
			testkit.Eventually(t, patience, "a chunk on its way", func() bool { return w.gets.Load()+w.puts.Load() > 0 })
			cancel()
			if err := <-ended; err == nil {
				t.Error("a cancelled transfer succeeded")
			}
		})
	}
}

func TestUpload_RefusesWhatIsNoFile(t *testing.T) {
	w := newWorld(t, inMemory())
	a := w.ledger.Begin(id.NewTeam(), w.host)
	path := small(t, "x")
	for name, c := range map[string]struct {
		files  []transfer.File
		key    artifact.ContentKey
		opts   transfer.Options
		reason string
	}{
		"a directory":  {files: []transfer.File{{Name: "d", Path: t.TempDir()}}, reason: "not_a_file"},
		"a bad name":   {files: []transfer.File{{Name: "../d", Path: path}}, reason: "invalid_manifest"},
		"twice a name": {files: []transfer.File{{Name: "d", Path: path}, {Name: "d", Path: path}}, reason: "invalid_manifest"},
		"nothing":      {reason: "invalid_manifest"},
		"a short key":  {files: []transfer.File{{Name: "d", Path: path}}, key: artifact.ContentKey("short"), reason: "invalid_content_key"},
		"too large":    {files: []transfer.File{{Name: "d", Path: path}, {Name: "e", Path: path}}, opts: transfer.Options{MaxBytes: 1}, reason: "too_large"},
	} {
		_, err := transfer.Upload(t.Context(), w.clients(), w.write(a, c.key), c.files, artifact.MediaTypeState, c.opts)
		if !errs.Is(err, c.reason) {
			t.Errorf("%s: %v; want %s", name, err, c.reason)
		}
	}
}
