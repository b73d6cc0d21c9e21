package hostlink

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// inventoryLimit bounds an agent's look at its own host.
const inventoryLimit = 15 * time.Second

// Agents speaks to the hosts' agents in the words of the rooms.
type Agents struct{ pool *HostClientPool }

// NewAgents uses the pool.
func NewAgents(pool *HostClientPool) *Agents { return &Agents{pool: pool} }

var (
	_ sandbox.Agents   = (*Agents)(nil)
	_ host.Agents      = (*Agents)(nil)
	_ template.Builder = (*Agents)(nil)
)

// failure gives an agent's error its class, and every "not now" a time to try
// again.
func failure(err error) error {
	e := errs.As(rpcerr.FromConnect(err))
	if e.Code == errs.CodeUnavailable && e.RetryAfter == 0 {
		e = e.After(retryAfter)
	}
	return e
}

// Hello implements host.Agents.
func (a *Agents) Hello(ctx context.Context, h host.Ref) (int64, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return 0, err
	}
	res, err := c.Hello(ctx, &agentv1.HelloRequest{})
	if err != nil {
		return 0, failure(err)
	}
	if res.GetHostId() != h.ID.UUID().String() {
		return 0, fmt.Errorf("hostlink: the agent at %s calls itself %q", h.Address, res.GetHostId())
	}
	return int64(res.GetGeneration()), nil
}

// CreateSandbox implements sandbox.Agents.
func (a *Agents) CreateSandbox(ctx context.Context, h host.Ref, l sandbox.Launch) (sandbox.Launched, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Launched{}, err
	}
	x := l.Sandbox
	req := &agentv1.CreateSandboxRequest{
		SandboxId: x.ID.UUID().String(), Incarnation: uint64(x.Incarnation), TeamId: x.TeamID.UUID().String(),
		TemplateId: x.TemplateID.UUID().String(), Engine: x.Engine,
		Image: &agentv1.Image{Digest: x.ImageDigest, SizeBytes: l.Template.ImageSizeBytes, From: source(l.ImageFrom)},
		Resources: &agentv1.Resources{
			CpuMillis: uint32(x.CPUMillis), MemoryMb: uint32(x.MemoryMB), DiskMb: uint32(x.DiskMB), MaxProcesses: uint32(l.MaxProcesses),
		},
		Env: l.Env, Hostname: Hostname(x.ID), AccessToken: l.AccessToken,
		DefaultUser: l.Template.DefaultUser, DefaultWorkdir: l.Template.DefaultWorkdir, Internet: x.Internet,
		DiskOnly: l.DiskOnly,
	}
	if l.State != nil {
		req.StateId = l.State.UUID().String()
	}
	if !l.Deadline.IsZero() {
		req.Deadline = timestamppb.New(l.Deadline)
	}
	res, err := c.CreateSandbox(ctx, req)
	if err != nil {
		return sandbox.Launched{}, failure(err)
	}
	c.Greet(x.ID, x.Incarnation)
	return sandbox.Launched{EngineVersion: res.GetSandbox().GetEngineVersion()}, nil
}

// Hostname is what a sandbox calls itself: short, and unlike others.
func Hostname(x id.Sandbox) string {
	u := x.UUID().String()
	return "sb-" + u[len(u)-12:]
}

// DestroySandbox implements sandbox.Agents.
func (a *Agents) DestroySandbox(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64, reason string) error {
	c, err := a.pool.Client(h)
	if err != nil {
		return err
	}
	if _, err := c.DestroySandbox(ctx, &agentv1.DestroySandboxRequest{
		SandboxId: x.UUID().String(), Incarnation: uint64(incarnation), Reason: reason,
	}); err != nil {
		return failure(err)
	}
	return nil
}

