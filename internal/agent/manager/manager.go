package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Config wires a Manager. All fields without a stated default are required.
type Config struct {
	Journal *journal.Journal
	Engines map[string]engine.Engine
	// Versions are what the engines said of themselves when they were probed.
	Versions map[string]string
	Networks Networks
	Images   Images
	NewGuest func(GuestOptions) Guest
	// InstancesDir holds one working directory per instance, mode 0700.
	InstancesDir string
	// GuestArgs start the guest daemon as PID 1.
	GuestArgs []string
	// BootID tells one boot of the machine from the next.
	BootID string
	Clock  clock.Clock
	Logger *slog.Logger
	// States holds the saved states.
	States *state.Store
	// Contact is when the control plane was last heard, Refused whether it turns
	// this host away. Without Contact nothing is ever paused by itself.
	Contact func() time.Time
	Refused func() bool
	// LostContact is how old the last contact is when deadlines are kept by this
	// host; 0 is 90 s. LostContactPause is how old when all are paused; 0 is
	// 5 min, negative never.
	LostContact, LostContactPause time.Duration
	// PauseTimeout bounds a pause, over and above a second for each 20 MB the
	// sandbox may have; 0 is 60 s.
	PauseTimeout time.Duration
	// PauseWidth is how many sandboxes are paused at once where the agent
	// chooses; 0 is 4.
	PauseWidth int

	// CreateTimeout bounds a create whose caller named no deadline; 0 is 30 min.
	CreateTimeout time.Duration
	// GuestTimeout bounds the wait for the daemon's first answer; 0 is 60 s.
	GuestTimeout time.Duration
	// CleanupTimeout bounds each step of a cleanup; 0 is 30 s.
	CleanupTimeout time.Duration
	// RecoverTimeout bounds the re-adoption of one sandbox; 0 is 10 s.
	RecoverTimeout time.Duration
	// RetryInterval is how often an unfinished cleanup is tried again; 0 is 5 s.
	RetryInterval time.Duration
	// MaxCreates bounds the creates in flight; 0 is 64.
	MaxCreates int
	// MaxWarm bounds the instances that wait for a sandbox; 0 is none.
	MaxWarm int
	// WarmDir holds a file by the name of each that waits, for others to see; empty
	// holds none.
	WarmDir string
	// WarmRest is how long after the last start of a sandbox the next such instance
	// is made, so that it takes nothing from what the sandbox does first; 0 is 300 ms.
	WarmRest time.Duration
	// GuestBuild names the guest daemon: what waits with another is let go.
	GuestBuild string
	// MemoryShort tells whether the machine has too little memory for what nobody
	// uses yet; nil is never.
	MemoryShort func() bool

	// Step, when not nil, is called after each step named in Steps. Crash tests
	// end the process there.
	Step func(Step)
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		at   *time.Duration
		want time.Duration
	}{
		{&c.CreateTimeout, 30 * time.Minute},
		{&c.GuestTimeout, time.Minute},
		{&c.CleanupTimeout, 30 * time.Second},
		{&c.RecoverTimeout, 10 * time.Second},
		{&c.RetryInterval, 5 * time.Second},
		{&c.LostContact, 90 * time.Second},
		{&c.PauseTimeout, time.Minute},
		{&c.WarmRest, 300 * time.Millisecond},
	} {
		if *d.at <= 0 {
			*d.at = d.want
		}
	}
	if c.LostContactPause == 0 {
		c.LostContactPause = 5 * time.Minute
	}
	if c.PauseWidth <= 0 {
		c.PauseWidth = 4
	}
	if c.MaxCreates <= 0 {
		c.MaxCreates = 64
	}
	if c.Clock == nil {
		c.Clock = clock.System{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MemoryShort == nil {
		c.MemoryShort = func() bool { return false }
	}
	if c.Step == nil {
		c.Step = func(Step) {}
	}
	return c
}

// Manager is safe for concurrent use.
type Manager struct {
	cfg  Config
	base context.Context // ends with Close; operations and watchers live under it
	end  context.CancelCauseFunc
	wg   sync.WaitGroup

	width chan struct{} // one per pause the agent chooses to run
	began time.Time     // of the manager, with the monotonic clock

	mu        sync.Mutex
	closed    bool
	leaving   bool // the machine goes down: nothing is started any more
	creates   int
	sandboxes map[id.Sandbox]*entry
	warm      warmth
}

// entry is one sandbox. Its fields are guarded by Manager.mu; while an
// operation runs, only that operation changes rec.
type entry struct {
	rec  journal.Record
	op   *operation
	link Guest // nil until the guest can be talked to
	// exit is set when the instance ended during its own create.
	exit  *engine.Exit
	watch *watch
	// owed: remains of the instance of a paused sandbox are still to be removed.
	owed bool
	// deadline is until when it may run without contact; zero is for ever.
	deadline time.Time
	auto     retry // of pauses the agent decides
	measured measured
}

// watch is the goroutine that waits for an instance's end.
type watch struct {
	cancel context.CancelFunc
	done   chan struct{}
}

type kind int

const (
	opCreate kind = iota
	opDestroy
	opExit    // recording an exit
	opRecover // finding it again after a restart
	opPause
	opCheckpoint
	opCleanup // removing what a pause left
)

// operation is work on one sandbox. Its result is valid once said is closed.
type operation struct {
	kind        kind
	spec        journal.Spec // of a create
	incarnation uint64       // of a destroy: what its tombstone covers
	saves       id.Snapshot  // of a pause or checkpoint
	cancel      context.CancelCauseFunc
	// said is closed when the result is known, done when the next operation may
	// begin: a pause cleans up behind its answer.
	said, done chan struct{}
	report     Report
	state      state.State
	err        error
}

func newOperation(k kind) *operation {
	return &operation{kind: k, said: make(chan struct{}), done: make(chan struct{})}
}

// Causes with which an operation is ended before its time.
var (
	errSuperseded = errors.New("superseded by a later command")
	errClosing    = errors.New("the agent stops")
)

// New returns a manager that owns nothing yet; Recover is called before any
// other method.
func New(cfg Config) *Manager {
	m := &Manager{cfg: cfg.withDefaults(), sandboxes: make(map[id.Sandbox]*entry), began: time.Now(), warm: newWarmth()}
	m.width = make(chan struct{}, m.cfg.PauseWidth)
	m.base, m.end = context.WithCancelCause(context.Background())
	return m
}

// Close ends what the manager does and waits for it. Creates and pauses in
// flight are undone, destroys in flight finish; running sandboxes stay as they
// are.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.end(errClosing)
	m.wg.Wait()
	m.mu.Lock()
	var links []Guest
	for _, s := range m.sandboxes {
		if s.link != nil {
			links = append(links, s.link)
			s.link = nil
		}
	}
	m.mu.Unlock()
	for _, l := range links {
		l.Close()
	}
}

