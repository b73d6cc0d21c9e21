package gvisor_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/agent/engine/gvisor"
)

// answered waits, retrying each two milliseconds, for the guest's first answer.
func answered(b *testing.B, e engine.Engine, h engine.Handle) {
	b.Helper()
	client := enginetest.Client(e, h)
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest/keep", nil)
		res, err := client.Do(req)
		if err == nil {
			_ = res.Body.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatal(err)
		}
	}
}

// BenchmarkStart is a cold start up to the guest's first HTTP answer.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	for b.Loop() {
		b.StopTimer()
		spec := w.spec(b)
		b.StartTimer()
		h := startInstance(b, e, spec)
		answered(b, e, h)
		b.StopTimer()
		destroyInstance(b, e, spec.ID)
		b.StartTimer()
	}
}

// BenchmarkDestroy destroys a running instance.
func BenchmarkDestroy(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	for b.Loop() {
		b.StopTimer()
		spec := w.spec(b)
		answered(b, e, startInstance(b, e, spec))
		b.StartTimer()
		destroyInstance(b, e, spec.ID)
	}
}

// BenchmarkRestore is a resume from a small checkpoint up to the first answer.
func BenchmarkRestore(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	spec := w.spec(b)
	h := startInstance(b, e, spec)
	answered(b, e, h)
	dir := b.TempDir()
	if err := e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
		b.Fatal(err)
	}
	destroyInstance(b, e, spec.ID)
	for b.Loop() {
		b.StopTimer()
		spec := w.spec(b)
		b.StartTimer()
		h, err := e.Prepare(b.Context(), spec)
		if err == nil {
			h, err = e.Restore(b.Context(), h, dir)
		}
		if err != nil {
			b.Fatal(err)
		}
		answered(b, e, h)
		b.StopTimer()
		destroyInstance(b, e, spec.ID)
		b.StartTimer()
	}
}

// BenchmarkRawStart and BenchmarkRawDestroy do the same by hand, with the same
// flags, spec and root: what the engine is measured against.
func BenchmarkRawStart(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	for b.Loop() {
		b.StopTimer()
		r := w.raw(b, e)
		b.StartTimer()
		r.run(b, "run", "-detach", "-bundle="+r.bundle, r.id)
		answered(b, rawDialer{e, r.addr}, nil)
		b.StopTimer()
		r.run(b, "delete", "-force", r.id)
		b.StartTimer()
	}
}

func BenchmarkRawCreateThenStart(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	for _, ahead := range []bool{false, true} {
		b.Run(fmt.Sprintf("createAhead=%v", ahead), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				r := w.raw(b, e)
				if !ahead {
					b.StartTimer()
				}
				r.run(b, "create", "-bundle="+r.bundle, r.id)
				b.StartTimer()
				r.run(b, "start", r.id)
				answered(b, rawDialer{e, r.addr}, nil)
				b.StopTimer()
				r.run(b, "delete", "-force", r.id)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkRawDestroy(b *testing.B) {
	w := newWorld(b)
	e := w.engine(b)
	for b.Loop() {
		b.StopTimer()
		r := w.raw(b, e)
		r.run(b, "run", "-detach", "-bundle="+r.bundle, r.id)
		answered(b, rawDialer{e, r.addr}, nil)
		b.StartTimer()
		r.run(b, "delete", "-force", r.id)
	}
}

func startInstance(b *testing.B, e engine.Engine, spec engine.Spec) engine.Handle {
	b.Helper()
	h, err := e.Prepare(b.Context(), spec)
	if err == nil {
		h, err = e.Start(b.Context(), h)
	}
	if err != nil {
		b.Fatal(err)
	}
	return h
}

func destroyInstance(b testing.TB, e engine.Engine, id engine.InstanceID) {
	b.Helper()
	if err := e.Destroy(context.WithoutCancel(b.Context()), id); err != nil {
		b.Fatal(err)
	}
}

// raw is an instance run by hand from the bundle the engine writes.
type raw struct {
	flags            []string
	runsc            string
	id, bundle, addr string
}

func (w *world) raw(b *testing.B, e *gvisor.Engine) raw {
	b.Helper()
	spec := w.spec(b)
	if _, err := e.Prepare(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
	// Out of the engine's hands, so that it does not wait for us.
	bundle := filepath.Join(w.dir, "raw-"+string(spec.ID))
	disk := filepath.Join(bundle, "disk")
	if err := os.Rename(filepath.Join(spec.WorkDir, "bundle"), bundle); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(disk, 0o700); err != nil {
		b.Fatal(err)
	}
	destroyInstance(b, e, spec.ID)
	return raw{
		runsc: w.cfg.Runsc, id: string(spec.ID), bundle: bundle, addr: spec.Network.GuestAddr,
		flags: []string{
			"--root=" + filepath.Join(w.dir, "raw"), "--network=sandbox", "--allow-suid", "--allow-connected-on-save",
			fmt.Sprintf("--overlay2=root:dir=%s,size=%d", disk, spec.Resources.DiskBytes),
			"--directfs=false", "--platform=systrap", "--host-uds=none",
		},
	}
}

func (r raw) run(b *testing.B, args ...string) {
	b.Helper()
	said := filepath.Join(b.TempDir(), "said")
	log := "--log=" + said
	cmd := exec.Command(r.runsc, append(append([]string{log}, r.flags...), args...)...)
	// What was a pipe in a checkpoint must be one in its copy.
	in, out, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said)
		b.Errorf("%s: %v: %s", args, err, text)
	}
}

// rawDialer reaches a guest the engine does not know.
type rawDialer struct {
	*gvisor.Engine
	addr string
}

// Dial implements engine.Engine.
func (d rawDialer) Dial(ctx context.Context, _ engine.Handle, port int) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(d.addr, strconv.Itoa(port)))
}
