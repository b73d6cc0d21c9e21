package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/image/oci"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

var madeAt = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

// entry of a layer; content is that of a file.
type tarEntry struct {
	tar.Header
	content string
}

func regular(name, content string, mode int64) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content}
}

func layerTar(t *testing.T, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size, e.Format = int64(len(e.content)), tar.FormatPAX
		if e.ModTime.IsZero() {
			e.ModTime = madeAt.Add(-time.Hour)
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func gzipLayer(t *testing.T, raw []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, opts...)
	must(t, err)
	return l
}

// sample is an image of three layers, each compressed in another way.
func sample(t *testing.T, arch string) v1.Image {
	t.Helper()
	capable := regular("usr/bin/tool", "#!tool", 0o4755)
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	owned := regular("srv/data", "d", 0o600)
	owned.Uid, owned.Gid = 1234, 567
	layers := []v1.Layer{
		gzipLayer(t, layerTar(t, regular("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1234:567::/srv:/bin/sh\n", 0o644),
			regular("etc/group", "root:x:0:\napp:x:567:\n", 0o644), regular("old/a", "a", 0o644), regular("gone", "g", 0o644), owned)),
		gzipLayer(t, layerTar(t, capable, regular("old/.wh..wh..opq", "", 0o644), regular("old/b", "b", 0o644), regular(".wh.gone", "", 0o644)),
			tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd)),
		static.NewLayer(layerTar(t, tarEntry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "link", Linkname: "srv/data"}},
			tarEntry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777}},
			regular(".skerry/guest", "not ours", 0o755)), types.OCIUncompressedLayer),
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	must(t, err)
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Created = "linux", arch, v1.Time{Time: madeAt}
	cfg.Config = v1.Config{
		Env: []string{"PATH=/usr/bin", "EMPTY=", "A=b=c"}, User: "1234", WorkingDir: "/srv", Entrypoint: []string{"/bin/tool"}, Cmd: []string{"-v"},
	}
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	return img
}

// sampleFiles are what it unpacks to.
var sampleFiles = []string{
	"Lrwxrwxrwx 0:0 bin -> usr/bin", "drwxr-xr-x 0:0 dev", "drwxr-xr-x 0:0 etc", "-rw-r--r-- 0:0 etc/group", "-rw-r--r-- 0:0 etc/passwd",
	"-rw------- 1234:567 link", "drwxr-xr-x 0:0 old", "-rw-r--r-- 0:0 old/b", "drwxr-xr-x 0:0 proc", "drwxr-xr-x 0:0 run", "drwxr-xr-x 0:0 srv",
	"-rw------- 1234:567 srv/data", "drwxr-xr-x 0:0 sys", "dtrwxrwxrwx 0:0 tmp", "-rw-r--r-- 0:0 tmp/.keep",
	"drwxr-xr-x 0:0 usr", "drwxr-xr-x 0:0 usr/bin", "urwxr-xr-x 0:0 usr/bin/tool",
	"drwxr-xr-x 0:0 var", "dtrwxrwxrwx 0:0 var/tmp",
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	must(t, err)
	return u.Host
}

// local lets registries be where those of tests are.
func local() oci.Registries {
	return oci.Registries{Inside: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
}

func newRegistry() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

func push(t *testing.T, ref string, img remote.Taggable) {
	t.Helper()
	r, err := name.ParseReference(ref)
	must(t, err)
	switch i := img.(type) {
	case v1.Image:
		must(t, remote.Write(r, i))
	case v1.ImageIndex:
		must(t, remote.WriteIndex(r, i))
	}
}

func limits() Limits {
	return Limits{MaxBytes: 64 << 20, MaxFiles: 1000, BytesSetting: "THE_BYTES", FilesSetting: "THE_FILES"}
}

func needsErofs(t *testing.T) {
	t.Helper()
	testkit.Root(t)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		testkit.Missing(t, "erofs", err.Error())
	}
}

// listImage mounts an image and lists it.
func listImage(t *testing.T, file string) []string {
	t.Helper()
	dir := t.TempDir()
	must(t, mountErofs(file, dir))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	return listTree(t, dir)
}

func listTree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%s %d:%d %s", info.Mode(), st.Uid, st.Gid, rel)
		if info.Mode()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(p)
			line += " -> " + to
		}
		out = append(out, line)
		return nil
	}))
	return out
}

func nothingLeft(t *testing.T, dir string, want ...string) {
	t.Helper()
	var names []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("left behind: %v, not %v", names, want)
	}
}

