package transfer_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

// childVar makes the test program a host that downloads, and is killed: an
// address, a key and a directory.
const childVar = "SKERRY_TRANSFER_CHILD"

func TestMain(m *testing.M) {
	if address, dir, ok := strings.Cut(os.Getenv(childVar), " "); ok {
		from := artifact.Source{URL: address, Key: teamKey(1)}
		clients := transfer.Clients{Control: http.DefaultClient}
		// The parent kills this process; an end of its own is its parent's to notice.
		if err := transfer.Fetch(childContext(), clients, from, transfer.Want{MediaType: artifact.MediaTypeState}, transfer.Into(dir), transfer.Options{}); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestP1_TS01_AKilledDownloadLeavesNothingOfItsName(t *testing.T) {
	w := newWorld(t, inMemory())
	path := filepath.Join(t.TempDir(), "large")
	content := bytes.Clone(noise())
	for i := range 7 {
		content = append(content, bytes.Repeat([]byte{byte(i), 1, 2, 3}, artifact.ChunkSize/4)...)
	}
	must(t, os.WriteFile(path, content, 0o600))
	a, _ := w.put(t, id.NewTeam(), teamKey(1), transfer.File{Name: "image/pages.img", Path: path}, transfer.File{Name: "state.json", Path: small(t, "{}")})
	dir := t.TempDir()
	for _, after := range []int64{1, 2, 2} { // what one brought the next need not
		hold := func(_ http.ResponseWriter, r *http.Request) bool {
			if isChunk(r) && w.gets.Load() > after {
				<-r.Context().Done()
				return true
			}
			return false
		}
		w.gets.Store(0)
		w.spoil.Store(&hold)
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childVar+"="+w.read(a, nil).URL+" "+dir)
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(t, child.Start())
		part := filepath.Join(dir, "image/pages.img.part")
		testkit.Eventually(t, patience, "the download to hang", func() bool {
			_, err := os.Stat(part)
			return w.gets.Load() > after && err == nil && allocated(t, part) >= artifact.ChunkSize
		})
		must(t, child.Process.Kill())
		_ = child.Wait() // killed
		for _, name := range []string{"image/pages.img", "state.json"} {
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("killed after %d chunks, %s is there: %v", after, name, err)
			}
		}
	}
	w.spoil.Store(nil)
	w.gets.Store(0)
	must(t, w.fetch(t, a, teamKey(1), dir, nil))
	holds(t, dir, map[string][]byte{"image/pages.img": content, "state.json": []byte("{}")})
	if n := w.gets.Load(); n > 8 {
		t.Errorf("%d of 9 chunks were fetched again", n)
	}
}

func TestP1_AFullDiskIsNamedAndLeftAsItWas(t *testing.T) {
	testkit.Root(t)
	dir := filepath.Join(t.TempDir(), "small-"+rand.Text())
	must(t, os.Mkdir(dir, 0o700))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		testkit.Missing(t, "root", err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w := newWorld(t, inMemory())
	path, content := sample(t)
	a, _ := w.put(t, id.NewTeam(), nil, transfer.File{Name: "first", Path: small(t, "fits")}, transfer.File{Name: "f", Path: path})
	err := w.fetch(t, a, nil, dir, nil)
	var e *errs.Error
	if !errors.As(err, &e) || e.Reason != "disk_full" || e.Details["needed"] != int64(len(content)+4) {
		t.Errorf("got %v", err)
	}
	holds(t, dir, nil)
}

func TestTransfer_MemoryIsFlat(t *testing.T) {
	w := newWorld(t, onDisk(t))
	size := int64(testkit.Scaled(1<<30, 160<<20))
	path := filepath.Join(t.TempDir(), "large")
	f, err := os.Create(path)
	must(t, err)
	_, err = io.CopyN(f, mathrand.NewChaCha8([32]byte{7}), size)
	must(t, errors.Join(err, f.Close()))
	var before, peak runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	watch := func(int64, int64) {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak.HeapInuse = max(peak.HeapInuse, now.HeapInuse)
	}
	a := w.ledger.Begin(id.NewTeam(), w.host)
	_, err = transfer.Upload(t.Context(), w.clients(), w.write(a, teamKey(1)), []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{Progress: watch})
	must(t, err)
	up := peak.HeapInuse
	runtime.GC()
	peak.HeapInuse = 0
	must(t, w.fetch(t, a, teamKey(1), t.TempDir(), func(_ *transfer.Want, o *transfer.Options) { o.Progress = watch }))
	t.Logf("%d MB: heap before %d MB, upload %d MB, fetch %d MB", size>>20, before.HeapInuse>>20, up>>20, peak.HeapInuse>>20)
	if limit := before.HeapInuse + 128<<20; up > limit || peak.HeapInuse > limit {
		t.Errorf("%d MB took %d and %d MB of heap", size>>20, up>>20, peak.HeapInuse>>20)
	}
}