// Report is what the manager says of one sandbox.
type Report struct {
	Sandbox       id.Sandbox
	Incarnation   uint64
	Phase         journal.Phase
	Instance      engine.InstanceID
	Engine        string
	EngineVersion string
	StartedAt     time.Time
	EndReason     string
	// State is the newest complete state of it here, the one it consists of when
	// it is paused.
	State id.Snapshot
	// PausedReason is why the agent paused it by itself.
	PausedReason string
	// Unknown is an instance that exists and that the journal does not know; it
	// has no sandbox, incarnation or times.
	Unknown bool
}

func report(rec journal.Record) Report {
	r := Report{
		Sandbox: rec.Spec.Sandbox, Incarnation: rec.Spec.Incarnation, Phase: rec.Phase,
		Instance: rec.Instance, Engine: rec.Spec.Engine, EngineVersion: rec.EngineVersion,
		StartedAt: rec.StartedAt, EndReason: rec.EndReason,
	}
	if rec.Phase == journal.PhasePaused {
		r.State = rec.Pause.State
		if rec.Pause.Own {
			r.PausedReason = rec.Pause.Reason
		}
	}
	return r
}

// engine returns the engine by name.
func (m *Manager) engine(name string) (engine.Engine, error) {
	e, ok := m.cfg.Engines[name]
	if !ok {
		return nil, errs.FailedPrecondition("engine_unavailable", fmt.Sprintf("This host has no engine %q.", name))
	}
	return e, nil
}

// stale is the refusal of a command about an incarnation that is over.
func stale(sandbox id.Sandbox, have uint64) error {
	return errs.FailedPrecondition("stale_incarnation", "A later incarnation of this sandbox was seen here.").
		With("sandbox_id", sandbox.String()).With("incarnation", have)
}

// step tells the seam, and the journal, that a step is behind us.
func (m *Manager) step(s Step) { m.cfg.Step(s) }

func (m *Manager) log(rec journal.Record) *slog.Logger {
	return m.cfg.Logger.With("sandbox_id", rec.Spec.Sandbox.String(), "incarnation", rec.Spec.Incarnation,
		"instance_id", string(rec.Instance))
}

// wait blocks until op is done or ctx ends.
func (op *operation) wait(ctx context.Context) error {
	select {
	case <-op.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// say publishes an operation's result; a later one changes nothing. Called with
// m.mu held.
func (op *operation) say(r Report, err error) {
	select {
	case <-op.said:
		return
	default:
	}
	op.report, op.err = r, err
	close(op.said)
}

// finish ends s's operation, with its result where that was not said before.
// Called with m.mu held.
func (s *entry) finish(op *operation, r Report, err error) {
	op.say(r, err)
	s.op = nil
	close(op.done)
}

// answer blocks until op's result is known or ctx ends.
func (op *operation) answer(ctx context.Context) error {
	select {
	case <-op.said:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
