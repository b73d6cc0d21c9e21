package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Step names a point after which the agent may die.
type Step string

// The steps of a create, in order, of a pause and of a destroy. The undo of a
// create passes through those from StepUndoInstance on, as far as it had come;
// so does a pause, once the state is the sandbox.
const (
	StepOpenState      Step = "open_state" // of a create from a saved state
	StepJournalBegin   Step = "journal_begin"
	StepClaimSlot      Step = "claim_slot"
	StepAcquireImage   Step = "acquire_image"
	StepPrepare        Step = "prepare"
	StepStart          Step = "start"
	StepRestore        Step = "restore" // instead of it, from a saved state
	StepAwaitGuest     Step = "await_guest"
	StepInitGuest      Step = "init_guest"
	StepJournalRunning Step = "journal_running"

	StepJournalPausing Step = "journal_pausing"
	StepCutConnections Step = "cut_connections"
	StepCheckpoint     Step = "checkpoint"
	StepSealState      Step = "seal_state"
	StepJournalPaused  Step = "journal_paused" // the point of no return

	StepKeepDisk Step = "keep_disk" // behind the answer, where the engine can

	// What a pause that failed goes through, and a resume that did.
	StepDiscardState    Step = "discard_state"
	StepThaw            Step = "thaw"
	StepJournalUnpaused Step = "journal_unpaused"
	StepJournalReverted Step = "journal_reverted"

	// What an instance passes that is made before there is a sandbox for it, on top
	// of the steps of a create, and what its sandbox passes.
	StepWarmBegin     Step = "warm_journal_begin"
	StepWarmCommand   Step = "warm_command"
	StepWarmHold      Step = "warm_hold"
	StepWarmReady     Step = "warm_journal_ready"
	StepClaimWarm     Step = "claim_warm" // from here on it is the sandbox's
	StepWarmLettingGo Step = "warm_letting_go"
	StepWarmForgotten Step = "warm_forgotten"

	StepJournalDestroying Step = "journal_destroying"
	StepUndoInstance      Step = "destroy_instance"
	StepUndoImage         Step = "release_image"
	StepUndoSlot          Step = "release_slot"
	StepJournalRemoved    Step = "journal_removed"
)

// Operations are what passes through steps, by name; crash tests end the agent
// after each step of each.
func Operations() map[string][]Step {
	boot, restore := createTable(journal.Spec{}), createTable(journal.Spec{State: id.NewSnapshot()})
	undo := undoSteps(boot)
	pause := pauseSteps()
	return map[string][]Step{
		"create":        names(boot),
		"failed_create": append(append([]Step{}, undo...), StepJournalRemoved),
		"destroy":       append(append([]Step{StepJournalDestroying}, undo...), StepJournalRemoved),
		"pause":         append(append(append([]Step{}, pause...), StepKeepDisk), undo...),
		"failed_pause":  {StepJournalPausing, StepCutConnections, StepDiscardState, StepThaw, StepJournalUnpaused},
		"checkpoint":    {StepCheckpoint, StepSealState},
		"resume":        names(restore),
		"failed_resume": append(append([]Step{}, undo...), StepJournalReverted),
		"fork":          names(restore),
		"warm":          names(warmTable(journal.Spec{})),
		"failed_warm":   append(append([]Step{}, undo...), StepWarmForgotten),
		"claim":         names(claimTable()),
		"failed_claim":  append(append([]Step{}, undo...), names(boot)...),
		"let_go":        append(append([]Step{StepWarmLettingGo}, undo...), StepWarmForgotten),
	}
}

