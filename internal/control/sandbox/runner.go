package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Step is a point of an operation at which a process may die. The crash test
// walks all of them.
type Step string

// The steps, each named by what has just been done.
const (
	StepCreateAccepted  Step = "create_accepted"
	StepCreateStarting  Step = "create_starting"
	StepCreateLaunched  Step = "create_launched"
	StepCreateRunning   Step = "create_running"
	StepCreateRefused   Step = "create_refused"
	StepCreateFailed    Step = "create_failed"
	StepDeleteAccepted  Step = "delete_accepted"
	StepDeleteDestroyed Step = "delete_destroyed"
	StepDeleteStopped   Step = "delete_stopped"

	StepPauseAccepted      Step = "pause_accepted"
	StepPauseSaved         Step = "pause_saved"
	StepPausePaused        Step = "pause_paused"
	StepSnapshotAccepted   Step = "snapshot_accepted"
	StepSnapshotSaved      Step = "snapshot_saved"
	StepSnapshotDone       Step = "snapshot_done"
	StepForkAccepted       Step = "fork_accepted"
	StepForkSaved          Step = "fork_saved"
	StepForkDone           Step = "fork_done"
	StepCheckpointAccepted Step = "checkpoint_accepted"
	StepCheckpointSaved    Step = "checkpoint_saved"
	StepCheckpointDone     Step = "checkpoint_done"
	StepSaveRefused        Step = "save_refused"
	StepSaveFailed         Step = "save_failed"
	StepLost               Step = "lost"
	StepResumeAccepted     Step = "resume_accepted"
	StepResumeLaunched     Step = "resume_launched"
	StepResumeRunning      Step = "resume_running"
	StepResumeRefused      Step = "resume_refused"
	StepResumeFailed       Step = "resume_failed"

	StepEngineFetched Step = "engine_fetched"
	StepStateComing   Step = "state_coming"
	StepStateFetched  Step = "state_fetched"
	StepStateThere    Step = "state_there"
)

// Steps are all of them.
func Steps() []Step {
	return append([]Step{
		StepCreateAccepted, StepCreateStarting, StepCreateLaunched, StepCreateRunning, StepCreateRefused, StepCreateFailed,
		StepDeleteAccepted, StepDeleteDestroyed, StepDeleteStopped,
		StepPauseAccepted, StepPauseSaved, StepPausePaused, StepSnapshotAccepted, StepSnapshotSaved, StepSnapshotDone,
		StepForkAccepted, StepForkSaved, StepForkDone, StepCheckpointAccepted, StepCheckpointSaved, StepCheckpointDone,
		StepSaveRefused, StepSaveFailed, StepLost,
		StepResumeAccepted, StepResumeLaunched, StepResumeRunning, StepResumeRefused, StepResumeFailed,
	}, TravelSteps()...)
}

// TravelSteps are those of an operation whose host lacks something.
func TravelSteps() []Step {
	return []Step{StepEngineFetched, StepStateComing, StepStateFetched, StepStateThere}
}

// Config of the runner. Zero values take the defaults.
type Config struct {
	// Parallel bounds the operations driven at once by this server; default 256.
	Parallel int
	// PerHost bounds those of them that wait for one host, so that a host that
	// does not answer holds up its own sandboxes and few others; default 64, as
	// many creates as a host takes.
	PerHost int
	// Destroy bounds one attempt to have a host end a sandbox; default 1 min.
	Destroy time.Duration
	// Lease is how long a server that died keeps others from going on; default
	// 10 s. It is renewed at a third of it.
	Lease time.Duration
	// Poll is how often the runner looks for operations nobody drives; default 1 s.
	Poll time.Duration
	// Patience is how long a create tries a host that cannot be reached; default
	// 60 s.
	Patience time.Duration
	// Artifacts is where hosts fetch from what they lack; nil has nothing.
	Artifacts Artifacts
	// OnStep is called after each step; an error abandons the operation there, as
	// the death of the process would. For metrics and for tests.
	OnStep func(Step, Operation) error
}

func (c Config) withDefaults() Config {
	if c.Parallel == 0 {
		c.Parallel = 256
	}
	if c.PerHost == 0 {
		c.PerHost = 64
	}
	if c.Destroy == 0 {
		c.Destroy = time.Minute
	}
	if c.Lease == 0 {
		c.Lease = 10 * time.Second
	}
	if c.Poll == 0 {
		c.Poll = time.Second
	}
	if c.Patience == 0 {
		c.Patience = time.Minute
	}
	if c.OnStep == nil {
		c.OnStep = func(Step, Operation) error { return nil }
	}
	return c
}

