package image

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/testkit"
)

// TestP2_BaseIsReproducible builds the base image twice, on two file systems
// that list directories in different orders, and compares the digests. It takes
// minutes and reads from the machine's Debian mirror, so it waits to be asked.
func TestP2_BaseIsReproducible(t *testing.T) {
	if os.Getenv("SKERRY_TEST_BASE_IMAGE") == "" {
		testkit.Missing(t, "base-image", "set SKERRY_TEST_BASE_IMAGE=1 to build the base image twice")
	}
	testkit.Root(t)
	for _, tool := range []string{"mmdebstrap", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			testkit.Missing(t, tool, err.Error())
		}
	}
	shm, err := os.MkdirTemp("/dev/shm", "skerry-base-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	dirs := []string{t.TempDir(), shm}
	if keep := os.Getenv("SKERRY_TEST_BASE_DIR"); keep != "" {
		dirs[0] = keep
	}
	var built []Built
	for _, dir := range dirs {
		b, err := BuildBase(t.Context(), func(line string) { t.Log(line) }, dir)
		if err != nil {
			t.Fatal(err)
		}
		built = append(built, b)
		left, err := filepath.Glob(filepath.Join(dir, buildPrefix+"*"))
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
	if built[0].Digest != built[1].Digest {
		t.Errorf("two builds differ: %s and %s", built[0].Digest, built[1].Digest)
	}
	compiledPythonIsCurrent(t, built[0].Path)
	if built[0].Size > 400<<20 {
		t.Errorf("the image has %d MB", built[0].Size>>20)
	}
}

// compiledPythonIsCurrent checks that a compiled file names the time its source
// has in the image; otherwise each start of Python compiles everything anew.
func compiledPythonIsCurrent(t *testing.T, image string) {
	t.Helper()
	dir := t.TempDir()
	must(t, mountErofs(image, dir))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	compiled, err := filepath.Glob(filepath.Join(dir, "usr/lib/python3.*/__pycache__/os.cpython-*[0-9].pyc"))
	if err != nil || len(compiled) != 1 {
		t.Fatalf("compiled files: %v %v", compiled, err)
	}
	b, err := os.ReadFile(compiled[0])
	must(t, err)
	source, err := os.Stat(filepath.Join(filepath.Dir(filepath.Dir(compiled[0])), "os.py"))
	must(t, err)
	if got := int64(binary.LittleEndian.Uint32(b[8:])); got != source.ModTime().Unix() {
		t.Errorf("compiled from a source of %d, which is of %d", got, source.ModTime().Unix())
	}
}

func TestP2_BuildReadsTheMachinesOwnSources(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := debianSources(dir, "bookworm")
	if err != nil || got != "" {
		t.Fatalf("without sources: %q %v", got, err)
	}
	write("sources.list", "# none\ndeb-src http://m.test/d bookworm main\ndeb [arch=amd64 signed-by=/k.gpg] http://m.test/d bookworm-updates main contrib # c\n")
	if got, _ := debianSources(dir, "bookworm"); got != "" {
		t.Fatalf("updates alone are no suite: %q", got)
	}
	write("sources.list.d/a.sources", "Types: deb deb-src\n# note\nURIs: http://m.test/d\nSuites: bookworm\n bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\nEnabled: no\nTypes: deb\nURIs: http://off.test/d\nSuites: bookworm\nComponents: main\n")
	write("sources.list.d/vendor.list", "deb http://vendor.test/apt stable main\n")
	write("sources.list.d/x.disabled", "deb http://no.test/d bookworm main\n")
	got, err = debianSources(dir, "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	want := "deb [signed-by=/k.gpg] http://m.test/d bookworm main\ndeb [signed-by=/k.gpg] http://m.test/d bookworm-updates main\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
