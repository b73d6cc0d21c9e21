package fs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/artifacttest"
	"skerry.dev/skerry/internal/kernel/id"
)

func TestStore(t *testing.T) {
	artifacttest.Run(t, func(t *testing.T) artifact.Store {
		s, err := New(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestStore_FilesArePrivateAndNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf([]byte("x")), 1)
	for _, content := range []string{"y", "xx", "x"} {
		_ = s.Put(t.Context(), key, strings.NewReader(content), int64(len(content)))
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
		return nil
	})
	if err != nil || files != 1 {
		t.Errorf("%d files, %v", files, err)
	}
}

// What is damaged, or cut, is whole again once it is put again.
func TestTS01_DamageIsHealedByTheNextPut(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf([]byte("whole")), 1)
	for _, damaged := range []string{"whale", "who", ""} {
		for _, content := range []string{"whole", damaged} {
			if err := s.Put(t.Context(), key, strings.NewReader("whole"), 5); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.path(key), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Put(t.Context(), key, strings.NewReader("wrong"), 5); err == nil {
			t.Error("something else takes its place")
		}
		if err := s.Put(t.Context(), key, strings.NewReader("whole"), 5); err != nil {
			t.Fatal(err)
		}
		if sound, err := artifact.Sound(t.Context(), s, key); err != nil || !sound {
			t.Errorf("%q was not healed: %v", damaged, err)
		}
	}
}

func TestStore_RemovesWhatAKilledProcessLeft(t *testing.T) {
	dir := t.TempDir()
	if _, err := New(dir); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"put-old": 48 * time.Hour, "put-young": time.Minute} {
		path := filepath.Join(dir, tempDir, name)
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(dir); err != nil {
		t.Fatal(err)
	}
	left, err := names(filepath.Join(dir, tempDir))
	if err != nil || len(left) != 1 || left[0] != "put-young" {
		t.Errorf("left: %v %v", left, err)
	}
}
