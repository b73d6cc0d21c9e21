package artifactpg_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// TestP1_TheStoreIsComparedWithTheRows: both ways, over several pages; what is
// being uploaded, or about to be removed, is no fault.
func TestP1_TheStoreIsComparedWithTheRows(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	host := w.host(id.PlatformTeamID)
	check := func() (artifact.Checked, map[string]bool) {
		t.Helper()
		faults := map[string]bool{}
		got, err := artifact.Check(ctx, w.rows, w.blobs, artifact.Depth{}, func(f artifact.Fault) { faults[f.Key.String()] = f.Missing })
		if err != nil {
			t.Fatal(err)
		}
		return got, faults
	}
	begin := func() id.Artifact {
		t.Helper()
		a := id.NewArtifact()
		if err := w.begin(ctx, artifact.New{ID: a, Team: w.team, Kind: artifact.KindState, Host: host}); err != nil {
			t.Fatal(err)
		}
		return a
	}
	many := make([][]byte, 1100)
	for i := range many {
		many[i] = fmt.Appendf(nil, "chunk %d", i)
	}
	large, doomed, half := begin(), begin(), begin()
	err := w.upload(ctx, half, host, func(part string) error {
		if part == "named" {
			return errHalfway
		}
		return nil
	}, []byte("half of it"))
	if !errors.Is(err, errHalfway) {
		t.Fatal(err)
	}
	if err := errors.Join(w.upload(ctx, large, host, whole, many...), w.upload(ctx, doomed, host, whole, []byte("not for long")), w.drop(ctx, doomed)); err != nil {
		t.Fatal(err)
	}
	if err := w.collector().Pass(ctx); err != nil { // rows go, blobs linger
		t.Fatal(err)
	}
	if got, faults := check(); got.Objects != 1100+1+2+2 || got.Missing+got.Unknown != 0 {
		t.Errorf("%+v, %v", got, faults)
	}
	keys, err := w.rows.Keys(ctx, large, []content.Digest{content.DigestOf(many[3]), content.DigestOf(many[800])})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, k := range keys {
		if err := w.blobs.Delete(ctx, k); err != nil {
			t.Fatal(err)
		}
		want[k.String()] = true
	}
	stray := []byte("nobody's")
	for _, k := range []content.Key{content.ChunkKey(w.team, content.DigestOf(stray), 1<<40), content.ManifestKey(w.team, content.DigestOf(stray), 1<<40)} {
		if err := w.blobs.Put(ctx, k, bytes.NewReader(stray), int64(len(stray))); err != nil {
			t.Fatal(err)
		}
		want[k.String()] = false
	}
	wrong, err := w.rows.Keys(ctx, large, []content.Digest{content.DigestOf(many[5])})
	if err != nil {
		t.Fatal(err)
	}
	bad := wrong[content.DigestOf(many[5])]
	if err := os.WriteFile(filepath.Join(w.dir, bad.Prefix.String(), string(bad.Digest[:2]), bad.Name()), []byte("Chunk 5"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, faults := check()
	if got.Missing != 2 || got.Unknown != 2 {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff(want, faults); diff != "" {
		t.Error(diff)
	}

	// Read, one more is found; asked to, all are noted, and wanted of the next who
	// has them.
	got, err = artifact.Check(ctx, w.rows, w.blobs, artifact.Depth{Contents: true}, func(f artifact.Fault) {
		if f.Damaged && f.Key != bad {
			t.Errorf("%s is damaged", f.Key)
		}
	})
	if err != nil || got.Missing != 2 || got.Damaged != 1 {
		t.Errorf("with contents: %+v, %v", got, err)
	}
	if n := w.count(`SELECT count(*) FROM chunks WHERE NOT stored AND digest = sha256('chunk 5')`); n != 0 {
		t.Error("a look changed something")
	}
	if _, err = artifact.Check(ctx, w.rows, w.blobs, artifact.Depth{Contents: true, Mend: true}, func(artifact.Fault) {}); err != nil {
		t.Fatal(err)
	}
	again := begin()
	if err := w.upload(ctx, again, host, whole, many...); err != nil {
		t.Fatal(err)
	}
	got, err = artifact.Check(ctx, w.rows, w.blobs, artifact.Depth{Contents: true}, func(artifact.Fault) {})
	if err != nil || got.Missing+got.Damaged != 0 {
		t.Errorf("brought again: %+v, %v", got, err)
	}
}