// Runner drives open operations to their end, apart from the requests that
// opened them. Several servers may each run one: an operation belongs to whoever
// holds its lease, and every step may be done twice.
type Runner struct {
	store     Store
	agents    Agents
	templates Templates
	secret    keyring.Secret
	watch     *Watch
	cfg       Config
	lease     Lease
	log       *slog.Logger

	slots chan struct{}
	wake  chan struct{}

	mu      sync.Mutex
	running context.Context // nil while Run does not run
	held    map[id.Operation]context.CancelCauseFunc
	calling map[id.Host]int // operations that wait for a host; no zeros
	wg      sync.WaitGroup
}

// NewRunner makes a runner; it drives nothing before Run.
func NewRunner(store Store, agents Agents, templates Templates, secret keyring.Secret, watch *Watch, cfg Config, log *slog.Logger) *Runner {
	cfg = cfg.withDefaults()
	return &Runner{
		store: store, agents: agents, templates: templates, secret: secret, watch: watch, cfg: cfg, log: log,
		lease: Lease{Owner: uuid.New(), For: cfg.Lease},
		slots: make(chan struct{}, cfg.Parallel), wake: make(chan struct{}, 1), held: map[id.Operation]context.CancelCauseFunc{},
		calling: map[id.Host]int{},
	}
}

// Run drives operations until ctx ends, then waits for those under way to let
// go; their leases are given back.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = ctx
	r.mu.Unlock()
	var renewal sync.WaitGroup
	renewal.Go(func() { r.renewLoop(ctx) })
	ticker := time.NewTicker(r.cfg.Poll)
	defer ticker.Stop()
	for ctx.Err() == nil {
		r.takeDue(ctx)
		select {
		case <-ctx.Done():
		case <-ticker.C:
		case <-r.wake:
		}
	}
	r.mu.Lock()
	r.running = nil
	r.mu.Unlock()
	r.wg.Wait()
	renewal.Wait()
	return nil
}

// Wake hastens the next look; it is only a hint.
func (r *Runner) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// reserve takes a slot for an operation about to be opened. Without one the
// operation is opened unleased, and the loop takes it when there is room.
func (r *Runner) reserve() (Lease, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running == nil {
		return Lease{}, false
	}
	select {
	case r.slots <- struct{}{}:
		r.wg.Add(1) // before Run can wait: it takes mu first
		return r.lease, true
	default:
		return Lease{}, false
	}
}

// release gives back what reserve took, when no operation came of it.
func (r *Runner) release() {
	<-r.slots
	r.wg.Done()
}

// start drives an operation in a slot that reserve took. It belongs to the
// trace of the caller that opened it, and takes nothing else from it.
func (r *Runner) start(caller context.Context, op Operation) {
	r.mu.Lock()
	parent := r.running
	if parent == nil {
		// Shutting down: another server goes on at once.
		r.mu.Unlock()
		defer r.release()
		r.yield(caller, op, 0)
		return
	}
	ctx, cancel := context.WithCancelCause(observe.Follow(parent, caller))
	r.held[op.ID] = cancel
	r.mu.Unlock()
	go func() {
		defer r.release()
		defer cancel(nil)
		defer func() {
			r.mu.Lock()
			delete(r.held, op.ID)
			r.mu.Unlock()
		}()
		r.drive(ctx, op)
		r.Wake() // there is room again
	}()
}

// takeDue leases as many operations as there are free slots.
func (r *Runner) takeDue(ctx context.Context) {
	n := 0
	for {
		if _, ok := r.reserve(); !ok {
			break
		}
		n++
	}
	var due []Operation
	if n > 0 {
		// Not cut off when this server is to leave: what the statement leased all the
		// same would be driven by nobody until the lease ends.
		lctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), letGoLimit)
		defer cancel()
		err := observe.Round(lctx, "operation_runner", func(ctx context.Context) (err error) {
			due, err = r.store.TakeDue(ctx, r.lease, n)
			return err
		})
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "cannot look for due operations", "error", err)
		}
	}
	for _, op := range due {
		r.start(ctx, op)
	}
	for range n - len(due) {
		r.release()
	}
}

var errLeaseLost = errors.New("the operation was taken from us or closed")

