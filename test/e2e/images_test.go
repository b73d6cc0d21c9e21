package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"skerry.dev/skerry/test/fleet"
)

// layer is a layer of an image.
func layer(t *testing.T, write func(*tar.Writer) error) v1.Layer {
	t.Helper()
	var raw bytes.Buffer
	w := tar.NewWriter(&raw)
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tree packs a directory.
func tree(dir string) func(*tar.Writer) error {
	return func(w *tar.Writer) error {
		return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			h, err := tar.FileInfoHeader(info, "")
			if err != nil {
				return err
			}
			if h.Name, err = filepath.Rel(dir, path); err != nil {
				return err
			}
			if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if err == nil {
				_, err = w.Write(content)
			}
			return err
		})
	}
}

// image is one of two layers, the second of which hides some of the first, with
// an environment, a user and a directory of its own.
func image(t *testing.T, mark string) v1.Image {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	if err := fleet.Plant(root); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"etc/hidden": "no\n", "etc/kept": "below\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img, err := mutate.AppendLayers(empty.Image, layer(t, tree(root)), layer(t, func(w *tar.Writer) error {
		for _, h := range []tar.Header{
			{Name: "etc/.wh.hidden", Mode: 0o644},
			{Name: "srv/", Typeflag: tar.TypeDir, Mode: 0o755},
			{Name: "srv/app/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1000, Gid: 1000},
			{Name: "srv/app/mark", Mode: 0o640, Uid: 1000, Gid: 1000, Size: int64(len(mark))},
			{Name: "srv/app/way", Typeflag: tar.TypeSymlink, Linkname: "mark"},
		} {
			if err := w.WriteHeader(&h); err != nil {
				return err
			}
			if h.Size > 0 {
				if _, err := io.WriteString(w, mark); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Env: []string{"PATH=/bin:/usr/bin", "GREETING=hello  " + mark}, User: "user", WorkingDir: "/srv/app"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// An image of a registry, and one that comes as a file, become templates by the
// command line, and what starts from them is what they say. The password that the
// registry wants is in no log.
func TestP2_AnImageBecomesATemplate(t *testing.T) {
	in := skerry(t)
	const password = "a secret of the registry"
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var open atomic.Bool
	var refused atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, given, _ := r.BasicAuth(); !open.Load() && (user != "puller" || given != password) {
			refused.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		store.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://") + "/some/image:1")
	if err != nil {
		t.Fatal(err)
	}
	own := &http.Transport{}
	defer own.CloseIdleConnections()
	open.Store(true)
	if err := remote.Write(ref, image(t, "pulled"), remote.WithTransport(own)); err != nil {
		t.Fatal(err)
	}
	open.Store(false)
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(file, ref, image(t, "loaded")); err != nil {
		t.Fatal(err)
	}

	if said, err := in.CLI("template", "build", "unknown", "--image", ref.Name()).CombinedOutput(); err == nil || !strings.Contains(string(said), "credentials") {
		t.Errorf("pulled without a password: %v\n%s", err, said)
	}
	for mark, args := range map[string][]string{
		"pulled": {"--image", ref.Name(), "--username", "puller"},
		"loaded": {"--tarball", file},
	} {
		build := in.CLI(append([]string{"template", "build", "image-" + mark, "--memory", "128", "--disk", "256"}, args...)...)
		build.Env = append(build.Env, "SKERRY_REGISTRY_PASSWORD="+password)
		said, err := build.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", mark, err, said)
		}
		if bytes.Contains(said, []byte(password)) {
			t.Errorf("%s: the log tells the password", mark)
		}
		box := in.Create(t, map[string]any{"template": "image-" + mark})
		got := in.Sh(t, box.ID, `cat way /etc/kept; echo; echo "$GREETING"; pwd; id -un; [ ! -e /etc/hidden ] && echo hidden; uname -s`)
		if want := mark + "below\n\nhello  " + mark + "\n/srv/app\nuser\nhidden\nLinux\n"; got.Stdout != want {
			t.Errorf("%s: inside %q %q, want %q", mark, got.Stdout, got.Stderr, want)
		}
		in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
		in.Must(t, "DELETE", "/v1/templates/image-"+mark, nil, nil)
	}
	if refused.Load() == 0 {
		t.Error("the registry never asked for its password")
	}
}

// Builds at the same time, each of its own files: no log has a line and no
// template a file of another one.
func TestP2_TS06_BuildsAtOnceDoNotMix(t *testing.T) {
	in := skerry(t)
	const lines = 30
	width := scaled(8, 4)
	said := make([]string, width)
	var building sync.WaitGroup
	for n := range width {
		dir := t.TempDir()
		mark := fmt.Sprintf("mark-%d-", n)
		for name, text := range map[string]string{
			"given": mark,
			// Copied, run and told: each way by which something could come from next door.
			"Skerryfile": "FROM base\nENV MARK=" + mark + "\nUSER root\nCOPY given /srv/all/copied-" + mark +
				fmt.Sprintf("\nRUN for i in $(seq %d); do echo \"$MARK$i\"; done; touch /srv/all/made-$MARK; cat /srv/all/copied-* >/srv/all/read-$MARK\n", lines),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		building.Go(func() {
			// As many as that fit on a small machine.
			out, err := in.CLI("template", "build", fmt.Sprintf("mix-%d", n), dir, "--vcpus", "0.2", "--memory", "256", "--disk", "512").CombinedOutput()
			if said[n] = string(out); err != nil {
				t.Errorf("build %d: %v\n%s", n, err, out)
			}
		})
	}
	building.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for n := range width {
		mark := fmt.Sprintf("mark-%d-", n)
		var told []string
		for line := range strings.Lines(said[n]) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "mark-") {
				told = append(told, line)
			}
		}
		var want []string
		for i := range lines {
			want = append(want, fmt.Sprintf("%s%d", mark, i+1))
		}
		if strings.Join(told, " ") != strings.Join(want, " ") {
			t.Errorf("build %d told %q", n, told)
		}
		box := in.Create(t, map[string]any{"template": fmt.Sprintf("mix-%d", n)})
		got := in.Sh(t, box.ID, "ls /srv/all; cat /srv/all/read-*; echo; echo $MARK")
		if inside := "copied-" + mark + "\nmade-" + mark + "\nread-" + mark + "\n" + mark + "\n" + mark + "\n"; got.Stdout != inside {
			t.Errorf("template %d has %q %q, want %q", n, got.Stdout, got.Stderr, inside)
		}
		in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
		in.Must(t, "DELETE", fmt.Sprintf("/v1/templates/mix-%d", n), nil, nil)
	}
	in.noTraces(t)
}
