package app

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/fence"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/initd"
	"skerry.dev/skerry/internal/guest/rawfile"
)

const (
	// memoryLimit makes the collector work harder rather than let the daemon
	// take the sandbox's memory.
	memoryLimit   = 96 << 20
	shutdownGrace = 500 * time.Millisecond
)

// Serve is the life of the serving daemon: it reads its document from stdin
// and serves until ctx ends.
func Serve(ctx context.Context, stdin io.Reader, log *slog.Logger) error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(memoryLimit)
	// Before the document is read: nobody inside may look at it here.
	if err := initd.Undumpable(); err != nil {
		return err
	}
	doc, err := initd.ReadDocument(stdin)
	if err != nil {
		return err
	}
	for _, fd := range []int{doc.ListenerFD, doc.ReportFD} {
		if fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	opt := Options{Boot: doc.Boot, Init: doc.Init, PasswdPath: doc.Passwd, GroupPath: doc.Group, Log: log}
	if doc.System {
		opt.Machine = system{root: "/"}
		// Signals to everybody are only safe where everybody is ours.
		opt.Alone = os.Getppid() == 1
	}
	if doc.FenceFD > 2 {
		if opt.Fence, err = fence.FromFD(doc.FenceFD); err != nil {
			return err
		}
		defer opt.Fence.Close()
	}
	if doc.ReportFD > 2 {
		pipe := os.NewFile(uintptr(doc.ReportFD), "report")
		defer pipe.Close()
		opt.Report = func(in guestapi.Init) error { return json.NewEncoder(pipe).Encode(in) }
	}
	ln, err := listener(doc)
	if err != nil {
		return err
	}
	defer ln.Close()
	d, err := New(opt)
	if err != nil {
		return err
	}
	defer d.Close()
	if doc.Restarts > 0 {
		d.Emit(guestapi.Event{Kind: guestapi.EventRestart})
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.Guard(ctx) })

	server := newServer(d.Handler(), log)
	server.ConnContext = d.ConnContext
	wg.Go(func() {
		<-ctx.Done()
		grace, stop := context.WithTimeout(context.Background(), shutdownGrace)
		defer stop()
		if server.Shutdown(grace) != nil {
			server.Close() // streams live as long as the sandbox; now it ends
		}
	})
	log.Info("serving", "addr", ln.Addr().String())
	if err := server.Serve(d.Track(ln)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

func newServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: 15 * time.Second, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: 128 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

func listener(doc initd.Document) (net.Listener, error) {
	if doc.ListenerFD > 2 {
		f := os.NewFile(uintptr(doc.ListenerFD), "listener")
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("taking over the listener: %w", err)
		}
		return ln, nil
	}
	addr := doc.Listen
	if addr == "" {
		addr = fmt.Sprintf(":%d", initd.Port(doc.Boot))
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return ln, nil
}

// system is the real machine below root.
type system struct{ root string }

// Apply sets the clock first: signatures and certificates depend on it.
func (s system) Apply(in guestapi.Init) error {
	return errors.Join(
		initd.SetClock(in.Timestamp),
		initd.SetHostname(in.Hostname),
		initd.WriteIdentity(s.root, in.Hostname, in.Nameserver),
		initd.InstallCA(s.root, in.CABundle),
		stir(in),
		s.mark(in.EnvVars),
	)
}

// mark leaves what programs look for to learn that they are in a sandbox.
func (s system) mark(env map[string]string) error {
	dir := filepath.Join(s.root, "run/e2b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, value := range map[string]string{
		".E2B_SANDBOX": "true", ".E2B_SANDBOX_ID": env["E2B_SANDBOX_ID"], ".E2B_TEMPLATE_ID": env["E2B_TEMPLATE_ID"],
	} {
		path := filepath.Join(dir, name)
		if value == "" { // a copy is not its source
			if err := rawfile.Remove(path); err != nil {
				return err
			}
			continue
		}
		if old, err := rawfile.Read(path, 4<<10); err == nil && string(old) == value {
			continue
		}
		if err := rawfile.Replace(path, value); err != nil {
			return err
		}
	}
	return nil
}

// stir mixes what no other copy was given into the kernel's randomness, for
// kernels whose state was copied with the memory.
func stir(in guestapi.Init) error {
	if in.NewInitSecret == "" {
		return nil
	}
	seed := sha512.Sum512([]byte("skerry stir\x00" + in.NewInitSecret + "\x00" + in.LifecycleID))
	f, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	if _, err := unix.Write(f, seed[:]); err != nil {
		return err
	}
	// Where it is known, what was written counts from now on, not from the next
	// time the kernel stirs by itself.
	_, _ = unix.IoctlRetInt(f, unix.RNDRESEEDCRNG)
	return nil
}
