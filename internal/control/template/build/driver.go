package build

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Step is a point of a build at which a process may die. The crash test walks
// all of them.
type Step string

// The steps, each named by what has just been done.
const (
	StepTaken     Step = "taken"
	StepCleared   Step = "cleared"   // what a former attempt left runs no more
	StepImported  Step = "imported"  // the image it begins with is in the store
	StepBased     Step = "based"     // and what that is was written down
	StepStarted   Step = "started"   // a sandbox runs that nothing names yet
	StepNamed     Step = "named"     // and is named
	StepRan       Step = "ran"       // an instruction
	StepSaved     Step = "saved"     // what it left, which nothing names yet
	StepKept      Step = "kept"      // and is named
	StepExported  Step = "exported"  // the image is in the store
	StepAdded     Step = "added"     // and has a template, which nobody sees
	StepBooted    Step = "booted"    // a sandbox of it runs
	StepReady     Step = "ready"     // what it starts has come up
	StepStated    Step = "stated"    // its memory is saved
	StepEnded     Step = "ended"     // the sandbox is to end
	StepPublished Step = "published" // all done
	StepFailed    Step = "failed"
	StepCanceled  Step = "canceled"
)

// Steps are all of them.
func Steps() []Step {
	return []Step{
		StepTaken, StepCleared, StepImported, StepBased, StepStarted, StepNamed, StepRan, StepSaved, StepKept, StepExported, StepAdded,
		StepBooted, StepReady, StepStated, StepEnded, StepPublished, StepFailed, StepCanceled,
	}
}

// Config of the driver. Zero values take the defaults.
type Config struct {
	// Parallel bounds the builds of this server; default 8.
	Parallel int
	// Lease is how long a server that died keeps others from going on; default
	// 15 s. It is renewed, and asked whether a build was canceled, each second.
	Lease time.Duration
	// Poll is how often the driver looks for builds nobody drives; default 1 s.
	Poll time.Duration
	// Limit is how long a build may take, from its first start; default 1 h.
	Limit time.Duration
	// Attempts is how often one is begun that fails for no fault of its own;
	// default 4.
	Attempts int
	// ReadyEvery and ReadyLimit are how READY is tried; default 500 ms and 60 s.
	ReadyEvery, ReadyLimit time.Duration
	// UploadLimit is how long a build waits for the memory that its sandboxes start
	// from to be in the store; default 10 min.
	UploadLimit time.Duration
	// Scratch is a directory for archives, of this server alone.
	Scratch string
	// MaxContextBytes bounds an archive.
	MaxContextBytes int64
	// OnStep is called after each step; an error abandons the build there, as the
	// death of the process would. For tests.
	OnStep func(Step, id.Build) error
}

func (c Config) withDefaults() Config {
	def := func(to *time.Duration, d time.Duration) {
		if *to == 0 {
			*to = d
		}
	}
	def(&c.Lease, 15*time.Second)
	def(&c.Poll, time.Second)
	def(&c.Limit, time.Hour)
	def(&c.ReadyEvery, 500*time.Millisecond)
	def(&c.ReadyLimit, time.Minute)
	def(&c.UploadLimit, 10*time.Minute)
	if c.Parallel == 0 {
		c.Parallel = 8
	}
	if c.Attempts == 0 {
		c.Attempts = 4
	}
	if c.OnStep == nil {
		c.OnStep = func(Step, id.Build) error { return nil }
	}
	return c
}

// Ports are what the driver works with.
type Ports struct {
	Store     Store
	Agents    Agents
	Sandboxes Sandboxes
	Guests    Guests
	Templates Templates
	Artifacts Artifacts
	Feed      *Feed
	Secret    keyring.Secret
}

// Driver brings queued builds to their end. Several servers may each run one: a
// build belongs to whoever holds its lease, and one that is taken over begins
// anew, with what its steps have left.
type Driver struct {
	Ports
	cfg   Config
	lease Lease
	log   *slog.Logger
	wake  chan struct{}

	mu   sync.Mutex
	held map[id.Build]context.CancelCauseFunc
	wg   sync.WaitGroup
}

// NewDriver makes a driver; it drives nothing before Run.
func NewDriver(p Ports, cfg Config, log *slog.Logger) *Driver {
	cfg = cfg.withDefaults()
	return &Driver{
		Ports: p, cfg: cfg, log: log, lease: Lease{Owner: uuid.New(), For: cfg.Lease},
		wake: make(chan struct{}, 1), held: map[id.Build]context.CancelCauseFunc{},
	}
}