// Steps lists every step there is.
func Steps() []Step {
	var out []Step
	for _, steps := range Operations() {
		out = append(out, steps...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func names(table []tableStep) (out []Step) {
	for _, s := range table {
		out = append(out, s.name)
	}
	return out
}

// undoSteps are those of a whole undo, in the order they are passed.
func undoSteps(table []tableStep) (out []Step) {
	for _, s := range slices.Backward(table) {
		if s.undo != nil {
			out = append(out, s.undoName)
		}
	}
	return out
}

// tableStep is one line of the table: what it does, and what takes its effect
// back. An undo succeeds on nothing.
type tableStep struct {
	name     Step
	do       func(*build, context.Context) error
	undoName Step
	undo     func(*Manager, context.Context, journal.Record) error
}

// createTable is the table of a create: with a saved state it restores where
// the other starts.
func createTable(spec journal.Spec) []tableStep {
	return append(startTable(spec, tableStep{name: StepJournalBegin, do: (*build).begin}),
		tableStep{name: StepJournalRunning, do: (*build).running})
}

// startTable is what it takes until a guest runs and is configured.
func startTable(spec journal.Spec, begin tableStep) []tableStep {
	var table []tableStep
	start := tableStep{name: StepStart, do: (*build).start}
	if !spec.State.IsZero() {
		table = append(table, tableStep{name: StepOpenState, do: (*build).openState})
		start = tableStep{name: StepRestore, do: (*build).restore}
	}
	return append(table, []tableStep{
		begin,
		{name: StepClaimSlot, do: (*build).claimSlot, undoName: StepUndoSlot, undo: (*Manager).releaseSlot},
		{name: StepAcquireImage, do: (*build).acquireImage, undoName: StepUndoImage, undo: (*Manager).releaseImage},
		{name: StepPrepare, do: (*build).prepare, undoName: StepUndoInstance, undo: (*Manager).destroyInstance},
		start,
		{name: StepAwaitGuest, do: (*build).awaitGuest},
		{name: StepInitGuest, do: (*build).initGuest},
	}...)
}

// undoAll is a line of every table from which an undo takes all back.
const undoAll = math.MaxInt

// build is a create in progress.
type build struct {
	m      *Manager
	s      *entry
	engine engine.Engine
	rec    journal.Record // published to s.rec after each step
	slot   Slot
	tree   Tree
	link   Guest
	held   *state.Held             // the state it is restored from
	woken  bool                    // with the state's memory, or from having waited
	warm   *warm                   // the instance it takes over
	kept   journal.Warm            // of an instance that is made to wait
	begun  bool                    // the journal may know of it
	cancel context.CancelCauseFunc // of the whole create
}

func (b *build) begin(context.Context) error {
	b.begun = true
	return b.m.cfg.Journal.Begin(b.rec)
}

func (b *build) claimSlot(ctx context.Context) error {
	slot, err := b.m.cfg.Networks.Acquire(ctx, b.rec.Instance, b.rec.Spec.Internet)
	if err != nil {
		return blame(err, "network_unavailable", "This host has no network slot for the sandbox now. Try again.")
	}
	b.slot, b.rec.Slot = slot, slot.Index
	return nil
}

// acquireImage takes the tree that the instance starts on: what goes on with its
// memory has the daemon that is in there, all else the one of this host.
func (b *build) acquireImage(ctx context.Context) error {
	if b.held != nil && b.held.Memory && !b.rec.Spec.DiskOnly {
		err := b.acquire(ctx, b.ownDaemon())
		if errs.Is(err, guestBuildMissing) {
			err = b.unrestored(err)
		}
		return err
	}
	return b.acquire(ctx, Daemon{})
}

func (b *build) acquire(ctx context.Context, daemon Daemon) error {
	tree, err := b.m.cfg.Images.Acquire(ctx, b.rec.Spec.Image, daemon, string(b.rec.Instance))
	if err != nil {
		return blame(err, "image_unavailable", "The template could not be fetched to this host. Try again.")
	}
	b.tree, b.rec.Guest = tree, tree.Daemon
	return nil
}

func (b *build) prepare(ctx context.Context) error {
	dir := b.m.workDir(b.rec)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	spec := b.rec.Spec
	boot := guestapi.Boot{InitSecret: b.rec.InitSecret, Hostname: spec.Hostname, MaxProcesses: spec.Resources.MaxProcesses}
	if spec.Internet {
		// Without the internet nothing answers there, and a resolver that is
		// silent would make every look-up inside wait.
		boot.Nameserver = b.slot.Net.Gateway
	}
	stdin, err := json.Marshal(boot)
	if err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	h, err := b.engine.Prepare(ctx, engine.Spec{
		ID: b.rec.Instance, RootDir: b.tree.Dir, RootLayers: b.tree.Layers[:], WorkDir: dir, Hostname: spec.Hostname,
		Args:  b.m.cfg.GuestArgs,
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Stdin: stdin, Network: b.slot.Net,
		Resources: engine.Resources{
			CPUMillis: spec.Resources.CPUMillis, MemoryBytes: spec.Resources.MemoryBytes,
			DiskBytes: spec.Resources.DiskBytes, MaxProcesses: spec.Resources.MaxProcesses,
		},
	})
	if err != nil {
		return blame(err, "engine_failed", "The engine could not prepare the sandbox. Try again.")
	}
	b.rec.Handle = h
	return nil
}

func (b *build) start(ctx context.Context) error {
	h, err := b.engine.Start(ctx, b.rec.Handle)
	if err != nil {
		return blame(err, "engine_failed", "The engine could not start the sandbox. Try again.")
	}
	b.started(h, b.rec.InitSecret)
	return nil
}

// started notes that the instance runs, with a daemon that knows secret.
func (b *build) started(h engine.Handle, secret string) {
	b.rec.Handle = h
	b.rec.StartedAt = b.m.cfg.Clock.Now()
	b.link = b.m.newGuest(b.engine, b.rec, secret)
	b.m.startWatch(b.s, b.engine, b.rec, b.cancel)
}

func (b *build) awaitGuest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.m.cfg.GuestTimeout)
	defer cancel()
	if err := b.link.Await(ctx); err != nil {
		return blame(err, "guest_unresponsive", "The sandbox started, but its daemon did not answer.")
	}
	return nil
}

func (b *build) initGuest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.m.cfg.GuestTimeout)
	defer cancel()
	spec := b.rec.Spec
	in := guestapi.Init{
		AccessToken: spec.AccessToken, EnvVars: spec.Env, Timestamp: b.m.cfg.Clock.Now(),
		DefaultUser: spec.DefaultUser, DefaultWorkdir: spec.DefaultWorkdir,
		LifecycleID: string(b.rec.Instance), MaxProcesses: spec.Resources.MaxProcesses,
	}
	if spec.Sandbox.IsZero() {
		in.LifecycleID = "warm " + in.LifecycleID // what becomes of it begins anew
	}
	if b.woken {
		// It woke up with what it was told where the state was taken.
		in.NewInitSecret, in.Hostname = b.rec.InitSecret, spec.Hostname
		if spec.Internet {
			in.Nameserver = b.slot.Net.Gateway
		}
	}
	if err := b.link.Init(ctx, in); err != nil {
		return blame(err, "guest_unresponsive", "The sandbox's daemon could not be configured.")
	}
	return nil
}

