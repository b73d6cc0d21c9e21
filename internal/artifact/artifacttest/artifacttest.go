// Package artifacttest is the suite every artifact.Store passes.
package artifacttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// Run checks the contract on fresh stores that open makes.
func Run(t *testing.T, open func(t *testing.T) artifact.Store) {
	for name, check := range map[string]func(*testing.T, artifact.Store){
		"PutOpenStatDelete":          roundTrip,
		"WrongContentLeavesNothing":  wrongContent,
		"BrokenStreamLeavesNothing":  brokenStream,
		"FI04_BadKeysAreRefused":     badKeys,
		"P1_TeamsShareNothing":       teamsApart,
		"P1_ALateDeleteHitsNothing":  lateDelete,
		"ListPages":                  listPages,
		"ConcurrentPutsOfOneBlob":    concurrentPuts,
		"ReadersSurviveDelete":       readersSurvive,
		"ACancelledPutLeavesNothing": cancelledPut,
	} {
		t.Run(name, func(t *testing.T) { check(t, open(t)) })
	}
}

func put(t *testing.T, s artifact.Store, team id.Team, content string) artifact.Key {
	t.Helper()
	key := artifact.ChunkKey(team, artifact.DigestOf([]byte(content)), 1)
	if err := s.Put(t.Context(), key, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return key
}

func read(t *testing.T, s artifact.Store, key artifact.Key) string {
	t.Helper()
	r, info, err := s.Open(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || int64(len(b)) != info.Size || info.Key != key {
		t.Fatalf("read %d bytes, info %+v, %v", len(b), info, err)
	}
	return string(b)
}

func absent(t *testing.T, s artifact.Store, key artifact.Key) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("stat: %v; want not found", err)
	}
	if _, _, err := s.Open(t.Context(), key); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("open: %v; want not found", err)
	}
	if all, err := s.List(t.Context(), key.Prefix, "", 10); err != nil || len(all) != 0 {
		t.Errorf("list: %v %v; want nothing", all, err)
	}
}

func roundTrip(t *testing.T, s artifact.Store) {
	for _, content := range []string{"", "x", strings.Repeat("large ", 1<<18)} {
		team := id.NewTeam()
		key := artifact.ChunkKey(team, artifact.DigestOf([]byte(content)), 1)
		absent(t, s, key)
		for range 2 { // a repeat succeeds
			put(t, s, team, content)
			if got := read(t, s, key); got != content {
				t.Errorf("read %d bytes of %d", len(got), len(content))
			}
		}
		for range 2 {
			if err := s.Delete(t.Context(), key); err != nil {
				t.Error(err)
			}
			absent(t, s, key)
		}
	}
}

func wrongContent(t *testing.T, s artifact.Store) {
	key := artifact.ManifestKey(id.NewTeam(), artifact.DigestOf([]byte("right")), 1)
	for _, c := range []struct {
		content string
		size    int64
		want    error
	}{
		{"wrong", 5, artifact.ErrDigestMismatch},
		{"righ", 5, artifact.ErrSizeMismatch},
		{"right+", 5, artifact.ErrSizeMismatch},
		{"right", 6, artifact.ErrSizeMismatch},
	} {
		if err := s.Put(t.Context(), key, strings.NewReader(c.content), c.size); !errors.Is(err, c.want) {
			t.Errorf("%q as %d bytes: %v; want %v", c.content, c.size, err, c.want)
		}
		absent(t, s, key)
	}
}

var errBroken = errors.New("the line is cut")

func brokenStream(t *testing.T, s artifact.Store) {
	content := bytes.Repeat([]byte("z"), 1<<20)
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf(content), 1)
	broken := io.MultiReader(bytes.NewReader(content[:1<<19]), errReader{})
	if err := s.Put(t.Context(), key, broken, int64(len(content))); !errors.Is(err, errBroken) {
		t.Errorf("got %v; want the stream's own error", err)
	}
	absent(t, s, key)
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errBroken }

