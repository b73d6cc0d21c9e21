package transfer_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// call sends a request and returns status and reason.
func (w *world) call(t *testing.T, method, url string, body []byte) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	must(t, err)
	resp, err := w.server.Client().Do(r)
	must(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	must(t, err)
	var a struct {
		Error struct{ Code, Reason, Message string }
	}
	if resp.StatusCode >= 400 {
		if err := json.Unmarshal(raw, &a); err != nil || a.Error.Message == "" || a.Error.Code == "" {
			t.Errorf("%s: error body %q", method, raw)
		}
	}
	return resp.StatusCode, a.Error.Reason
}

func in(source artifact.Source, name string) string {
	return strings.TrimSuffix(source.URL, "manifest") + name
}

func TestP1_GrantsOpenOnlyWhatTheyName(t *testing.T) {
	w := newWorld(t, inMemory())
	team := id.NewTeam()
	path, _ := sample(t)
	a, _ := w.put(t, team, nil, transfer.File{Name: "f", Path: path})
	chunk := w.manifest(t, team).Files[0].Chunks[0].Digest
	before := w.blobs(t, team, artifact.KindChunk)
	w.put(t, team, nil, transfer.File{Name: "f", Path: small(t, "another artifact of the team")})
	var stranger artifact.Digest
	for _, b := range w.blobs(t, team, artifact.KindChunk) {
		if !slices.Contains(before, b) {
			stranger = b.Key.Digest
		}
	}
	up := w.ledger.Begin(team, w.host)
	read, write := w.read(a, nil), w.write(up, nil)
	foreign, err := transfer.NewSigner(bytes.Repeat([]byte("x"), 32), w.clock)
	must(t, err)
	claim := func(d artifact.Digest, size string) []byte {
		return []byte(`{"chunks":[{"digest":"` + string(d) + `","size":` + size + `}]}`)
	}
	absent := artifact.DigestOf([]byte("absent"))
	manifest, err := artifact.Manifest{
		Version: artifact.ManifestVersion, MediaType: "x/y", Size: 5, ChunkSize: artifact.ChunkSize,
		Files: []artifact.File{{Name: "f", Size: 5, Digest: absent, Chunks: []artifact.Chunk{{RawSize: 5, RawDigest: absent, Size: 7, Digest: absent}}}},
	}.Encode()
	must(t, err)
	big := make([]byte, artifact.MaxChunkBytes+1)
	if status, _ := w.call(t, "POST", in(write, "chunks"), claim(artifact.DigestOf([]byte("1234567")), "7")); status != 200 {
		t.Fatalf("claim: %d", status)
	}
	for name, c := range map[string]struct {
		method, url string
		body        []byte
		status      int
		reason      string
	}{
		"read":                         {"GET", read.URL, nil, 200, ""},
		"read a chunk":                 {"GET", in(read, "chunks/"+string(chunk)), nil, 200, ""},
		"a chunk of another artifact":  {"GET", in(read, "chunks/"+string(stranger)), nil, 403, "chunk_not_granted"},
		"read by a write grant":        {"GET", write.URL, nil, 403, "wrong_grant"},
		"read what is not complete":    {"GET", w.read(up, nil).URL, nil, 404, "no_such_artifact"},
		"read what never was":          {"GET", w.read(id.NewArtifact(), nil).URL, nil, 404, "no_such_artifact"},
		"write by a read grant":        {"PUT", in(read, "chunks/"+string(stranger)), []byte("x"), 403, "wrong_grant"},
		"claim by a read grant":        {"POST", in(read, "chunks"), claim(absent, "7"), 403, "wrong_grant"},
		"ask where by a write grant":   {"POST", in(write, "urls"), []byte("{}"), 403, "wrong_grant"},
		"write what is complete":       {"POST", in(w.write(a, nil), "chunks"), claim(absent, "7"), 409, "upload_gone"},
		"expired":                      {"GET", w.signer.ReadURL(w.server.URL, a, w.host, -time.Second), nil, 401, "grant_expired"},
		"signed by another":            {"GET", foreign.ReadURL(w.server.URL, a, w.host, time.Hour), nil, 401, "invalid_grant"},
		"garbage":                      {"GET", w.server.URL + "/v1/store/abc/manifest", nil, 401, "invalid_grant"},
		"very long":                    {"GET", w.server.URL + "/v1/store/" + strings.Repeat("A", 4000) + "/manifest", nil, 401, "invalid_grant"},
		"path as digest":               {"GET", in(read, "chunks/..%2F..%2Fetc%2Fpasswd"), nil, 400, "invalid_digest"},
		"unknown route":                {"GET", in(read, "other"), nil, 404, "no_such_route"},
		"unknown method":               {"DELETE", read.URL, nil, 404, "no_such_route"},
		"a chunk that was not claimed": {"PUT", in(write, "chunks/"+string(absent)), []byte("1234567"), 409, "chunk_not_claimed"},
		"wrong content":                {"PUT", in(write, "chunks/"+string(artifact.DigestOf([]byte("1234567")))), []byte("7654321"), 400, "content_mismatch"},
		"wrong length":                 {"PUT", in(write, "chunks/"+string(artifact.DigestOf([]byte("1234567")))), []byte("12345678"), 400, "content_mismatch"},
		"empty chunk":                  {"PUT", in(write, "chunks/"+string(absent)), nil, 400, "length_required"},
		"chunk too large":              {"PUT", in(write, "chunks/"+string(absent)), big, 413, "too_large"},
		"manifest before its chunks":   {"PUT", write.URL, manifest, 409, "chunks_missing"},
		"no manifest":                  {"PUT", write.URL, []byte(`{"version":1}`), 400, "invalid_manifest"},
		"no claim":                     {"POST", in(write, "chunks"), []byte(`[`), 400, "invalid_request"},
		"claim of no form":             {"POST", in(write, "chunks"), claim("../x", "7"), 400, "invalid_digest"},
		"claim of nothing":             {"POST", in(write, "chunks"), claim(absent, "0"), 400, "invalid_request"},
		"claim of too much":            {"POST", in(write, "chunks"), claim(absent, "999999999"), 400, "invalid_request"},
		"claim too large":              {"POST", in(write, "chunks"), big, 413, "too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, reason := w.call(t, c.method, c.url, c.body); status != c.status || reason != c.reason {
				t.Errorf("got %d %s; want %d %s", status, reason, c.status, c.reason)
			}
		})
	}
	start := len(w.server.URL + "/v1/store/")
	for i := start; i < len(read.URL)-len("/manifest"); i++ {
		bent := []byte(read.URL)
		bent[i] = 'A'
		if read.URL[i] == 'A' {
			bent[i] = 'B'
		}
		if status, _ := w.call(t, "GET", string(bent), nil); status != 401 {
			t.Fatalf("a grant bent at %d is answered with %d", i-start, status)
		}
	}
	w.clock.now.Add(61)
	if status, reason := w.call(t, "GET", read.URL, nil); status != 401 || reason != "grant_expired" {
		t.Errorf("after a minute: %d %s", status, reason)
	}
}