func (b *build) running(context.Context) error {
	b.rec.Phase = journal.PhaseRunning
	b.rec.Step = string(StepJournalRunning)
	b.rec.Before = nil
	data := map[string]any{}
	if !b.rec.Spec.State.IsZero() {
		data["state_id"] = b.rec.Spec.State.UUID().String()
	}
	if b.warm != nil {
		data["warm"] = true
	}
	return b.m.cfg.Journal.Running(b.rec, b.m.event(b.rec, EventStarted, data))
}

func (m *Manager) destroyInstance(ctx context.Context, rec journal.Record) error {
	eng, err := m.engine(rec.Spec.Engine)
	if err != nil {
		return err
	}
	if err := eng.Destroy(ctx, rec.Instance); err != nil {
		return err
	}
	return os.RemoveAll(m.workDir(rec))
}

func (m *Manager) releaseImage(ctx context.Context, rec journal.Record) error {
	return m.cfg.Images.Release(ctx, rec.Spec.Image.Digest, string(rec.Instance))
}

// releaseSlot finds the slot by its owner where the journal does not know it:
// the agent died before the create was complete.
func (m *Manager) releaseSlot(ctx context.Context, rec journal.Record) error {
	if rec.Slot >= 0 {
		return m.cfg.Networks.Release(ctx, rec.Slot)
	}
	for _, s := range m.cfg.Networks.Slots() {
		if s.Owner == rec.Instance {
			return m.cfg.Networks.Release(ctx, s.Index)
		}
	}
	return nil
}

func (m *Manager) workDir(rec journal.Record) string {
	return filepath.Join(m.cfg.InstancesDir, string(rec.Instance))
}

// undo walks the table backwards from line last. It stops at the first failure,
// because what follows relies on the processes being gone, and may be repeated.
func (m *Manager) undo(rec journal.Record, last int) error {
	table := createTable(rec.Spec)
	for i := min(last, len(table)-1); i >= 0; i-- {
		if table[i].undo == nil {
			continue
		}
		if err := m.undoOne(table[i], rec); err != nil {
			return fmt.Errorf("%s: %w", table[i].undoName, err)
		}
		m.step(table[i].undoName)
	}
	return nil
}

func (m *Manager) undoOne(s tableStep, rec journal.Record) error {
	// Cleanup outlives the call, and the agent's own stop, that caused it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.base), m.cfg.CleanupTimeout)
	defer cancel()
	return s.undo(m, ctx, rec)
}

// blame gives an untyped failure of a step its reason. A typed one, and one
// that is only the end of the context, is passed on.
func blame(err error, reason, message string) error {
	var typed *errs.Error
	if errors.As(err, &typed) || errors.Is(err, context.Canceled) {
		return err
	}
	return errs.Unavailable(reason, message).Because(err)
}

func newInstanceID() engine.InstanceID { return engine.InstanceID(randomHex()) }

func newSecret() string { return randomHex() + randomHex() }

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
