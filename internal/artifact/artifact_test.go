package artifact

import (
	"bytes"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/kernel/id"
)

func sample() Manifest {
	d := DigestOf([]byte("x"))
	return Manifest{
		Version: ManifestVersion, MediaType: MediaTypeErofs, Digest: d, Size: 3*ChunkSize + 5, ChunkSize: ChunkSize,
		Chunks: []Chunk{
			{Offset: 0, RawSize: ChunkSize, RawDigest: d, Size: 10, Digest: d},
			{Offset: 3 * ChunkSize, RawSize: 5, RawDigest: d, Size: 14, Digest: d},
		},
	}
}

func TestManifest_OneFormAndOnlyThat(t *testing.T) {
	b, err := sample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseManifest(b); err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for name, bad := range map[string]string{
		"space":          " " + text,
		"trailing":       text + "{}",
		"unknown field":  strings.Replace(text, `"version"`, `"x":1,"version"`, 1),
		"version":        strings.Replace(text, `"version":1`, `"version":2`, 1),
		"chunk size":     strings.Replace(text, `"chunk_size":4194304`, `"chunk_size":1`, 1),
		"negative":       strings.Replace(text, `"offset":0`, `"offset":-4194304`, 1),
		"overlap":        strings.Replace(text, `"offset":12582912`, `"offset":0`, 1),
		"beyond the end": strings.Replace(text, `"offset":12582912`, `"offset":16777216`, 1),
		"too long":       strings.Replace(text, `"raw_size":5`, `"raw_size":6`, 1),
		"no data":        strings.Replace(text, `"size":14`, `"size":0`, 1),
		"path as digest": strings.Replace(text, string(DigestOf([]byte("x"))), "../../../../etc/passwd", 1),
		"media type":     strings.Replace(text, MediaTypeErofs, "a b", 1),
		"empty":          "",
		"null":           "null",
	} {
		if bad == text {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := ParseManifest([]byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestFI04_KeysReadOneFormOnly(t *testing.T) {
	good := ChunkKey(id.NewTeam(), DigestOf(nil))
	if got, err := ParseKey(good.String()); err != nil || got != good {
		t.Errorf("%v %v", got, err)
	}
	s := good.String()
	for _, bad := range []string{
		"", "/" + s, s + "/", s + "\x00", strings.ToUpper(s), strings.Replace(s, "chunks", "..", 1),
		strings.Replace(s, "teams/", "teams/../", 1), strings.Replace(s, "/", "//", 1), s[:len(s)-1], s + "0",
		strings.Replace(s, "chunks", "other", 1), strings.ReplaceAll(s, "-", ""),
	} {
		if got, err := ParseKey(bad); err == nil {
			t.Errorf("%q reads as %v", bad, got)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	b, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"chunks":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q reads, and writes as %q, %v", b, again, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(ChunkKey(id.PlatformTeamID, DigestOf(nil)).String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q reads as %q", s, k)
		}
	})
}