// Run drives builds until ctx ends, then waits for those under way to let go.
func (d *Driver) Run(ctx context.Context) error {
	var renewal sync.WaitGroup
	renewal.Go(func() { d.renewLoop(ctx) })
	ticker := time.NewTicker(d.cfg.Poll)
	defer ticker.Stop()
	for ctx.Err() == nil {
		d.takeDue(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-d.wake:
		}
	}
	d.wg.Wait()
	renewal.Wait()
	return nil
}

// Wake hastens the next look; it is only a hint.
func (d *Driver) Wake() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *Driver) takeDue(ctx context.Context) {
	d.mu.Lock()
	free := d.cfg.Parallel - len(d.held)
	d.mu.Unlock()
	if free <= 0 {
		return
	}
	var due []Build
	// Not cut off when this server is to leave: what the statement leased all the
	// same would be driven by nobody until the lease ends.
	lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	err := observe.Round(lctx, "build_driver", func(ctx context.Context) (err error) {
		due, err = d.Store.TakeDue(ctx, d.lease, free)
		return err
	})
	if err != nil && ctx.Err() == nil {
		d.log.WarnContext(ctx, "cannot look for queued builds", "error", err)
	}
	for _, b := range due {
		d.start(ctx, b)
	}
}

func (d *Driver) start(ctx context.Context, b Build) {
	bctx, cancel := context.WithCancelCause(ctx)
	d.mu.Lock()
	d.held[b.ID] = cancel
	d.mu.Unlock()
	d.wg.Go(func() {
		defer cancel(nil)
		defer func() {
			d.mu.Lock()
			delete(d.held, b.ID)
			d.mu.Unlock()
			d.Wake() // there is room again
		}()
		d.drive(bctx, b)
	})
}

var (
	errLeaseLost = errors.New("the build was taken from us, or has ended")
	errCanceled  = errors.New("somebody wants the build ended")
	errAbandoned = errors.New("abandoned at a step")
	errTooLong   = errors.New("the build took too long")
)

// cancel hastens what renewing would find: that somebody wants it ended.
func (d *Driver) cancel(b id.Build) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cancel, ok := d.held[b]; ok {
		cancel(errCanceled)
	}
}

// renewLoop prolongs the leases of what is driven here, and lets go of what is
// no longer ours or wanted.
func (d *Driver) renewLoop(ctx context.Context) {
	ticker := time.NewTicker(min(time.Second, d.cfg.Lease/3))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		d.mu.Lock()
		held := make([]id.Build, 0, len(d.held))
		for b := range d.held {
			held = append(held, b)
		}
		d.mu.Unlock()
		if len(held) == 0 {
			continue
		}
		var kept []Held
		err := observe.Round(ctx, "build_leases", func(ctx context.Context) (err error) {
			kept, err = d.Store.Renew(ctx, d.lease, held)
			return err
		})
		if err != nil {
			d.log.WarnContext(ctx, "cannot renew the leases of builds", "error", err)
			continue
		}
		still := make(map[id.Build]Held, len(kept))
		for _, k := range kept {
			still[k.ID] = k
		}
		d.mu.Lock()
		for _, b := range held {
			k, ours := still[b]
			cancel, driven := d.held[b]
			switch {
			case !driven:
			case !ours:
				cancel(errLeaseLost)
			case k.Canceled:
				cancel(errCanceled)
			}
		}
		d.mu.Unlock()
	}
}

func (d *Driver) step(s Step, b id.Build) error {
	if err := d.cfg.OnStep(s, b); err != nil {
		return errors.Join(errAbandoned, err)
	}
	return nil
}

// endWait bounds what is written at the end of a build, whatever ended it.
const endWait = 20 * time.Second