// Inventory implements sandbox.Agents. An instance whose id is no UUID is
// something the agent's journal does not know either; it is left out.
func (a *Agents) Inventory(ctx context.Context, h host.Ref) (sandbox.Inventory, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Inventory{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, inventoryLimit)
	defer cancel()
	res, err := c.Inventory(ctx, &agentv1.InventoryRequest{})
	if err != nil {
		return sandbox.Inventory{}, failure(err)
	}
	out := sandbox.Inventory{Generation: int64(res.GetGeneration())}
	for _, r := range res.GetSandboxes() {
		x, err := id.Sandbox{}.ParseBare(r.GetSandboxId())
		if err != nil {
			continue
		}
		out.Instances = append(out.Instances, sandbox.Instance{
			Sandbox: x, Incarnation: int64(r.GetIncarnation()), Phase: phase(r.GetPhase()), EndReason: r.GetEndReason(), Unknown: r.GetUnknown(),
			State: stateID(r.GetStateId()), PausedReason: r.GetPausedReason(),
		})
	}
	for _, st := range res.GetStates() {
		x, err := id.Sandbox{}.ParseBare(st.GetSandboxId())
		if state := stateID(st.GetStateId()); err == nil && !state.IsZero() && st.GetDigest() != "" {
			out.States = append(out.States, sandbox.Held{ID: state, Sandbox: x, Saved: saved(st)})
		}
	}
	return out, nil
}

// stateID is the zero one for what is no id.
func stateID(s string) id.Snapshot {
	state, err := id.Snapshot{}.ParseBare(s)
	if err != nil {
		return id.Snapshot{}
	}
	return state
}

func saved(st *agentv1.State) sandbox.Saved {
	return sandbox.Saved{
		EngineVersion: st.GetEngineVersion(), CPUFeatures: st.GetCpuFeatures(), Memory: st.GetMemory(), SizeBytes: st.GetSizeBytes(), Digest: st.GetDigest(),
	}
}

func phase(p agentv1.SandboxPhase) sandbox.Phase {
	switch p {
	case agentv1.SandboxPhase_SANDBOX_PHASE_CREATING:
		return sandbox.PhaseCreating
	case agentv1.SandboxPhase_SANDBOX_PHASE_DESTROYING:
		return sandbox.PhaseDestroying
	case agentv1.SandboxPhase_SANDBOX_PHASE_EXITED:
		return sandbox.PhaseExited
	case agentv1.SandboxPhase_SANDBOX_PHASE_PAUSING:
		return sandbox.PhasePausing
	case agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED:
		return sandbox.PhasePaused
	default:
		return sandbox.PhaseRunning // what we do not understand is alive
	}
}

// Forget implements sandbox.Agents.
func (a *Agents) Forget(h host.Ref, x id.Sandbox, incarnation int64) {
	a.pool.forget(h.ID, x, incarnation)
}

// forget cuts the connections to an incarnation that has ended, if there are
// any; it makes no client for it.
func (p *HostClientPool) forget(h id.Host, x id.Sandbox, incarnation int64) {
	p.mu.Lock()
	c := p.clients[h]
	p.mu.Unlock()
	if c != nil {
		c.Forget(x, incarnation)
	}
}

// BuildBase implements template.Builder.
func (a *Agents) BuildBase(ctx context.Context, h host.Ref, to artifact.Source, log func(line string) error) (template.Built, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return template.Built{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.BuildBase(ctx, &agentv1.BuildBaseRequest{To: source(to)})
	if err != nil {
		return template.Built{}, failure(err)
	}
	defer stream.Close()
	for stream.Receive() {
		switch m := stream.Msg().GetMessage().(type) {
		case *agentv1.BuildBaseResponse_Log:
			if err := log(m.Log); err != nil {
				return template.Built{}, err
			}
		case *agentv1.BuildBaseResponse_Result:
			return template.Built{
				Digest: artifact.Digest(m.Result.GetDigest()), SizeBytes: m.Result.GetSizeBytes(),
				ManifestDigest: artifact.Digest(m.Result.GetManifestDigest()),
			}, nil
		}
	}
	if err := stream.Err(); err != nil {
		return template.Built{}, failure(err)
	}
	return template.Built{}, errs.Unavailable("build_broken", "The build ended without a result. Start it again.").After(retryAfter)
}
