package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// How long requests wait.
const (
	// deleteWait: a delete answers within 10 s whether or not it is done.
	deleteWait = 9 * time.Second
	// DefaultTransitionWait is how long a request waits for a sandbox in a
	// transition that leads to running.
	DefaultTransitionWait = time.Minute
)

// maxRefusals bounds the explanation of a refused placement.
const maxRefusals = 20

// Service is the room's use cases.
type Service struct {
	store     Store
	scheduler scheduler.Scheduler
	templates Templates
	agents    Agents
	runner    *Runner
	watch     *Watch
	secret    keyring.Secret
	log       *slog.Logger
	wait      time.Duration
}

// NewService makes the room.
func NewService(store Store, sched scheduler.Scheduler, templates Templates, agents Agents, runner *Runner, watch *Watch, secret keyring.Secret, log *slog.Logger) *Service {
	return &Service{
		store: store, scheduler: sched, templates: templates, agents: agents, runner: runner, watch: watch, secret: secret, log: log,
		wait: DefaultTransitionWait,
	}
}

// SnapshotReceipt is what an accepted snapshot is known by.
type SnapshotReceipt struct {
	Snapshot  id.Snapshot  `json:"snapshot"`
	Sandbox   id.Sandbox   `json:"sandbox"`
	Operation id.Operation `json:"operation"`
}

// ForkReceipt is what an accepted fork is known by.
type ForkReceipt struct {
	Children []id.Sandbox `json:"children"`
}

// Receipt is what an accepted create is known by; a repeated one gets the same.
type Receipt struct {
	Sandbox   id.Sandbox   `json:"sandbox"`
	Operation id.Operation `json:"operation"`
}

var (
	errScopeWrite = errs.Forbidden("missing_scope", "This key may not use sandboxes. Make one with the scope `sandboxes`.")
	errScopeRead  = errs.Forbidden("missing_scope", "This key may not read sandboxes. Make one with the scope `sandboxes` or `read`.")
)

func writer(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeSandboxes) {
		return id.Team{}, errScopeWrite
	}
	return by.Team()
}

func reader(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeSandboxes, principal.ScopeRead) {
		return id.Team{}, errScopeRead
	}
	return by.Team()
}

// Create accepts a sandbox: once it returns, the sandbox exists, has its place
// on a host, and is being started whether or not anybody waits.
func (s *Service) Create(ctx context.Context, by principal.Principal, req CreateRequest) (Receipt, error) {
	team, err := writer(by)
	if err != nil {
		return Receipt{}, err
	}
	if err := req.Validate(); err != nil {
		return Receipt{}, err
	}
	n, err := s.planned(ctx, by, team, req)
	if err != nil {
		return Receipt{}, err
	}
	return s.placed(ctx, by, n)
}

// placed accepts what was planned.
func (s *Service) placed(ctx context.Context, by principal.Principal, n NewSandbox) (Receipt, error) {
	n.Want.Template, n.Want.Internet = n.Sandbox.TemplateID, n.Sandbox.Internet
	if n.Sandbox.FromState != nil {
		n.Want.State = *n.Sandbox.FromState
	}
	lease, reserved := s.runner.reserve()
	x, err := s.store.CreatePending(ctx, n, lease, s.placer(by, n.wants()...), func(h id.Host) audit.Entry {
		return audit.By(by).SandboxCreated(n.Sandbox.TeamID, n.Sandbox.ID, n.Sandbox.TemplateName, h)
	})
	if err != nil {
		s.unplaced(ctx, err)
		if reserved {
			s.runner.release()
		}
		return Receipt{}, err
	}
	op := n.Operation
	op.CreatedAt, op.DeadlineAt = x.CreatedAt, x.CreatedAt.Add(CreateLimit)
	if reserved {
		op.row, op.Params.ImageNew = &x, x.ImageNew
		s.runner.start(ctx, op)
	} else {
		s.runner.Wake()
	}
	return Receipt{Sandbox: x.ID, Operation: op.ID}, nil
}

func (s *Service) planned(ctx context.Context, by principal.Principal, team id.Team, req CreateRequest) (NewSandbox, error) {
	if req.Snapshot != "" {
		state, err := s.startable(ctx, team, req.Snapshot)
		if err != nil {
			return NewSandbox{}, err
		}
		return s.planFrom(ctx, by, team, req, state)
	}
	tpl, err := s.templates.Resolve(ctx, team, req.Template)
	if err != nil {
		return NewSandbox{}, err
	}
	if tpl.StateID != nil {
		return s.planOn(ctx, by, team, req, tpl)
	}
	return s.plan(by, team, req, tpl)
}