func TestP1_AccessThatIsTakenAwayEndsAtOnce(t *testing.T) {
	w := newWorld(t, inMemory())
	path, _ := sample(t)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: path})
	up := w.ledger.Begin(id.NewTeam(), w.host)
	other := id.NewHost()
	theirs := artifact.Source{URL: w.signer.WriteURL(w.server.URL, up, other, time.Minute)}
	if _, err := transfer.Upload(t.Context(), w.clients(), theirs, []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{}); !errs.Is(err, "upload_gone") {
		t.Errorf("another host's upload: %v", err)
	}

	// In the middle of either transfer.
	bar := func(h id.Host) {
		spoil := func(_ http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) {
				w.ledger.Bar(h)
			}
			return false
		}
		w.spoil.Store(&spoil)
	}
	bar(w.host)
	dir := t.TempDir()
	if err := w.fetch(t, a, nil, dir, nil); !errs.Is(err, "no_such_artifact") {
		t.Errorf("fetch: %v", err)
	}
	w.host = id.NewHost()
	bar(w.host)
	up = w.ledger.Begin(id.NewTeam(), w.host)
	if _, err := transfer.Upload(t.Context(), w.clients(), w.write(up, nil), []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{}); !errs.Is(err, "upload_gone") {
		t.Errorf("upload: %v", err)
	}
	holds(t, dir, partOnly(t, dir))

	// An artifact that is gone.
	w.spoil.Store(nil)
	w.host = id.NewHost()
	w.ledger.Remove(a)
	if err := w.fetch(t, a, nil, t.TempDir(), nil); !errs.Is(err, "no_such_artifact") {
		t.Errorf("a removed artifact: %v", err)
	}
}

func TestP1_AnAddressIsItsHostsAlone(t *testing.T) {
	w := newWorld(t, inMemory())
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "f", Path: small(t, "x")})
	peer := w.host
	handler := transfer.NewHandler(w.store, w.signer, w.ledger, transfer.HandlerOptions{Peer: func(*http.Request) id.Host { return peer }})
	for host, status := range map[id.Host]int{w.host: 200, id.NewHost(): 403, {}: 403} {
		peer = host
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", w.read(a, nil).URL, nil))
		if rec.Code != status {
			t.Errorf("host %s: %d %s", host, rec.Code, rec.Body)
		}
	}
}
