// Package app puts the guest daemon together: one HTTP server with the RPC
// services, the file endpoints and the host's own paths, behind one check of
// who is calling.
package app

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/guestrpc/filesystem/filesystemconnect"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/guest/fence"
	"skerry.dev/skerry/internal/guest/filesystem"
	"skerry.dev/skerry/internal/guest/guard"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/passwd"
	"skerry.dev/skerry/internal/guest/process"
)

// messageMax bounds one RPC message: room for a large paste, base64 included.
const messageMax = 32 << 20

// Machine is what a configuration changes beyond the daemon itself.
type Machine interface {
	// Apply sets the clock, names and trust of the machine. A fault of one does
	// not keep the others from being set.
	Apply(guestapi.Init) error
}

// Options of a Daemon. Only Boot.InitSecret is required.
type Options struct {
	Boot guestapi.Boot
	// Init is applied at once; nil waits for the host's call.
	Init *guestapi.Init
	// PasswdPath and GroupPath name the account files; empty is those in /etc.
	PasswdPath, GroupPath string
	// Machine is changed by configurations; nil leaves it as it is.
	Machine Machine
	// Alone says that all processes of this kernel belong to the sandbox.
	Alone bool
	// Fence holds all that commands start; nil is none.
	Fence *fence.Fence
	// Report is told each configuration before it is answered; nil tells nobody.
	Report func(guestapi.Init) error
	// FirstEvent is the number before the first event's; 0 is the time in
	// microseconds, which grows over restarts.
	FirstEvent int64
	Log        *slog.Logger
}

// Daemon is the guest daemon without its listener.
type Daemon struct {
	opt       Options
	log       *slog.Logger
	secret    atomic.Pointer[[sha256.Size]byte] // hash of the init secret
	processes *process.Manager
	files     *filesystem.Service
	events    *guard.Events
	handler   http.Handler
	refuse    *connect.ErrorWriter
	metrics   sampler

	initMu  sync.Mutex // one configuration at a time
	current atomic.Pointer[guestapi.Init]

	conns  connections
	active *activity

	closing chan struct{}
	once    sync.Once
	tunnels sync.WaitGroup
}

