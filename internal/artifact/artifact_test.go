package artifact

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/kernel/id"
)

func sample() Manifest {
	d := DigestOf([]byte("x"))
	return Manifest{
		Version: ManifestVersion, MediaType: MediaTypeState, Size: 3*ChunkSize + 5 + 7, ChunkSize: ChunkSize, Encrypted: true,
		Files: []File{
			{Name: "image/pages.img", Size: 3*ChunkSize + 5, Digest: d, Mode: 0o600, Chunks: []Chunk{
				{Offset: 0, RawSize: ChunkSize, RawDigest: d, Size: 10, Digest: d},
				{Offset: 3 * ChunkSize, RawSize: 5, RawDigest: d, Size: 14, Digest: DigestOf(nil)},
			}},
			{Name: "state.json", Size: 7, Digest: d, Chunks: []Chunk{}},
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
		"space":             " " + text,
		"trailing":          text + "{}",
		"unknown field":     strings.Replace(text, `"version"`, `"x":1,"version"`, 1),
		"version":           strings.Replace(text, `"version":2`, `"version":1`, 1),
		"chunk size":        strings.Replace(text, `"chunk_size":4194304`, `"chunk_size":1`, 1),
		"negative":          strings.Replace(text, `"offset":0`, `"offset":-4194304`, 1),
		"overlap":           strings.Replace(text, `"offset":12582912`, `"offset":0`, 1),
		"beyond the end":    strings.Replace(text, `"offset":12582912`, `"offset":16777216`, 1),
		"too long":          strings.Replace(text, `"raw_size":5`, `"raw_size":6`, 1),
		"no data":           strings.Replace(text, `"size":14`, `"size":0`, 1),
		"path as digest":    strings.Replace(text, string(DigestOf([]byte("x"))), "../../../../etc/passwd", 1),
		"media type":        strings.Replace(text, MediaTypeState, "a b", 1),
		"sum of sizes":      strings.Replace(text, `"size":7`, `"size":8`, 1),
		"no files":          strings.Replace(text, text[strings.Index(text, `"files"`):], `"files":[]}`, 1),
		"null chunks":       strings.Replace(text, `"chunks":[]`, `"chunks":null`, 1),
		"two of a name":     strings.Replace(text, "state.json", "image/pages.img", 1),
		"file and its dir":  strings.Replace(text, "state.json", "image", 1),
		"name that climbs":  strings.Replace(text, "state.json", "../x", 1),
		"name of dots":      strings.Replace(text, "state.json", "a/..", 1),
		"absolute name":     strings.Replace(text, "state.json", "/etc", 1),
		"too deep":          strings.Replace(text, "state.json", "a/b/c", 1),
		"name with a space": strings.Replace(text, "state.json", "a b", 1),
		"no name":           strings.Replace(text, "state.json", "", 1),
		"set-uid":           strings.Replace(text, `"mode":384`, `"mode":2541`, 1),
		"empty":             "",
		"null":              "null",
	} {
		if bad == text {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := ParseManifest([]byte(bad)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	swapped := sample()
	swapped.Files[0], swapped.Files[1] = File{Name: "image", Size: 7, Digest: DigestOf(nil)}, swapped.Files[0]
	if err := swapped.Validate(); err == nil {
		t.Error("a file is taken that has the name of the next one's directory")
	}
}

func TestManifest_OneChunkHasOneSize(t *testing.T) {
	m := sample()
	pieces, err := m.Pieces()
	if err != nil || len(pieces) != 2 || pieces[DigestOf(nil)] != 14 {
		t.Errorf("%v %v", pieces, err)
	}
	m.Files[0].Chunks[1].Digest = m.Files[0].Chunks[0].Digest
	if _, err := m.Pieces(); err == nil {
		t.Error("a chunk of two sizes is taken")
	}
}

func TestFI04_KeysReadOneFormOnly(t *testing.T) {
	good := ChunkKey(id.NewTeam(), DigestOf(nil), 0x1f)
	if got, err := ParseKey(good.String()); err != nil || got != good {
		t.Errorf("%v %v", got, err)
	}
	s := good.String()
	for _, bad := range []string{
		"", "/" + s, s + "/", s + "\x00", strings.ToUpper(s), strings.Replace(s, "chunks", "..", 1),
		strings.Replace(s, "teams/", "teams/../", 1), strings.Replace(s, "/", "//", 1), s[:len(s)-1], s + "0",
		strings.Replace(s, "chunks", "other", 1), strings.ReplaceAll(s, "-", ""), s[:len(s)-17], s[:len(s)-16] + "000000000000000g",
		s[:len(s)-16] + "-00000000000001f", s[:len(s)-16] + "+00000000000001f", s[:len(s)-16] + "0000000000000000", s[:len(s)-16] + "f000000000000000",
	} {
		if got, err := ParseKey(bad); err == nil {
			t.Errorf("%q reads as %v", bad, got)
		}
	}
}

func TestS16_KeysAreNeverPrinted(t *testing.T) {
	key := ContentKey(strings.Repeat("k", ContentKeyBytes))
	var log bytes.Buffer
	source := Source{URL: "https://x/v1/store/grant", Key: key}
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key, "source", source)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", key, "source", source)
	for _, s := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s", key, key, key, key), fmt.Sprintf("%v %+v %#v", source, source, source), log.String()} {
		if strings.Contains(s, "kkk") || strings.Contains(s, "107 107") || strings.Contains(s, "0x6b") || strings.Contains(s, "a2tr") || strings.Contains(s, "grant") {
			t.Errorf("printed: %s", s)
		}
	}
	if key.Validate() != nil || ContentKey("short").Validate() == nil || ContentKey(nil).Validate() != nil {
		t.Error("keys of the wrong length are taken, or right ones refused")
	}
}

func FuzzParseManifest(f *testing.F) {
	b, err := sample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":2,"files":[{"chunks":null}]}`))
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
	f.Add(ChunkKey(id.PlatformTeamID, DigestOf(nil), 1).String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Errorf("%q reads as %q", s, k)
		}
	})
}