// planOn plans a sandbox that goes on from what its template was saved as.
func (s *Service) planOn(ctx context.Context, by principal.Principal, team id.Team, req CreateRequest, tpl template.Template) (NewSandbox, error) {
	state, err := s.store.State(ctx, *tpl.StateID)
	if err != nil {
		return NewSandbox{}, err
	}
	if state.Status != StateReady {
		return NewSandbox{}, StateGone(state)
	}
	n, err := s.planFrom(ctx, by, team, req, state)
	n.Sandbox.TemplateID, n.Sandbox.TemplateName = tpl.ID, tpl.Name
	return n, err
}

// planFrom fills in what the request leaves to the saved state. Restored memory
// needs at least what it was saved with, and the disk is as large as it was.
func (s *Service) planFrom(ctx context.Context, by principal.Principal, team id.Team, req CreateRequest, state Snapshot) (NewSandbox, error) {
	n, err := s.plan(by, team, req, template.Template{
		ID: state.TemplateID, Name: state.TemplateName, ImageDigest: artifact.Digest(state.ImageDigest), Engine: state.Engine,
		CPUMillis: state.CPUMillis, MemoryMB: state.MemoryMB, DiskMB: state.DiskMB,
	})
	if err != nil {
		return n, err
	}
	x := &n.Sandbox
	if x.DiskMB != state.DiskMB {
		return n, errs.Field("disk_mb", fmt.Sprintf("The snapshot's disk has %d MB; leave disk_mb out.", state.DiskMB))
	}
	if state.Memory && x.MemoryMB < state.MemoryMB {
		return n, errs.Field("memory_mb", fmt.Sprintf("The snapshot was saved with %d MB of memory; ask for no less.", state.MemoryMB))
	}
	if req.Internet == nil {
		x.Internet = state.Internet
	}
	env, err := openEnv(s.secret, state.ID.UUID(), state.EnvSealed)
	if err != nil {
		return n, err
	}
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, req.Env)
	if x.EnvSealed, err = sealedEnv(s.secret, x.ID.UUID(), env); err != nil {
		return n, err
	}
	x.FromState = &state.ID
	reach, err := s.store.Reach(ctx, state, team, id.Sandbox{})
	if err != nil {
		return n, err
	}
	n.Want = wanted(*x, state, reach)
	n.Want.Engine, n.Want.Labels = state.Engine, req.HostLabels
	n.DiskOnly = !state.Memory
	return n, nil
}

// plan fills in what the request leaves to the template.
func (s *Service) plan(by principal.Principal, team id.Team, req CreateRequest, tpl template.Template) (NewSandbox, error) {
	x := Sandbox{
		ID: id.NewSandbox(), TeamID: team, TemplateID: tpl.ID, TemplateName: tpl.Name, ImageDigest: string(tpl.ImageDigest),
		Status: StatusPending, Incarnation: 1, CPUMillis: tpl.CPUMillis, MemoryMB: tpl.MemoryMB, DiskMB: tpl.DiskMB, Internet: true,
		Metadata: req.Metadata, TimeoutSec: defaultTimeoutSec, OnTimeout: cmp.Or(req.OnTimeout, OnTimeoutPause), IdleTimeoutSec: req.IdleTimeoutSec, PausedTTLSec: req.PausedTTLSec, AutoResume: req.AutoResume,
		CheckpointIntervalSec: req.CheckpointIntervalSec, CreatedByType: string(by.Kind), CreatedByID: by.ActorID(), CreatedByName: by.ActorName(),
	}
	if req.VCPUs != nil {
		x.CPUMillis = int64(math.Ceil(*req.VCPUs * 1000))
	}
	override(&x.MemoryMB, req.MemoryMB)
	override(&x.DiskMB, req.DiskMB)
	override(&x.TimeoutSec, req.TimeoutSec)
	if req.Internet != nil {
		x.Internet = *req.Internet
	}
	engine := cmp.Or(req.Engine, scheduler.EngineAuto)
	if engine == scheduler.EngineAuto {
		engine = cmp.Or(tpl.Engine, scheduler.EngineAuto)
	} else if tpl.Engine != "" && tpl.Engine != scheduler.EngineAuto && tpl.Engine != engine {
		return NewSandbox{}, errs.Field("engine", fmt.Sprintf("The template demands engine %s.", tpl.Engine))
	}
	var err error
	env := maps.Clone(tpl.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, req.Env)
	if x.EnvSealed, err = sealedEnv(s.secret, x.ID.UUID(), env); err != nil {
		return NewSandbox{}, err
	}
	return NewSandbox{
		Sandbox:   x,
		Operation: Operation{ID: id.NewOperation(), SandboxID: x.ID, TeamID: team, Kind: KindCreate, Incarnation: 1, Attempts: 1},
		Want:      scheduler.Request{CPUMillis: x.CPUMillis, MemoryMB: x.MemoryMB, DiskMB: x.DiskMB, Engine: engine, Arch: tpl.Arch, Labels: req.HostLabels, Image: x.ImageDigest},
	}, nil
}

