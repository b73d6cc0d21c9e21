package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/mem"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// insideVar marks the copy of the test program that has a mount namespace of
// its own: whatever a test does, no mount of it is seen outside or stays.
const insideVar = "SKERRY_IMAGE_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(insideVar) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shelf is a control plane that has images to give.
type shelf struct {
	store  *mem.Store
	ledger *transfertest.Ledger
	signer *transfer.Signer
	server *httptest.Server
	asked  atomic.Int64
	team   id.Team
	host   id.Host
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	testkit.Root(t)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		testkit.Missing(t, "erofs-utils", err.Error())
	}
	s := &shelf{store: &mem.Store{}, ledger: &transfertest.Ledger{}, team: id.NewTeam(), host: id.NewHost()}
	var err error
	s.signer, err = transfer.NewSigner(bytes.Repeat([]byte("s"), 32), clock.System{})
	must(t, err)
	h := transfer.NewHandler(s.store, s.signer, s.ledger, transfer.HandlerOptions{Logger: slog.New(slog.DiscardHandler)})
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/manifest") && r.Method == http.MethodGet {
			s.asked.Add(1)
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.server.Close)
	return s
}

// image packs a small tree that says text and puts it on the shelf.
func (s *shelf) image(t *testing.T, text string) Image {
	t.Helper()
	tree := t.TempDir()
	must(t, os.Mkdir(filepath.Join(tree, "data"), 0o755))
	must(t, os.Mkdir(filepath.Join(tree, "proc"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "data/marked"), []byte(text), 0o644))
	must(t, os.WriteFile(filepath.Join(tree, "data/gone"), bytes.Repeat([]byte(text), 100_000), 0o644))
	must(t, unix.Setxattr(filepath.Join(tree, "data/marked"), "user.skerry", []byte("kept"), 0))
	must(t, os.Chmod(tree, 0o755))
	file := filepath.Join(t.TempDir(), "image")
	must(t, packErofs(t.Context(), tree, file, time.Unix(1, 0)))
	a := s.ledger.Begin(s.team, s.host)
	to := artifact.Source{URL: s.signer.WriteURL(s.server.URL, a, s.host, time.Minute)}
	u, err := transfer.Upload(t.Context(), s.clients(), to, []transfer.File{{Name: artifact.ImageFile, Path: file}}, artifact.MediaTypeErofs, transfer.Options{})
	must(t, err)
	return Image{
		Digest: u.Files[artifact.ImageFile], SizeBytes: u.SizeBytes,
		From: artifact.Source{URL: s.signer.ReadURL(s.server.URL, a, s.host, time.Hour)},
	}
}

func (s *shelf) clients() transfer.Clients { return transfer.Clients{Control: s.server.Client()} }

// fetch brings an image to a file, past any cache.
func (s *shelf) fetch(t *testing.T, img Image, file string) {
	t.Helper()
	want := transfer.Want{MediaType: artifact.MediaTypeErofs, Files: map[string]artifact.Digest{artifact.ImageFile: img.Digest}}
	must(t, transfer.Fetch(t.Context(), s.clients(), img.From, want, transfer.At(artifact.ImageFile, file), transfer.Options{}))
}

func (s *shelf) acquire(t *testing.T, c *Cache, img Image, owner string) string {
	t.Helper()
	tree, err := c.Acquire(t.Context(), img, Daemon{}, owner, s.clients())
	must(t, err)
	return tree.Dir
}

func newCache(t *testing.T, dir string, change func(*Config)) *Cache {
	t.Helper()
	guest := filepath.Join(t.TempDir(), "guest")
	must(t, os.WriteFile(guest, []byte("the daemon"), 0o755))
	cfg := Config{Dir: dir, GuestBinary: guest, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg)
	must(t, err)
	return c
}

func (c *Cache) mounts(t *testing.T) []string {
	t.Helper()
	have, err := mountsBelow(c.cfg.Dir)
	must(t, err)
	return have
}

func noLeaks(t *testing.T, c *Cache) {
	t.Helper()
	if leaks, err := c.Leaks(t.Context()); err != nil || len(leaks) != 0 {
		t.Errorf("leaks: %q %v", leaks, err)
	}
}

func reads(t *testing.T, root, text string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "data/marked"))
	if err != nil || string(b) != text {
		t.Errorf("the tree says %q, %v; want %q", b, err, text)
	}
}