// drive brings one build as far as it goes, and writes down what came of it.
func (d *Driver) drive(ctx context.Context, b Build) {
	log := d.log.With("build_id", b.ID.String(), "team_id", b.TeamID.String())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ctx, span := observe.Begin(ctx, "build")
	span.Set("build_id", b.ID.String())
	lines, err := newLogger(ctx, d.Store, d.Feed, d.lease, b.ID, log)
	switch {
	case err != nil:
	case b.Attempts > 3*d.cfg.Attempts:
		err = errs.FailedPrecondition("given_up", "The build was begun many times, and the server ended each time. Look at the server's log.")
	case b.CancelAsked:
		cancel(errCanceled)
		err = errCanceled
	default:
		err = d.bounded(ctx, b, lines)
	}
	defer func() { span.End(err) }()
	cause := context.Cause(ctx)
	if err == nil || errors.Is(err, errAbandoned) || errors.Is(cause, errLeaseLost) || errs.Is(err, ErrOvertaken.Reason) {
		return
	}
	// What follows must be written also when this server is about to leave.
	ectx, end := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer end()
	leaving := cause != nil && !errors.Is(cause, errCanceled)
	o := Outcome{Status: StatusFailed}
	e := errs.As(err)
	switch {
	case errors.Is(cause, errCanceled):
		o.Status, o.Reason, o.Error = StatusCanceled, "canceled", "The build was canceled."
	case leaving:
		if err := d.Store.Yield(ectx, d.lease, b.ID, 0, false); err != nil {
			log.WarnContext(ectx, "cannot give a build back; its lease will end", "error", err)
		}
		return
	case errors.Is(err, errTooLong):
		o.Reason, o.Error = "timeout", "The build took longer than "+d.cfg.Limit.String()+". Split it: build one template from another."
	case again(e) && (b.Attempts < d.cfg.Attempts || waits(e)):
		log.WarnContext(ectx, "a build will be tried again", "error", err, "attempts", b.Attempts)
		if lines != nil {
			lines.say("%s It is tried again.", e.Message)
			_ = lines.flush(ectx) // the log is no reason to give up
		}
		if err := d.Store.Yield(ectx, d.lease, b.ID, backoff(b.Attempts), !waits(e)); err != nil {
			log.WarnContext(ectx, "cannot give a build back; its lease will end", "error", err)
		}
		return
	default:
		o.Reason, o.Error = e.Reason, e.Message
		if e.Code == errs.CodeInternal {
			log.ErrorContext(ectx, "a build failed", "error", err)
		}
	}
	if err := d.conclude(ectx, b, o, lines); err != nil && !errors.Is(err, errAbandoned) && !errs.Is(err, ErrOvertaken.Reason) {
		log.WarnContext(ectx, "cannot end a build; whoever takes it next does", "error", err)
	}
}

// again reports whether a failure is none of the build's, and may be over soon.
func again(e *errs.Error) bool {
	return e.Code == errs.CodeUnavailable || e.Code == errs.CodeCanceled || e.Reason == "sandbox_ended" || e.Reason == "invalid_state" || e.Reason == "no_such_artifact" || e.Reason == "upload_gone"
}

// waits reports whether there is only no room now: a build waits for that, within
// its time.
func waits(e *errs.Error) bool { return e.Reason == "no_capacity" || e.Reason == "no_host" }

// backoff grows from two seconds to half a minute.
func backoff(attempts int) time.Duration {
	return min(30*time.Second, 2*time.Second<<min(max(attempts-1, 0), 4))
}

// conclude ends a build that made nothing: what runs for it first, for then
// nothing is left even if this is where the server dies.
func (d *Driver) conclude(ctx context.Context, b Build, o Outcome, lines *logger) error {
	if err := d.clear(ctx, b); err != nil {
		return err
	}
	if lines != nil {
		lines.endOutput()
		lines.say("%s", o.Error)
		if err := lines.flush(ctx); err != nil {
			return err
		}
	}
	by := principal.System("build")
	o.Audit = audit.By(by).BuildEnded(b.TeamID, b.ID, b.Name, string(o.Status), o.Reason)
	if err := d.Store.Finish(ctx, d.lease, b.ID, o); err != nil {
		return err
	}
	d.Feed.Hint(b.ID)
	if o.Status == StatusCanceled {
		return d.step(StepCanceled, b.ID)
	}
	return d.step(StepFailed, b.ID)
}

// clear ends what runs for a build.
func (d *Driver) clear(ctx context.Context, b Build) error {
	running, err := d.Store.Running(ctx, b.ID)
	if err != nil {
		return err
	}
	for _, x := range running {
		if err := d.Sandboxes.EndForBuild(ctx, x); err != nil {
			return err
		}
	}
	return nil
}

// bounded drives a build while its log is written and its time is not over.
func (d *Driver) bounded(ctx context.Context, b Build, lines *logger) error {
	begun := time.Now()
	if b.StartedAt != nil {
		begun = *b.StartedAt
	}
	ctx, cancel := context.WithDeadlineCause(ctx, begun.Add(d.cfg.Limit), errTooLong)
	defer cancel()
	var writing sync.WaitGroup
	wctx, stop := context.WithCancel(ctx)
	writing.Go(func() { lines.run(wctx) })
	j := &job{d: d, b: b, lines: lines}
	err := j.run(ctx)
	stop()
	writing.Wait()
	j.close()
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, errTooLong) {
		return errTooLong
	}
	return err
}
