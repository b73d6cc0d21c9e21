package sandboxio

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/guestrpc/filesystem/filesystemconnect"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// What is believed of a guest at most, in bytes.
const (
	maxEventBytes   = 1<<20 + 64<<10 // one event of a command
	maxListingBytes = 64 << 20       // one answer of the filesystem service
	maxListed       = 100_000        // entries of one listing
)

// Options of a Service. The zero value is what production uses.
type Options struct {
	// ResumeWindow is how long a command whose connection broke is looked for
	// before its caller is told; 0 is 30 s.
	ResumeWindow time.Duration
	// Silence is how long a guest may say nothing at all, not even a keepalive,
	// before its connection counts as broken; 0 is 90 s.
	Silence time.Duration
	// StartWait is how long a guest may take to say that a command started, on
	// each try; 0 is 15 s.
	StartWait time.Duration
}

// Service carries commands and files between callers and running sandboxes. It
// keeps no state that could not be lost: everything about a command lives in the
// guest, so any server can attach to what another one started.
type Service struct {
	targets Targets
	log     *slog.Logger
	opt     Options
	process processconnect.ProcessClient
	files   filesystemconnect.FilesystemClient
	// listings are those whose next pages may be asked for.
	listings listings
}

// New makes a service. It owns no goroutines beyond the calls made to it.
func New(targets Targets, log *slog.Logger, opt Options) *Service {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if opt.ResumeWindow <= 0 {
		opt.ResumeWindow = 30 * time.Second
	}
	if opt.Silence <= 0 {
		opt.Silence = 90 * time.Second
	}
	if opt.StartWait <= 0 {
		opt.StartWait = 15 * time.Second
	}
	plain := connect.WithAcceptCompression("gzip", nil, nil) // no bombs, no time spent packing
	return &Service{
		targets: targets, log: log, opt: opt, listings: listings{now: time.Now},
		process: processconnect.NewProcessClient(courier{}, guestURL, plain, connect.WithReadMaxBytes(maxEventBytes)),
		files:   filesystemconnect.NewFilesystemClient(courier{}, guestURL, plain, connect.WithReadMaxBytes(maxListingBytes)),
	}
}

// errEnded is the cause of a context whose sandbox ended.
var errEnded = errors.New("the sandbox ended")

// sandboxEnded tells a caller that what it used is gone for good.
func sandboxEnded() *errs.Error {
	return errs.FailedPrecondition("sandbox_ended",
		"The sandbox ended before this was done. Its events say why; resume it when it is paused, or create another.")
}

// visit is one caller's use of one incarnation of a sandbox. Its context ends
// with the caller's or with the sandbox, and carries no deadline: on this wire a
// deadline is the lifetime of a command and never that of a request.
type visit struct {
	Target
	user   string
	cancel context.CancelCauseFunc
	gone   chan struct{}
}

// enter finds the sandbox. The caller must call leave.
func (s *Service) enter(ctx context.Context, by principal.Principal, sandbox id.Sandbox, user string) (context.Context, *visit, error) {
	if err := checkUser(user); err != nil {
		return nil, nil, err
	}
	target, err := s.targets.Target(ctx, by, sandbox)
	if err != nil {
		return nil, nil, err
	}
	inner, cancel := context.WithCancelCause(withoutDeadline{ctx})
	v := &visit{Target: target, user: user, cancel: cancel, gone: make(chan struct{})}
	if v.user == "" {
		v.user = target.DefaultUser
	}
	go func() {
		defer close(v.gone)
		select {
		case <-target.Ended:
			cancel(errEnded)
		case <-inner.Done():
		}
	}()
	return v.within(inner), v, nil
}

// leave ends everything that was begun in the visit; safe to repeat.
func (v *visit) leave() {
	v.cancel(context.Canceled)
	<-v.gone
}

// ended reports whether the sandbox has ended.
func (v *visit) ended() bool {
	select {
	case <-v.Ended:
		return true
	default:
		return false
	}
}

// withoutDeadline is a context that ends with its parent and does not say when.
type withoutDeadline struct{ context.Context }

// Deadline tells of none.
func (withoutDeadline) Deadline() (time.Time, bool) { return time.Time{}, false }