func TestP1_OneMountForAllOwners(t *testing.T) {
	s := newShelf(t)
	img := s.image(t, "one")
	c := newCache(t, filepath.Join(t.TempDir(), "data dir"), func(c *Config) { c.WarmMounts = -1 })
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	roots := make([]string, 20)
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			tree, err := c.Acquire(context.Background(), img, Daemon{}, fmt.Sprint("owner ", i), s.clients())
			if err != nil {
				t.Error(err)
			}
			roots[i] = tree.Dir
		})
	}
	wg.Wait()
	for _, root := range roots {
		if root != roots[0] {
			t.Errorf("roots differ: %s", root)
		}
	}
	reads(t, roots[0], "one")
	if b, err := os.ReadFile(filepath.Join(roots[0], GuestPath)); err != nil || string(b) != "the daemon" {
		t.Errorf("the guest daemon reads %q, %v", b, err)
	}
	if v := make([]byte, 16); true {
		n, err := unix.Getxattr(filepath.Join(roots[0], "data/marked"), "user.skerry", v)
		if err != nil || string(v[:n]) != "kept" {
			t.Errorf("user attribute %q, %v", v[:max(n, 0)], err)
		}
	}
	if err := os.WriteFile(filepath.Join(roots[0], "data/new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to the tree: %v", err)
	}
	if n := s.asked.Load(); n != 1 || len(c.mounts(t)) != 2 {
		t.Errorf("fetched %d times, mounts %q", n, c.mounts(t))
	}
	noLeaks(t, c)
	for i := range roots {
		for range 2 {
			must(t, c.Release(t.Context(), img.Digest, fmt.Sprint("owner ", i)))
		}
		if want := i < len(roots)-1; (len(c.mounts(t)) > 0) != want {
			t.Fatalf("after %d releases: %q", i+1, c.mounts(t))
		}
	}
	noLeaks(t, c)
	s.acquire(t, c, img, "later")
	if n := s.asked.Load(); n != 1 {
		t.Errorf("an image on disk was fetched again")
	}
}

func TestLL01_AFewStayWarmAndNoMore(t *testing.T) {
	s := newShelf(t)
	c := newCache(t, t.TempDir(), func(c *Config) { c.WarmMounts = 2 })
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	var images []Image
	for i := range 4 {
		img := s.image(t, fmt.Sprint("image ", i))
		images = append(images, img)
		s.acquire(t, c, img, "o")
	}
	for _, img := range images {
		must(t, c.Release(t.Context(), img.Digest, "o"))
	}
	have := c.mounts(t)
	if len(have) != 4 || slices.Contains(have, c.lower(images[0].Digest)) || !slices.Contains(have, c.lower(images[3].Digest)) {
		t.Errorf("mounted: %q", have)
	}
	noLeaks(t, c)
	// An open file keeps its image mounted, and that is no error.
	f, err := os.Open(filepath.Join(s.acquire(t, c, images[0], "o"), "data/marked"))
	must(t, err)
	must(t, c.Release(t.Context(), images[0].Digest, "o"))
	for _, img := range images[1:] {
		s.acquire(t, c, img, "o")
		must(t, c.Release(t.Context(), img.Digest, "o"))
	}
	reads(t, c.root(images[0].Digest, c.guest), "image 0")
	must(t, f.Close())
	must(t, c.cool(t.Context()))
	if have := c.mounts(t); len(have) != 4 {
		t.Errorf("mounted: %q", have)
	}
}