// New makes a daemon. Close ends everything it started.
func New(opt Options) (*Daemon, error) {
	if opt.Boot.InitSecret == "" {
		return nil, errors.New("the daemon needs an init secret")
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.FirstEvent == 0 {
		opt.FirstEvent = time.Now().UnixMicro()
	}
	d := &Daemon{
		opt: opt, log: opt.Log, active: newActivity(),
		events: guard.NewEvents(opt.FirstEvent), refuse: connect.NewErrorWriter(), closing: make(chan struct{}),
	}
	d.setSecret(opt.Boot.InitSecret)
	accounts := passwd.New(opt.PasswdPath, opt.GroupPath)
	var confine func() error
	if opt.Fence != nil {
		confine = opt.Fence.Join
		if err := opt.Fence.Limit(fence.Tasks(opt.Boot.MaxProcesses)); err != nil {
			return nil, err
		}
	}
	var err error
	d.processes, err = process.New(process.Options{Accounts: accounts, Settings: d.settings, Confine: confine, Log: opt.Log})
	if err != nil {
		return nil, fmt.Errorf("preparing to start processes: %w", err)
	}
	d.files = filesystem.New(filesystem.Options{
		Accounts: accounts, Log: opt.Log,
		DefaultUser: func() string { return d.settings().DefaultUser },
		AccessToken: func() string { return d.config().AccessToken },
	})
	d.handler = d.routes()
	if opt.Init != nil {
		if err := d.apply(context.Background(), *opt.Init); err != nil {
			d.log.Warn("the last configuration could not be applied in full", "error", err)
		}
	}
	return d, nil
}

// Handler serves everything over HTTP/1.1 and HTTP/2.
func (d *Daemon) Handler() http.Handler { return d.handler }

// Emit adds an event to those the host reads.
func (d *Daemon) Emit(e guestapi.Event) { d.events.Emit(e) }

// Guard watches memory, processes and disk until ctx ends.
func (d *Daemon) Guard(ctx context.Context) {
	guard.New(guard.Options{
		ReservePercent: d.opt.Boot.MemoryReservePercent,
		MaxProcesses:   func() int { return d.settings().MaxProcesses },
		Tasks:          d.tasks(),
		Started:        d.processes.Started(),
		Alone:          d.opt.Alone,
		Emit:           d.events.Emit,
		Log:            d.log,
	}).Run(ctx)
}

// tasks counts those behind the fence; nil when there is none.
func (d *Daemon) tasks() func() (used, limit int) {
	if d.opt.Fence == nil {
		return nil
	}
	return func() (int, int) {
		used, err := d.opt.Fence.Used()
		if err != nil {
			return 0, 0
		}
		return used, fence.Tasks(d.settings().MaxProcesses)
	}
}

// Close ends all processes, watches and tunnels and waits for them.
func (d *Daemon) Close() {
	d.once.Do(func() { close(d.closing) })
	d.processes.Close()
	d.files.Close()
	d.tunnels.Wait()
}

// config is what the last Init said; the zero value before it.
func (d *Daemon) config() guestapi.Init {
	if c := d.current.Load(); c != nil {
		return *c
	}
	return guestapi.Init{MaxProcesses: d.opt.Boot.MaxProcesses}
}

func (d *Daemon) settings() process.Settings {
	c := d.config()
	return process.Settings{DefaultUser: c.DefaultUser, Workdir: c.DefaultWorkdir, Env: c.EnvVars, MaxProcesses: c.MaxProcesses}
}

func (d *Daemon) routes() http.Handler {
	mux := http.NewServeMux()
	limits := connect.WithReadMaxBytes(messageMax)
	mux.Handle(processconnect.NewProcessHandler(d.processes, limits))
	mux.Handle(filesystemconnect.NewFilesystemHandler(d.files, limits))
	d.files.Routes(mux)
	mux.HandleFunc("GET "+guestapi.PathMetrics, d.handleMetrics)
	mux.HandleFunc("GET "+guestapi.PathEnvs, d.handleEnvs)

	internal := http.NewServeMux()
	internal.HandleFunc("POST "+guestapi.PathInit, d.handleInit)
	internal.HandleFunc("GET "+guestapi.PathEvents, d.handleEvents)
	internal.HandleFunc("GET "+guestapi.PathTunnel, d.handleTunnel)

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case guestapi.PathHealth:
			w.WriteHeader(http.StatusNoContent)
			return
		case guestapi.PathInit, guestapi.PathEvents, guestapi.PathTunnel:
			if !d.fromHost(r) {
				filesystem.WriteError(w, http.StatusUnauthorized, "this path is the host's alone")
				return
			}
			if r.URL.Path != guestapi.PathInit && d.current.Load() == nil {
				d.deny(w, r, connect.CodeUnavailable, http.StatusServiceUnavailable, "the sandbox is not ready yet")
				return
			}
			internal.ServeHTTP(w, r)
			return
		}
		c := d.current.Load()
		if c == nil {
			d.deny(w, r, connect.CodeUnavailable, http.StatusServiceUnavailable, "the sandbox is not ready yet")
			return
		}
		// Files check for themselves, because a signature may stand for the token.
		if c.AccessToken != "" && r.URL.Path != guestapi.PathFiles && !sameSecret(r.Header.Get(guestapi.HeaderAccessToken), sha256.Sum256([]byte(c.AccessToken))) {
			d.deny(w, r, connect.CodeUnauthenticated, http.StatusUnauthorized, filesystem.AccessDenied)
			return
		}
		if d.counts(r) {
			defer d.active.use()()
		}
		if name, _, ok := r.BasicAuth(); ok {
			r = r.WithContext(passwd.WithActing(r.Context(), name))
		}
		mux.ServeHTTP(w, r)
	})
}

// counts reports whether a call is use of the sandbox. Looking at what goes on
// in it is none, nor is a call that will be refused.
func (d *Daemon) counts(r *http.Request) bool {
	switch r.URL.Path {
	case guestapi.PathMetrics, guestapi.PathEnvs, processconnect.ProcessListProcedure:
		return false
	case guestapi.PathFiles:
		return d.files.Authorized(r)
	}
	return true
}

func (d *Daemon) setSecret(secret string) {
	sum := sha256.Sum256([]byte(secret))
	d.secret.Store(&sum)
}

// fromHost reports whether the caller knows the secret that only PID 1 and the
// host have, the one of this moment.
func (d *Daemon) fromHost(r *http.Request) bool {
	return sameSecret(r.Header.Get(guestapi.HeaderInit), *d.secret.Load())
}

// sameSecret compares in a time that depends on neither content nor length.
func sameSecret(got string, want [sha256.Size]byte) bool {
	sum := sha256.Sum256([]byte(got))
	return subtle.ConstantTimeCompare(sum[:], want[:]) == 1
}

// deny answers in the form the caller's protocol expects.
func (d *Daemon) deny(w http.ResponseWriter, r *http.Request, code connect.Code, status int, message string) {
	if r.Method == http.MethodPost && strings.Contains(r.URL.Path, ".") && d.refuse.IsSupported(r) { // a service's path
		_ = d.refuse.Write(w, r, connect.NewError(code, errors.New(message)))
		return
	}
	filesystem.WriteError(w, status, message)
}
