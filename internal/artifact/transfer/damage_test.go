package transfer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const patience = 20 * time.Second

// stored reads an artifact's manifest out of the store.
func (w *world) manifest(t testing.TB, team id.Team) artifact.Manifest {
	t.Helper()
	list := w.blobs(t, team, artifact.KindManifest)
	if len(list) == 0 {
		t.Fatal("no manifest is stored")
	}
	r, _, err := w.store.Store.Open(t.Context(), list[0].Key)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	m, err := artifact.ParseManifest(b)
	must(t, err)
	return m
}

func TestP1_TS01_DamageIsRefusedAndNamed(t *testing.T) {
	for name, key := range map[string]artifact.ContentKey{"plain": nil, "encrypted": teamKey(1)} {
		w := newWorld(t, inMemory())
		team := id.NewTeam()
		content := make([]byte, 3*artifact.ChunkSize+100)
		copy(content[artifact.ChunkSize:], "first")
		copy(content[2*artifact.ChunkSize+artifact.ChunkSize/2:], noise()[:2000])
		copy(content[3*artifact.ChunkSize:], "last")
		path := small(t, string(content))
		a, _ := w.put(t, team, key, transfer.File{Name: "image/pages.img", Path: path}, transfer.File{Name: "state.json", Path: small(t, "{}")})
		m := w.manifest(t, team)
		victim := m.Files[0].Chunks[1] // of the middle
		flip := func(at int64) func([]byte) []byte {
			return func(b []byte) []byte { b[at] ^= 1; return b }
		}
		for damage, c := range map[string]struct {
			make   func([]byte) []byte
			reason string
		}{
			"first byte":  {flip(0), "content_mismatch"},
			"a byte":      {flip(victim.Size / 2), "content_mismatch"},
			"last byte":   {flip(victim.Size - 1), "content_mismatch"},
			"truncated":   {func(b []byte) []byte { return b[:len(b)-1] }, "content_mismatch"},
			"empty":       {func([]byte) []byte { return []byte{} }, "content_mismatch"},
			"longer":      {func(b []byte) []byte { return append(b, 0) }, "content_mismatch"},
			"another one": {func([]byte) []byte { return bytes.Repeat([]byte{7}, int(victim.Size)) }, "content_mismatch"},
			"missing":     {func([]byte) []byte { return nil }, "chunk_missing"},
		} {
			t.Run(name+"/"+damage, func(t *testing.T) {
				change := func(k artifact.Key, b []byte) []byte {
					if k.Digest == victim.Digest {
						return c.make(b)
					}
					return b
				}
				w.store.change.Store(&change)
				defer w.store.change.Store(nil)
				dir := t.TempDir()
				err := w.fetch(t, a, key, dir, nil)
				var e *errs.Error
				if !errors.As(err, &e) || e.Reason != c.reason || e.Details["file"] != "image/pages.img" ||
					e.Details["offset"] != victim.Offset || e.Details["digest"] != string(victim.Digest) {
					t.Fatalf("got %v, details %v", err, e)
				}
				for _, name := range []string{"image/pages.img", "state.json"} {
					if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
						t.Errorf("%s appeared", name)
					}
				}
				// Once the chunk is whole again the download is too.
				w.store.change.Store(nil)
				must(t, w.fetch(t, a, key, dir, nil))
				holds(t, dir, map[string][]byte{"image/pages.img": content, "state.json": []byte("{}")})
			})
		}
	}
}

func TestP1_ADamagedManifestIsRefused(t *testing.T) {
	w := newWorld(t, inMemory())
	team := id.NewTeam()
	a, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: small(t, "x")})
	size := w.blobs(t, team, artifact.KindManifest)[0].Size
	for at := int64(0); at < size; at += 7 {
		change := func(k artifact.Key, b []byte) []byte {
			if k.Kind == artifact.KindManifest {
				b[at] ^= 1
			}
			return b
		}
		w.store.change.Store(&change)
		if err := w.fetch(t, a, nil, t.TempDir(), nil); !errs.Is(err, "content_mismatch") {
			t.Fatalf("byte %d: %v", at, err)
		}
	}
	gone := func(artifact.Key, []byte) []byte { return nil }
	w.store.change.Store(&gone)
	if err := w.fetch(t, a, nil, t.TempDir(), nil); !errs.Is(err, "no_such_artifact") {
		t.Errorf("gone: %v", err)
	}
}