func TestTS02_ARestartKeepsWhatIsOwnedAndDropsTheRest(t *testing.T) {
	s := newShelf(t)
	dir := t.TempDir()
	owned, orphan := s.image(t, "owned"), s.image(t, "orphan")
	c := newCache(t, dir, nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	oldRoot := s.acquire(t, c, owned, "a")
	s.acquire(t, c, orphan, "b")
	open, err := os.Open(filepath.Join(oldRoot, "data/marked"))
	must(t, err)
	defer open.Close()

	// The new agent brings a new daemon; the old tree stays as it was.
	newGuest := func(c *Config) { must(t, os.WriteFile(c.GuestBinary, []byte("a newer daemon"), 0o755)) }
	old := c.guest
	c = newCache(t, dir, newGuest)
	if leaks, err := c.Leaks(t.Context()); err != nil || len(leaks) != 4 {
		t.Errorf("before recovery: %q %v", leaks, err)
	}
	must(t, c.Recover(t.Context(), map[string]Holding{"a": {Image: owned.Digest, Daemon: old}}))
	noLeaks(t, c)
	if have := c.mounts(t); len(have) != 2 || slices.Contains(have, c.lower(orphan.Digest)) {
		t.Errorf("mounted: %q", have)
	}
	if b, err := os.ReadFile(filepath.Join(oldRoot, GuestPath)); err != nil || string(b) != "the daemon" {
		t.Errorf("the old tree's daemon reads %q, %v", b, err)
	}
	newRoot := s.acquire(t, c, owned, "c")
	if b, err := os.ReadFile(filepath.Join(newRoot, GuestPath)); err != nil || string(b) != "a newer daemon" {
		t.Errorf("the new tree's daemon reads %q, %v", b, err)
	}
	must(t, open.Close())

	// A reboot: nothing is mounted, the journal knows the same owners.
	for _, m := range slices.Backward(c.mounts(t)) {
		must(t, unix.Unmount(m, 0))
	}
	c = newCache(t, dir, newGuest)
	must(t, c.Recover(t.Context(), map[string]Holding{"a": {Image: owned.Digest, Daemon: old}, "c": {Image: owned.Digest}}))
	reads(t, newRoot, "owned")
	reads(t, oldRoot, "owned")
	must(t, c.Release(t.Context(), owned.Digest, "a"))
	if old, err := filepath.Glob(filepath.Join(dir, guestsDir, "*")); err != nil || len(old) != 1 {
		t.Errorf("daemons left: %v %v", old, err)
	}
	if err := c.Recover(t.Context(), map[string]Holding{"z": {Image: artifact.DigestOf([]byte("lost"))}}); !errs.Is(err, "image_not_on_host") {
		t.Errorf("an owner of a lost image: %v", err)
	}
}

func TestTS02_ADamagedImageIsNeverMounted(t *testing.T) {
	s := newShelf(t)
	dir := t.TempDir()
	img := s.image(t, "intact")
	c := newCache(t, dir, nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	s.acquire(t, c, img, "a")
	info, err := os.Stat(c.imagePath(img.Digest))
	must(t, err)
	if info.Mode().Perm() != 0o400 {
		t.Errorf("mode %v", info.Mode())
	}
	f, err := os.OpenFile(c.imagePath(img.Digest), os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("damage"), info.Size()-4096)
	must(t, errors.Join(err, f.Close()))

	c = newCache(t, dir, nil)
	if _, err := c.Acquire(t.Context(), img, Daemon{}, "a", s.clients()); !errs.Is(err, "image_damaged") {
		t.Errorf("with sandboxes on it: %v", err)
	}
	must(t, c.Recover(t.Context(), nil))
	before := s.asked.Load()
	reads(t, s.acquire(t, c, img, "a"), "intact")
	if s.asked.Load() != before+1 {
		t.Error("the damaged file was not fetched again")
	}
	if got, err := fileDigest(t.Context(), c.imagePath(img.Digest)); err != nil || got != img.Digest {
		t.Errorf("digest %s, %v", got, err)
	}
}

func TestCache_BoundedAndNeverAtTheCostOfOwners(t *testing.T) {
	s := newShelf(t)
	a, b, d := s.image(t, "aa"), s.image(t, "bb"), s.image(t, "dd")
	c := newCache(t, t.TempDir(), func(c *Config) { c.MaxBytes = a.SizeBytes + b.SizeBytes + 1000 })
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	s.acquire(t, c, a, "o")
	s.acquire(t, c, b, "o")
	if _, err := c.Acquire(t.Context(), d, Daemon{}, "o", s.clients()); !errs.Is(err, "image_cache_full") {
		t.Errorf("beyond the bound: %v", err)
	}
	must(t, c.Release(t.Context(), a.Digest, "o"))
	s.acquire(t, c, d, "o")
	if c.Has(a.Digest) || !c.Has(b.Digest) || !c.Has(d.Digest) {
		t.Error("the wrong image gave way")
	}
}

func TestImport_TakesOnlyWhatTheDigestNames(t *testing.T) {
	s := newShelf(t)
	img := s.image(t, "imported")
	c := newCache(t, t.TempDir(), nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	file := filepath.Join(t.TempDir(), "f")
	s.fetch(t, img, file)
	if err := c.Import(t.Context(), file, artifact.DigestOf(nil)); !errs.Is(err, "content_mismatch") {
		t.Errorf("another digest: %v", err)
	}
	must(t, c.Import(t.Context(), file, img.Digest))
	must(t, c.Import(t.Context(), file, img.Digest))
	img.From = artifact.Source{}
	reads(t, s.acquire(t, c, img, "o"), "imported")
	if left, err := filepath.Glob(filepath.Join(c.cfg.Dir, imagesDir, "*.import")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestMountByLoop_ForKernelsThatNeedIt(t *testing.T) {
	s := newShelf(t)
	img := s.image(t, "looped")
	file, dir := filepath.Join(t.TempDir(), "f"), t.TempDir()
	s.fetch(t, img, file)
	if err := mountByLoop(file, dir); errors.Is(err, os.ErrNotExist) {
		testkit.Missing(t, "loop", err.Error())
	} else {
		must(t, err)
	}
	reads(t, dir, "looped")
	backed := func() (found bool) {
		files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		must(t, err)
		for _, f := range files {
			b, err := os.ReadFile(f)
			found = found || err == nil && strings.TrimSpace(string(b)) == file
		}
		return found
	}
	if !backed() {
		t.Error("no loop device carries the file")
	}
	must(t, unix.Unmount(dir, 0))
	testkit.Eventually(t, 30*time.Second, "the loop device is free again", func() bool { return !backed() })
}

// TestS14_TreeIsAGvisorRoot runs a sandbox on a merged tree: the overlay over
// EROFS must carry attributes, and the sandbox's own writable layer must take
// writes and deletes, without anything reaching the tree.
func TestS14_TreeIsAGvisorRoot(t *testing.T) {
	s := newShelf(t)
	runsc := testkit.Runsc(t)
	guest := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", guest, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	img := s.image(t, "lower")
	c := newCache(t, t.TempDir(), func(c *Config) { c.GuestBinary = guest })
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	root := s.acquire(t, c, img, "o")

	bundle, disk := t.TempDir(), t.TempDir()
	must(t, os.Chmod(disk, 0o711))
	spec, err := json.Marshal(map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": root},
		"process":    map[string]any{"args": []string{GuestPath}, "cwd": "/", "user": map[string]int{"uid": 0, "gid": 0}},
		"mounts":     []map[string]string{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux":      map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}}},
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), spec, 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, runsc, "--root="+t.TempDir(), "--network=none", "--ignore-cgroups", "--directfs=false",
		"--overlay2=root:dir="+disk+",size=64m", "run", "-bundle="+bundle, "skerryimagetest0")
	out, err := run.CombinedOutput()
	want := "xattr kept\ncontent \"lower\" <nil>\nguest -r-xr-xr-x\nwrite <nil>\ncopied up kept <nil>\ngone true\n"
	if err != nil || string(out) != want {
		t.Errorf("the sandbox says, with %v:\n%s\nwant:\n%s", err, out, want)
	}
	reads(t, root, "lower")
}

// An image may be brought before anybody needs it; then no address is needed, and
// nothing is mounted for it.
func TestP1_AnImageIsFetchedAheadOfItsUse(t *testing.T) {
	s := newShelf(t)
	c := newCache(t, t.TempDir(), nil)
	t.Cleanup(func() { must(t, c.Purge(context.Background())) })
	img := s.image(t, "ahead")
	must(t, c.Fetch(t.Context(), img, s.clients(), nil))
	must(t, c.Fetch(t.Context(), Image{Digest: img.Digest}, transfer.Clients{}, nil))
	if !c.Has(img.Digest) || len(c.mounts(t)) > 0 {
		t.Errorf("there: %v, mounted: %v", c.Has(img.Digest), c.mounts(t))
	}
	reads(t, s.acquire(t, c, Image{Digest: img.Digest, SizeBytes: img.SizeBytes}, "one"), "ahead")
	must(t, c.Release(t.Context(), img.Digest, "one"))
	if err := c.Fetch(t.Context(), Image{Digest: s.image(t, "other").Digest}, s.clients(), nil); !errs.Is(err, "image_not_on_host") {
		t.Errorf("without an address: %v", err)
	}
}
