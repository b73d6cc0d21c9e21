package gvisor_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

// A save neither fails nor harms the guest while connections begin and end: out
// of the guest, into it and inside, by either end, by timers and by packets. A
// connection that stays loses nothing. Each save has one attempt, and what it wrote
// takes connections as well.
func TestS5_SaveAmongEndingConnections(t *testing.T) {
	w := newWorld(t)
	log := &warnings{Handler: slog.Default().Handler()}
	w.cfg.Logger = slog.New(log)
	e := w.engine(t)
	spec, h := running(t, w, e)
	peer := silentPeer(t, spec.Network.Gateway)
	for _, path := range []string{
		"/listen?port=8001", "/echo?port=8002",
		// What stays for a minute after its end makes each save longer: few of those.
		"/churn?pause=5ms&addr=" + peer, "/churn?pause=50ms&addr=127.0.0.1:8002", "/churn?pause=50ms&addr=127.0.0.1:8001",
	} {
		if err := get(t, e, h, path); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	// It ends before the guest does.
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { callIn(ctx, net.JoinHostPort(spec.Network.GuestAddr, "8001")) })
	var echoed atomic.Uint64
	wg.Go(func() {
		if err := echoes(ctx, net.JoinHostPort(spec.Network.GuestAddr, "8002"), &echoed); err != nil {
			t.Errorf("the connection that stays, after %d bytes: %v", echoed.Load(), err)
		}
	})

	sentry := w.sentry(t, spec.ID)
	dir, heard, began := filepath.Join(w.dir, "image"), uint64(0), time.Now()
	saves := testkit.Scaled(5000, 150)
	for n := 1; n <= saves; n++ {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir, LeaveRunning: true})
		if _, gone := e.Stats(t.Context(), h); gone != nil {
			t.Fatalf("save %d ended the guest: %v\n%s", n, err, lastWords(spec))
		}
		if err != nil {
			t.Fatalf("save %d: %.3000s", n, err)
		}
		if n%50 == 0 {
			if err := get(t, e, h, "/keep"); err != nil {
				t.Fatalf("after %d saves: %v", n, err)
			}
			w.accepts(t, e, dir)
			t.Logf("%d saves in %s", n, time.Since(began).Round(time.Second))
			before := heard
			testkit.Eventually(t, 10*time.Second, "the connection that stays goes on", func() bool {
				heard = echoed.Load()
				return heard > before
			})
		}
	}
	if now := w.sentry(t, spec.ID); now != sentry {
		t.Errorf("another sentry: %v, %v", now, sentry)
	}
	for _, warning := range log.all() {
		t.Errorf("the engine warned: %.3000s", warning)
	}
}

// accepts makes a copy of an image and has it take connections as its source
// does.
func (w *world) accepts(t *testing.T, e engine.Engine, dir string) {
	t.Helper()
	spec := w.spec(t)
	h, err := e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Restore(t.Context(), h, dir)
	}
	defer destroyInstance(t, e, spec.ID)
	if err != nil {
		t.Fatalf("the copy: %v\n%s", err, lastWords(spec))
	}
	testkit.Eventually(t, 20*time.Second, "the copy answers", func() bool { return get(t, e, h, "/keep") == nil })
	for _, port := range []int{8001, 8002} {
		testkit.Eventually(t, 20*time.Second, fmt.Sprintf("the copy answers on port %d", port), func() bool {
			c, err := e.Dial(t.Context(), h, port)
			if err != nil {
				return false
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, "x") // 8001 does not read
			_, err = io.ReadFull(c, make([]byte, 1))
			return err == nil
		})
	}
}

// lastWords are what a sentry that ended by a fault left.
func lastWords(spec engine.Spec) string {
	b, _ := os.ReadFile(filepath.Join(spec.WorkDir, "panic.log"))
	return string(b[:min(len(b), 4000)])
}

// silentPeer accepts connections and does not end them before the other end
// has forgotten them.
func silentPeer(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		stop()
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				select {
				case <-time.After(3 * time.Second):
				case <-ctx.Done():
				}
			})
		}
	})
	return l.Addr().String()
}

// callIn opens connections, one after the other, of which the guest ends the one
// and a reset the next.
func callIn(ctx context.Context, addr string) {
	d := net.Dialer{Timeout: time.Second}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok && n%2 == 0 {
			_ = tcp.SetLinger(0)
		} else {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.Copy(io.Discard, c)
		}
		_ = c.Close()
	}
}

// echoes sends numbers and has them back in order, all the time, and counts the
// bytes.
func echoes(ctx context.Context, addr string, count *atomic.Uint64) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	for n := uint64(1); ; n++ {
		out := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n), 100)
		in := make([]byte, len(out))
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err = c.Write(out); err == nil {
			_, err = io.ReadFull(c, in)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !bytes.Equal(in, out):
			return fmt.Errorf("sent the number %d, got %x", n, in[:8])
		}
		count.Add(uint64(len(in)))
	}
}

// warnings keeps what is said at that level or above.
type warnings struct {
	slog.Handler
	mu   sync.Mutex
	said []string
}

// Handle implements slog.Handler.
func (w *warnings) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool {
			text += " " + a.String()
			return true
		})
		w.mu.Lock()
		w.said = append(w.said, text)
		w.mu.Unlock()
	}
	return w.Handler.Handle(ctx, r)
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said
}