func badKeys(t *testing.T, s artifact.Store) {
	digest := artifact.DigestOf(nil)
	for _, key := range []artifact.Key{
		{},
		{Prefix: artifact.Prefix{Kind: "../.."}, Digest: digest, Object: 1},
		{Prefix: artifact.Prefix{Kind: artifact.KindChunk}, Digest: digest},
		artifact.ChunkKey(id.NewTeam(), digest, 0), artifact.ChunkKey(id.NewTeam(), digest, -1),
		artifact.ChunkKey(id.NewTeam(), "", 1), artifact.ChunkKey(id.NewTeam(), "../../../etc/passwd", 1),
		artifact.ChunkKey(id.NewTeam(), digest[:63]+"/", 1), artifact.ChunkKey(id.NewTeam(), artifact.Digest(strings.ToUpper(string(digest))), 1),
		artifact.ChunkKey(id.NewTeam(), artifact.Digest(strings.Repeat(".", 64)), 1),
	} {
		_, _, openErr := s.Open(t.Context(), key)
		_, statErr := s.Stat(t.Context(), key)
		for verb, err := range map[string]error{
			"put": s.Put(t.Context(), key, strings.NewReader(""), 0), "open": openErr,
			"stat": statErr, "delete": s.Delete(t.Context(), key),
		} {
			if err == nil || errors.Is(err, artifact.ErrNotFound) {
				t.Errorf("%s of %q: %v; want a refusal", verb, key.Digest, err)
			}
		}
	}
	if _, err := s.List(t.Context(), artifact.Prefix{Kind: "other"}, "", 1); err == nil {
		t.Error("a list of an unknown kind succeeds")
	}
}

func teamsApart(t *testing.T, s artifact.Store) {
	a, b := id.NewTeam(), id.PlatformTeamID
	key := put(t, s, a, "secret")
	other := artifact.ChunkKey(b, key.Digest, 1)
	absent(t, s, other)
	put(t, s, b, "secret")
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, other); got != "secret" {
		t.Errorf("the other team's blob reads %q", got)
	}
}

func lateDelete(t *testing.T, s artifact.Store) {
	old := put(t, s, id.NewTeam(), "again")
	anew := old
	anew.Object++
	if err := s.Put(t.Context(), anew, strings.NewReader("again"), 5); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := read(t, s, anew); got != "again" {
		t.Errorf("what was stored anew reads %q", got)
	}
	if _, err := s.Stat(t.Context(), old); !errors.Is(err, artifact.ErrNotFound) {
		t.Errorf("the old one: %v", err)
	}
}

func listPages(t *testing.T, s artifact.Store) {
	team := id.NewTeam()
	want := map[string]bool{}
	for i := range 22 {
		want[put(t, s, team, fmt.Sprint("blob ", i)).Name()] = true
	}
	for object := int64(2); object < 5; object++ { // the same content again
		content := "blob 7"
		key := artifact.ChunkKey(team, artifact.DigestOf([]byte(content)), object<<40)
		if err := s.Put(t.Context(), key, strings.NewReader(content), int64(len(content))); err != nil {
			t.Fatal(err)
		}
		want[key.Name()] = true
	}
	put(t, s, id.NewTeam(), "foreign")
	after := ""
	for pages := 0; ; pages++ {
		got, err := s.List(t.Context(), artifact.Prefix{Team: team, Kind: artifact.KindChunk}, after, 10)
		if err != nil || pages > 3 {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, info := range got {
			if info.Key.Name() <= after || !want[info.Key.Name()] || info.Size < 6 {
				t.Errorf("unexpected %+v after %s", info, after)
			}
			after = info.Key.Name()
			delete(want, after)
		}
		if len(got) < 10 {
			break
		}
	}
	if len(want) != 0 {
		t.Errorf("%d blobs were never listed", len(want))
	}
}

func concurrentPuts(t *testing.T, s artifact.Store) {
	team, content := id.NewTeam(), strings.Repeat("same", 1<<16)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			key := artifact.ChunkKey(team, artifact.DigestOf([]byte(content)), 1)
			if err := s.Put(context.Background(), key, strings.NewReader(content), int64(len(content))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := read(t, s, artifact.ChunkKey(team, artifact.DigestOf([]byte(content)), 1)); got != content {
		t.Error("content differs")
	}
}

func readersSurvive(t *testing.T, s artifact.Store) {
	key := put(t, s, id.NewTeam(), "kept")
	r, _, err := s.Open(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "kept" {
		t.Errorf("read %q, %v", b, err)
	}
}

func cancelledPut(t *testing.T, s artifact.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf([]byte("late")), 1)
	if err := s.Put(ctx, key, strings.NewReader("late"), 4); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	absent(t, s, key)
}