func TestP2_AnImageIsPulledFromARegistry(t *testing.T) {
	needsErofs(t)
	host := serve(t, newRegistry())
	img := sample(t, "amd64")
	push(t, host+"/team/app:1", img)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: sample(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	push(t, host+"/team/app:multi", index)
	digest, err := img.Digest()
	must(t, err)
	var first Imported
	for _, ref := range []string{host + "/team/app:1", host + "/team/app:multi", host + "/team/app@" + digest.String()} {
		out := t.TempDir()
		var said []string
		got, err := Import(t.Context(), func(line string) { said = append(said, line) }, ImportOptions{Reference: ref, Registries: local(), Arch: "amd64", Limits: limits()}, out)
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		if first.Digest == "" {
			first = got
		}
		if got.Digest != first.Digest {
			t.Errorf("%s gives another image", ref)
		}
		if diff := cmp.Diff(sampleFiles, listImage(t, got.Path)); diff != "" {
			t.Error(diff)
		}
		nothingLeft(t, out, string(got.Digest)+".erofs")
		if all := strings.Join(said, "\n"); !strings.Contains(all, "pulling "+ref) || !strings.Contains(all, "3 layers") || !strings.Contains(all, "MB/s") {
			t.Errorf("it said %q", all)
		}
	}
	first.Built = Built{}
	if diff := cmp.Diff(Imported{
		Env: map[string]string{"PATH": "/usr/bin", "EMPTY": "", "A": "b=c"}, User: "app", Workdir: "/srv", Arch: "amd64", Command: []string{"/bin/tool", "-v"},
	}, first); diff != "" {
		t.Error(diff)
	}
}

func TestP2_AnImageIsReadFromATarball(t *testing.T) {
	needsErofs(t)
	img := sample(t, "amd64")
	dir := t.TempDir()
	tag, err := name.NewTag("app:1")
	must(t, err)
	saved := filepath.Join(dir, "saved.tar")
	must(t, tarball.WriteToFile(saved, tag, img))
	p, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	must(t, err)
	must(t, p.AppendImage(img))
	archived := filepath.Join(dir, "layout.tar")
	if out, err := exec.Command("tar", "-C", string(p), "-cf", archived, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("gzip", "-k", archived).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var digests []string
	for _, file := range []string{saved, archived, archived + ".gz"} {
		out := t.TempDir()
		got, err := Import(t.Context(), func(string) {}, ImportOptions{Tarball: file, Arch: "amd64", Limits: limits()}, out)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		digests = append(digests, string(got.Digest))
		if diff := cmp.Diff(sampleFiles, listImage(t, got.Path)); diff != "" {
			t.Error(diff)
		}
		nothingLeft(t, out, string(got.Digest)+".erofs")
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("one image, several digests: %v", digests)
	}
	must(t, p.AppendImage(mutate.Annotations(sample(t, "amd64"), map[string]string{"a": "b"}).(v1.Image)))
	if out, err := exec.Command("tar", "-C", string(p), "-cf", archived, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := Import(t.Context(), func(string) {}, ImportOptions{Tarball: archived, Arch: "amd64", Limits: limits()}, t.TempDir()); !errs.Is(err, "several_images") {
		t.Errorf("two images: %v", err)
	}
	for content, want := range map[string]string{"": "image_unknown", strings.Repeat("x", 2000): "archive_damaged"} {
		file := filepath.Join(dir, "bad")
		must(t, os.WriteFile(file, []byte(content), 0o600))
		if _, err := Import(t.Context(), func(string) {}, ImportOptions{Tarball: file, Arch: "amd64", Limits: limits()}, t.TempDir()); !errs.Is(err, want) {
			t.Errorf("%.10q: %v", content, err)
		}
	}
}

// between is a registry with something in front of it.
func between(f func(w http.ResponseWriter, r *http.Request) bool) http.Handler {
	inner := newRegistry()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && f(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	})
}

func TestP2_WhatCannotBeImportedIsNamed(t *testing.T) {
	needsErofs(t)
	var armed atomic.Bool
	var trouble atomic.Value // of func(http.ResponseWriter, *http.Request) bool
	host := serve(t, between(func(w http.ResponseWriter, r *http.Request) bool {
		return armed.Load() && trouble.Load().(func(http.ResponseWriter, *http.Request) bool)(w, r)
	}))
	ref := host + "/team/app:1"
	push(t, ref, sample(t, "amd64"))
	push(t, host+"/team/arm:1", sample(t, "arm64"))
	push(t, host+"/team/index:1", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: sample(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}}))
	odd, err := mutate.AppendLayers(sample(t, "amd64"), static.NewLayer([]byte("{}"), "application/vnd.example.model"))
	must(t, err)
	push(t, host+"/team/odd:1", odd)
	nobody, err := mutate.Config(sample(t, "amd64"), v1.Config{User: "ghost"})
	must(t, err)
	push(t, host+"/team/ghost:1", nobody)
	isBlob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	for _, c := range []struct {
		name    string
		o       ImportOptions
		trouble func(http.ResponseWriter, *http.Request) bool
		reason  string
		says    []string
	}{
		{name: "no reference", o: ImportOptions{Reference: "Not A Reference"}, reason: "invalid_request"},
		{name: "no such image", o: ImportOptions{Reference: host + "/team/none:1"}, reason: "image_not_found", says: []string{"team/none:1"}},
		{name: "no such registry", o: ImportOptions{Reference: "127.0.0.1:1/a:1"}, reason: "registry_unreachable", says: []string{"127.0.0.1:1"}},
		{name: "another platform", o: ImportOptions{Reference: host + "/team/arm:1"}, reason: "wrong_platform", says: []string{"linux/arm64", "linux/amd64"}},
		{name: "another platform in a list", o: ImportOptions{Reference: host + "/team/index:1"}, reason: "wrong_platform", says: []string{"linux/arm64", "linux/amd64"}},
		{name: "no layer", o: ImportOptions{Reference: host + "/team/odd:1"}, reason: "unknown_media_type", says: []string{"vnd.example.model"}},
		{name: "an unknown user", o: ImportOptions{Reference: host + "/team/ghost:1"}, reason: "image_user_unknown", says: []string{"ghost"}},
		{name: "too large", o: ImportOptions{Reference: ref, Limits: Limits{MaxBytes: 4000, MaxFiles: 1000, BytesSetting: "THE_BYTES"}}, reason: "image_too_large", says: []string{"THE_BYTES"}},
		{name: "too many files", o: ImportOptions{Reference: ref, Limits: Limits{MaxBytes: 1 << 20, MaxFiles: 5, FilesSetting: "THE_FILES"}}, reason: "image_too_many_files", says: []string{"5 files", "THE_FILES"}},
		{name: "nobody may", o: ImportOptions{Reference: ref}, trouble: status(401), reason: "registry_unauthorized", says: []string{"give registry credentials"}},
		{name: "this one may not", o: ImportOptions{Reference: ref, Login: oci.Login{Username: "u", Password: "p"}}, trouble: status(403), reason: "registry_unauthorized", says: []string{"refuses the registry credentials"}},
		{name: "too often", o: ImportOptions{Reference: ref}, trouble: status(429), reason: "registry_rate_limited"},
		{name: "the registry fails", o: ImportOptions{Reference: ref}, trouble: status(501), reason: "registry_failed", says: []string{"501"}},
		{name: "no registry", o: ImportOptions{Reference: ref}, trouble: func(w http.ResponseWriter, _ *http.Request) bool {
			_, _ = io.WriteString(w, "<html>hello")
			return true
		}, reason: "unknown_media_type", says: []string{"text/html"}},
		{name: "a layer of other content", o: ImportOptions{Reference: ref}, trouble: func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) {
				_, _ = io.WriteString(w, strings.Repeat("x", 10_000))
			}
			return isBlob(r)
		}, reason: "digest_mismatch"},
		{name: "a denied address", o: ImportOptions{Reference: ref, Registries: oci.Registries{Inside: local().Inside, Denied: local().Inside}}, reason: "registry_denied"},
		{name: "no encryption behind a redirect", o: ImportOptions{Reference: ref}, trouble: func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) {
				http.Redirect(w, r, "http://192.0.2.1/blob", http.StatusTemporaryRedirect)
			}
			return isBlob(r)
		}, reason: "registry_insecure", says: []string{"192.0.2.1"}},
		{name: "a link-local address", o: ImportOptions{Reference: "169.254.169.254/a:1"}, reason: "registry_denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if armed.Store(c.trouble != nil); c.trouble != nil {
				trouble.Store(c.trouble)
			}
			if c.o.Registries.Inside == nil {
				c.o.Registries = local()
			}
			if c.o.Arch = "amd64"; c.o.Limits.MaxBytes == 0 {
				c.o.Limits = limits()
			}
			out := t.TempDir()
			_, err := Import(t.Context(), func(string) {}, c.o, out)
			got := errs.As(err)
			if got.Reason != c.reason {
				t.Fatalf("%v", err)
			}
			for _, word := range c.says {
				if !strings.Contains(got.Message, word) {
					t.Errorf("%q does not say %q", got.Message, word)
				}
			}
			nothingLeft(t, out)
		})
	}
}

