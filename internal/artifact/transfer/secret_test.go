package transfer_test

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/id"
)

// everything is what whoever has the store sees of a team.
func (w *world) everything(t testing.TB, team id.Team) (digests []artifact.Digest, content []byte) {
	t.Helper()
	seen := make(map[artifact.Digest]bool)
	for _, kind := range []artifact.Kind{artifact.KindChunk, artifact.KindManifest} {
		for _, info := range w.blobs(t, team, kind) {
			seen[info.Key.Digest] = true
			r, _, err := w.store.Store.Open(t.Context(), info.Key)
			must(t, err)
			b, err := io.ReadAll(r)
			r.Close()
			must(t, err)
			content = append(content, b...)
			if kind == artifact.KindManifest {
				m, err := artifact.ParseManifest(b)
				must(t, err)
				for _, f := range m.Files {
					seen[f.Digest] = true
					for _, c := range f.Chunks {
						seen[c.Digest], seen[c.RawDigest] = true, true
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), content
}

func TestS16_P1_OneContentIsStoredOnceInATeamAndNothingIsSharedAcross(t *testing.T) {
	w := newWorld(t, inMemory())
	path, content := sample(t)
	secret := bytes.Repeat([]byte("the password is swordfish. "), 1000)
	other := filepath.Join(t.TempDir(), "other")
	must(t, os.WriteFile(other, append(bytes.Clone(content[:artifact.ChunkSize]), secret...), 0o600))
	a, b, platform := id.NewTeam(), id.NewTeam(), id.PlatformTeamID

	_, first := w.put(t, a, teamKey(1), transfer.File{Name: "f", Path: path})
	chunks := len(w.blobs(t, a, artifact.KindChunk))
	_, second := w.put(t, a, teamKey(1), transfer.File{Name: "f", Path: path})
	if second.SentBytes != 0 || second.Manifest != first.Manifest || len(w.blobs(t, a, artifact.KindChunk)) != chunks {
		t.Errorf("the same file again sent %d bytes", second.SentBytes)
	}
	if _, third := w.put(t, a, teamKey(1), transfer.File{Name: "g", Path: other}); third.SentBytes != int64(len(secret)) {
		t.Errorf("a file with one chunk in common sent %d bytes", third.SentBytes)
	}

	for team, key := range map[id.Team]artifact.ContentKey{b: teamKey(2), platform: nil} {
		w.put(t, team, key, transfer.File{Name: "f", Path: path})
		_, up := w.put(t, team, key, transfer.File{Name: "g", Path: other})
		if up.SentBytes != int64(len(secret)) {
			t.Errorf("another team's upload sent %d bytes", up.SentBytes)
		}
	}
	seen, bytesOfA := w.everything(t, a)
	seenB, _ := w.everything(t, b)
	seenPlain, _ := w.everything(t, platform)
	for _, d := range seen {
		if slices.Contains(seenB, d) || slices.Contains(seenPlain, d) {
			t.Errorf("%s is the same in two teams", d)
		}
	}
	for what, needle := range map[string][]byte{
		"its text": []byte("swordfish"), "its noise": noise()[:64],
		"a file's digest": []byte(first.Files["f"]), "a chunk's digest": []byte(artifact.DigestOf(noise())),
	} {
		if bytes.Contains(bytesOfA, needle) {
			t.Errorf("the store shows %s", what)
		}
	}
}