func TestFetch_HostileOrWrongAnswers(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	team := id.NewTeam()
	a, u := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
	sealed, _ := w.put(t, team, teamKey(1), transfer.File{Name: "f", Path: path})
	onChunks := func(answer func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				answer(rw)
			}
			return isChunk(r)
		}
	}
	onManifest := func(change func(map[string]any)) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) || r.Method != http.MethodGet {
				return false
			}
			rec := httptest.NewRecorder()
			w.inner.ServeHTTP(rec, r)
			var answer map[string]any
			if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
				t.Error(err)
			}
			change(answer)
			_ = json.NewEncoder(rw).Encode(answer)
			return true
		}
	}
	urls := func(ref string) func(http.ResponseWriter, *http.Request) bool {
		direct := onManifest(func(m map[string]any) { m["direct"] = true })
		return func(rw http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				return false
			}
			if r.Method != http.MethodPost {
				// json.Encode of a map changes the manifest's bytes: only the flag may change.
				rec := httptest.NewRecorder()
				w.inner.ServeHTTP(rec, r)
				_, _ = rw.Write(bytes.Replace(rec.Body.Bytes(), []byte(`"direct":false`), []byte(`"direct":true`), 1))
				return true
			}
			_ = direct
			var q struct{ Digests []string }
			if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
				t.Error(err)
			}
			answer := map[string]string{}
			for _, d := range q.Digests {
				if ref != "" {
					answer[d] = ref
				}
			}
			_ = json.NewEncoder(rw).Encode(map[string]any{"urls": answer})
			return true
		}
	}
	for name, c := range map[string]struct {
		spoil  func(http.ResponseWriter, *http.Request) bool
		of     id.Artifact
		key    artifact.ContentKey
		want   transfer.Want
		opts   transfer.Options
		reason string
	}{
		"other bytes": {spoil: onChunks(func(rw http.ResponseWriter) { _, _ = io.WriteString(rw, "nonsense") }), reason: "content_mismatch"},
		"endless chunk": {spoil: onChunks(func(rw http.ResponseWriter) {
			for range 1000 {
				if _, err := rw.Write(make([]byte, 1<<20)); err != nil {
					break
				}
			}
		}), reason: "content_mismatch"},
		"file scheme":           {spoil: urls("file:///etc/passwd"), reason: "invalid_store_url"},
		"elsewhere":             {spoil: urls("http://192.0.2.1/x"), reason: "invalid_store_url"},
		"elsewhere, no scheme":  {spoil: urls("//192.0.2.1/x"), reason: "invalid_store_url"},
		"no address":            {spoil: urls(""), reason: "chunk_missing"},
		"no manifest":           {spoil: onManifest(func(m map[string]any) { m["manifest"] = map[string]any{} }), reason: "content_mismatch"},
		"not JSON":              {spoil: func(rw http.ResponseWriter, _ *http.Request) bool { _, _ = io.WriteString(rw, "<html>"); return true }, reason: "invalid_manifest"},
		"another file":          {want: transfer.Want{MediaType: artifact.MediaTypeState, Files: map[string]artifact.Digest{"f": artifact.DigestOf(nil)}}, reason: "content_mismatch"},
		"a file more":           {want: transfer.Want{MediaType: artifact.MediaTypeState, Files: map[string]artifact.Digest{"g": u.Files["f"]}}, reason: "wrong_artifact"},
		"another kind":          {want: transfer.Want{MediaType: artifact.MediaTypeErofs}, reason: "wrong_artifact"},
		"too large":             {opts: transfer.Options{MaxBytes: int64(len(content)) - 1}, reason: "too_large"},
		"encrypted, no key":     {of: sealed, reason: "content_key_missing"},
		"encrypted, wrong key":  {of: sealed, key: teamKey(2), reason: "content_mismatch"},
		"should be encrypted":   {key: teamKey(1), reason: "wrong_artifact"},
		"a key of wrong length": {of: sealed, key: teamKey(1)[:16], reason: "invalid_content_key"},
	} {
		t.Run(name, func(t *testing.T) {
			w.spoil.Store(nil)
			if c.spoil != nil {
				w.spoil.Store(&c.spoil)
			}
			if c.of.IsZero() {
				c.of = a
			}
			if c.want.MediaType == "" {
				c.want = transfer.Want{MediaType: artifact.MediaTypeState, Files: u.Files}
			}
			dir := t.TempDir()
			err := transfer.Fetch(t.Context(), w.clients(), w.read(c.of, c.key), c.want, transfer.Into(dir), c.opts)
			if !errs.Is(err, c.reason) {
				t.Errorf("got %v; want %s", err, c.reason)
			}
			if _, err := os.Stat(filepath.Join(dir, "f")); err == nil {
				t.Error("a file appeared")
			}
			if _, err := os.Stat(filepath.Join(dir, "f.part")); err == nil && name == "another file" {
				t.Error("a part is left that is of no use")
			}
		})
	}
}

func TestFetch_OnlyWhatWasAskedForIsPlaced(t *testing.T) {
	w := newWorld(t, inMemory())
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "image", Path: small(t, "x")}, transfer.File{Name: "more", Path: small(t, "y")})
	dir := t.TempDir()
	err := transfer.Fetch(t.Context(), w.clients(), w.read(a, nil), transfer.Want{MediaType: artifact.MediaTypeState},
		transfer.At("image", filepath.Join(dir, "out")), transfer.Options{})
	var e *errs.Error
	if !errors.As(err, &e) || e.Reason != "wrong_artifact" || fmt.Sprint(e.Details["file"]) != "more" {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a file appeared")
	}
}

// partOnly is what a broken download may have left of its one file.
func partOnly(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "f.part"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(t, err)
	return map[string][]byte{"f.part": b}
}