// A layer that breaks off is fetched anew; one whose content is not what the
// image's configuration says is refused although its own digest is right.
func TestP2_BrokenLinesAndFalseLayers(t *testing.T) {
	needsErofs(t)
	var broken atomic.Int32
	host := serve(t, between(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || broken.Add(1) != 2 {
			return false
		}
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write([]byte("x"))
		panic(http.ErrAbortHandler)
	}))
	ref := host + "/team/app:1"
	push(t, ref, sample(t, "amd64"))
	if _, err := Import(t.Context(), func(string) {}, ImportOptions{Reference: ref, Registries: local(), Arch: "amd64", Limits: limits()}, t.TempDir()); err != nil || broken.Load() < 3 {
		t.Errorf("after a broken line: %v", err)
	}
	img := sample(t, "amd64")
	cfg, err := img.ConfigFile()
	must(t, err)
	cfg = cfg.DeepCopy()
	cfg.RootFS.DiffIDs[1] = cfg.RootFS.DiffIDs[0]
	img, err = mutate.ConfigFile(img, cfg)
	must(t, err)
	push(t, host+"/team/false:1", img)
	out := t.TempDir()
	if _, err := Import(t.Context(), func(string) {}, ImportOptions{Reference: host + "/team/false:1", Registries: local(), Arch: "amd64", Limits: limits()}, out); !errs.Is(err, "digest_mismatch") {
		t.Errorf("a false layer: %v", err)
	}
	nothingLeft(t, out)
}