func override(to *int64, v *int64) {
	if v != nil {
		*to = *v
	}
}

// placer refuses with the reasons. Which hosts there are, and how full with
// other teams' work, is for platform admins and the log.
// Of several wants the first that can be met is.
func (s *Service) placer(by principal.Principal, wants ...scheduler.Request) Placer {
	return func(hosts []scheduler.HostView) (scheduler.Decision, error) {
		var d scheduler.Decision
		for _, want := range wants {
			if d = s.scheduler.Pick(want, hosts); d.Placed {
				return d, nil
			}
		}
		want := wants[len(wants)-1]
		message := "No host has room for this sandbox now. Try again, ask for less, or add a host."
		switch {
		case want.Hosts != nil && !slices.ContainsFunc(d.Refusals, func(r scheduler.Refusal) bool { return r.Reason != "not_there" }):
			return d, hostAway()
		case len(hosts) == 0:
			message = "No host is online. Wait for one, or add one with POST /v1/hosts."
		case want.Holders != nil:
			if e := unplaceable(d.Refusals); e != nil {
				return d, e
			}
			message = "No host that can start the saved state has room now. Try again, or end something there."
		}
		why := refusals(d.Refusals[:min(len(d.Refusals), maxRefusals)])
		refused := errs.Unavailable("no_capacity", message).After(5 * time.Second).Because(why)
		if by.IsAdmin {
			return d, refused.With("hosts", []scheduler.Refusal(why))
		}
		return d, refused.With("hosts", counted(d.Refusals))
	}
}

// refusals are why no host takes a sandbox, for the log.
type refusals []scheduler.Refusal

func (r refusals) Error() string {
	lines := make([]string, len(r))
	for i, x := range r {
		lines[i] = x.Host + ": " + x.Message
	}
	return strings.Join(lines, "; ")
}

// unplaced logs a placement that was refused, with what the caller may not know.
func (s *Service) unplaced(ctx context.Context, err error) {
	if errs.Is(err, "no_capacity") {
		s.log.InfoContext(ctx, "no host has room", "refusals", errors.Unwrap(errs.As(err)))
	}
}

// unplaceable is why no time will help a saved state to be started; nil when it
// is only a matter of room.
func unplaceable(refusals []scheduler.Refusal) error {
	var why *scheduler.Refusal
	for i, r := range refusals {
		switch r.Reason {
		case "cpu", "memory", "disk", "set_aside", "no_engine":
			return nil
		case "engine_version", "cpu_features", "arch":
			if why == nil {
				why = &refusals[i]
			}
		}
	}
	if why == nil {
		return nil
	}
	return errs.FailedPrecondition("state_incompatible", "No host can start the saved state as it is: "+why.Message+
		". It is kept; give a host what it needs, or boot from its disk alone: resume with memory false.").With("reason", why.Reason)
}

// counted is how many hosts refused for which reason.
func counted(refusals []scheduler.Refusal) map[string]int {
	out := map[string]int{}
	for _, r := range refusals {
		out[r.Reason]++
	}
	return out
}

// Await waits until an accepted create has come to an end and returns the
// sandbox, or why it failed. When ctx ends first the create goes on.
func (s *Service) Await(ctx context.Context, r Receipt) (Sandbox, error) {
	x, err := s.until(ctx, r.Sandbox, func(x Sandbox) bool { return x.Status != StatusPending && x.Status != StatusStarting })
	if err != nil {
		return x, err
	}
	if x.Status == StatusError {
		return x, errs.Unavailable("create_failed", "The sandbox could not be started: "+x.Error).
			With("sandbox_id", x.ID.String()).After(5 * time.Second)
	}
	return x, nil
}