// renewLoop prolongs the leases of what is driven here. An operation that is no
// longer ours, or closed, is let go of at once.
func (r *Runner) renewLoop(ctx context.Context) {
	ticker := time.NewTicker(r.cfg.Lease / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		held := r.holding()
		if len(held) == 0 {
			continue
		}
		var kept []id.Operation
		err := observe.Round(ctx, "lease_renewal", func(ctx context.Context) (err error) {
			kept, err = r.store.Renew(ctx, r.lease, held)
			return err
		})
		if err != nil {
			r.log.WarnContext(ctx, "cannot renew leases", "error", err)
			continue
		}
		still := make(map[id.Operation]bool, len(kept))
		for _, op := range kept {
			still[op] = true
		}
		for _, op := range held {
			if !still[op] {
				r.letGo(op)
			}
		}
	}
}

func (r *Runner) holding() []id.Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := make([]id.Operation, 0, len(r.held))
	for op := range r.held {
		held = append(held, op)
	}
	return held
}

func (r *Runner) letGo(op id.Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel, ok := r.held[op]; ok {
		cancel(errLeaseLost)
	}
}

// notSavedPause is when a copy looks again whether it can start; it is told when
// it can.
const notSavedPause = 5 * time.Second

// crowdedPause is when an operation asks again for its turn at a host.
const crowdedPause = 250 * time.Millisecond

var errCrowded = errors.New("as many operations as may are waiting for this host")

// call makes a call to a host, within the host's share of this server's hands.
func (r *Runner) call(h id.Host, call func() error) error {
	r.mu.Lock()
	if r.calling[h] >= r.cfg.PerHost {
		r.mu.Unlock()
		return errCrowded
	}
	r.calling[h]++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.calling[h]--; r.calling[h] == 0 {
			delete(r.calling, h)
		}
	}()
	return call()
}

// errAbandoned is OnStep's wish to die here.
var errAbandoned = errors.New("abandoned at a step")

func (r *Runner) step(s Step, op Operation) error {
	if err := r.cfg.OnStep(s, op); err != nil {
		return errors.Join(errAbandoned, err)
	}
	return nil
}

func (r *Runner) drive(ctx context.Context, op Operation) {
	log := r.log.With("sandbox_id", op.SandboxID.String(), "op", string(op.Kind), "incarnation", op.Incarnation)
	ctx, span := observe.Begin(ctx, "operation "+string(op.Kind))
	span.Set("sandbox_id", op.SandboxID.String())
	span.Set("operation_id", op.ID.String())
	var err error
	defer func() { span.End(err) }()
	switch op.Kind {
	case KindCreate:
		err = r.driveCreate(ctx, op)
	case KindDelete:
		err = r.driveDelete(ctx, op)
	case KindPause, KindSnapshot, KindFork, KindCheckpoint:
		err = r.driveSave(ctx, op)
	case KindResume:
		err = r.driveResume(ctx, op)
	default:
		err = errs.FailedPrecondition("unknown_operation", "This release cannot drive this operation; a newer one opened it.")
	}
	switch {
	case err == nil, errors.Is(err, errAbandoned), errors.Is(context.Cause(ctx), errLeaseLost):
		return
	case errs.Is(err, "invalid_state"), errs.Is(err, ErrNotFound.Reason):
		// Somebody else moved it on; what it is now has its own operation or none.
		log.InfoContext(ctx, "operation overtaken", "reason", errs.As(err).Reason)
		return
	}
	pause := backoff(op.Attempts)
	switch {
	case ctx.Err() != nil:
		pause = 0 // we leave; another server goes on at once
	case errors.Is(err, errCrowded):
		pause = crowdedPause
	case errors.Is(err, errNotSaved):
		pause = notSavedPause
	default:
		log.WarnContext(ctx, "operation will be tried again", "error", err, "attempts", op.Attempts, "pause", pause)
	}
	r.yield(ctx, op, pause)
}

// letGoLimit bounds the statements that are brought to their end although this
// server is about to leave.
const letGoLimit = 5 * time.Second

// yield gives an operation back; whoever looks after the pause goes on.
func (r *Runner) yield(ctx context.Context, op Operation, pause time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), letGoLimit)
	defer cancel()
	if err := r.store.Yield(ctx, r.lease, op.ID, pause); err != nil {
		r.log.WarnContext(ctx, "cannot give an operation back; its lease will end", "sandbox_id", op.SandboxID.String(), "operation_id", op.ID.String(), "error", err)
	}
}

// backoff grows from half a second to a minute.
func backoff(attempts int64) time.Duration {
	return min(time.Minute, 500*time.Millisecond<<min(max(attempts-1, 0), 7))
}