func TestP2_AnImportIsGivenUpAtOnce(t *testing.T) {
	needsErofs(t)
	held := make(chan struct{})
	release := make(chan struct{})
	var once atomic.Bool
	host := serve(t, between(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || !once.CompareAndSwap(false, true) {
			return false
		}
		close(held)
		<-release
		return false
	}))
	defer close(release)
	ref := host + "/team/app:1"
	push(t, ref, sample(t, "amd64"))
	ctx, cancel := context.WithCancel(t.Context())
	out := t.TempDir()
	ended := make(chan error, 1)
	go func() {
		_, err := Import(ctx, func(string) {}, ImportOptions{Reference: ref, Registries: local(), Arch: "amd64", Limits: limits()}, out)
		ended <- err
	}()
	<-held
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("given up: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
	nothingLeft(t, out)
}

// What a process that was killed left is removed, what another one works in is
// not.
func TestP2_RemainsOfAKilledImportGo(t *testing.T) {
	parent := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(parent, buildPrefix+"dead", "root"), 0o755))
	living, done, err := WorkDir(parent)
	must(t, err)
	other, otherDone, err := WorkDir(parent)
	must(t, err)
	nothingLeft(t, parent, slices.Sorted(slices.Values([]string{filepath.Base(living), filepath.Base(other)}))...)
	done()
	otherDone()
	nothingLeft(t, parent)
}

func TestP2_TheAccountAnImageRunsAs(t *testing.T) {
	const passwd = "root:x:0:0::/root:/bin/sh\napp:x:7:8::/srv:/bin/bash\n"
	const groups = "root:x:0:\napps:x:8:\nother:x:9:\n"
	for user, want := range map[string]string{
		"": "root", "root": "root", "0": "root", "0:0": "root", "app": "app", "7": "app", "7:8": "app", "app:apps": "app", "7:apps": "app",
		"1000":      "u1000 + u1000:x:1000:0::/:/bin/sh",
		"1000:1001": "u1000 + u1000:x:1000:1001::/:/bin/sh",
		"app:other": "u7 + u7:x:7:9::/srv:/bin/bash",
		"ghost":     "image_user_unknown", "app:ghosts": "image_user_unknown", "4294967295": "image_user_unknown", ":": "image_user_unknown",
	} {
		got, added, err := accountOf(passwd, groups, user)
		if added != "" {
			got += " + " + added
		}
		if err != nil {
			got = errs.As(err).Reason
		}
		if got != want {
			t.Errorf("%q is %q, not %q", user, got, want)
		}
	}
}