// until returns the sandbox once done holds for it, or ctx's error.
func (s *Service) until(ctx context.Context, sandbox id.Sandbox, done func(Sandbox) bool) (Sandbox, error) {
	told, stop := s.watch.changes(sandbox)
	defer stop()
	x, err := s.store.Get(ctx, sandbox)
	if err != nil {
		return x, err
	}
	for !done(x) {
		select {
		case x = <-told:
		case <-ctx.Done():
			return x, errs.New(errs.CodeCanceled, "canceled", "The request ended before the sandbox was ready; it goes on. Read it with GET /v1/sandboxes/{id}.").
				Because(ctx.Err())
		}
	}
	return x, nil
}

// Get reads one of the caller's team.
func (s *Service) Get(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (Sandbox, error) {
	team, err := reader(by)
	if err != nil {
		return Sandbox{}, err
	}
	return s.owned(ctx, team, sandbox)
}

// Lookup reads a sandbox that a receipt of the caller names.
func (s *Service) Lookup(ctx context.Context, r Receipt) (Sandbox, error) {
	return s.store.Get(ctx, r.Sandbox)
}

func (s *Service) owned(ctx context.Context, team id.Team, sandbox id.Sandbox) (Sandbox, error) {
	x, err := s.store.Get(ctx, sandbox)
	if err == nil && (x.TeamID != team || x.BuildID != nil) {
		return Sandbox{}, ErrNotFound
	}
	return x, err
}

// List pages through the team's sandboxes, newest first unless f says otherwise.
func (s *Service) List(ctx context.Context, by principal.Principal, f Filter, p page.Request) (page.Page[Sandbox], error) {
	team, err := reader(by)
	if err != nil {
		return page.Page[Sandbox]{}, err
	}
	f.TeamID = team
	return s.store.List(ctx, f, p)
}

// Events pages through what happened to a sandbox, newest first.
func (s *Service) Events(ctx context.Context, by principal.Principal, sandbox id.Sandbox, p page.Request) (page.Page[Event], error) {
	if _, err := s.Get(ctx, by, sandbox); err != nil {
		return page.Page[Event]{}, err
	}
	return s.store.Events(ctx, sandbox, p)
}

// Delete ends a sandbox, whatever it is doing. It returns when the sandbox is
// gone or after deleteWait; from then on the end is recorded and will be
// finished. Repeating it is harmless.
func (s *Service) Delete(ctx context.Context, by principal.Principal, sandbox id.Sandbox) error {
	team, err := writer(by)
	if err != nil {
		return err
	}
	told, stop := s.watch.changes(sandbox)
	defer stop()
	x, err := s.end(ctx, by, sandbox, &team, EndDeleted)
	if err != nil {
		return err
	}
	patience := time.NewTimer(deleteWait)
	defer patience.Stop()
	for x.Status == StatusStopping {
		select {
		case x = <-told:
		case <-patience.C:
			return nil
		case <-ctx.Done():
			return nil // it goes on; nobody hears the answer
		}
	}
	return nil
}

// end begins a delete and has it driven.
func (s *Service) end(ctx context.Context, by principal.Principal, sandbox id.Sandbox, team *id.Team, reason string) (Sandbox, error) {
	var owner id.Team
	if team != nil {
		owner = *team
	} else {
		x, err := s.store.Get(ctx, sandbox)
		if err != nil {
			return x, err
		}
		owner = x.TeamID
	}
	lease, reserved := s.runner.reserve()
	x, op, err := s.store.BeginDelete(ctx, Delete{
		ID: sandbox, Team: team, Operation: id.NewOperation(), EndReason: reason, Expired: reason == EndTimeout, Paused: reason == EndPausedLong, Lease: lease,
		Audit: audit.By(by).SandboxDestroyed(owner, sandbox, reason),
	})
	if reserved && (err != nil || op.ID.IsZero()) {
		s.runner.release()
	}
	if err != nil {
		return x, err
	}
	s.watch.Publish(x)
	switch {
	case op.ID.IsZero():
	case reserved:
		s.runner.start(ctx, op)
	default:
		s.runner.Wake()
	}
	return x, nil
}
