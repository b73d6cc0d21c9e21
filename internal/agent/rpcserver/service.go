package rpcserver

import (
	"context"
	"errors"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

const mib = 1 << 20

// maxEnv bounds the environment of a sandbox, names and values together.
const maxEnv = 256 << 10

// Sandboxes is what the service asks of the manager.
type Sandboxes interface {
	Create(ctx context.Context, spec journal.Spec) (manager.Report, error)
	Destroy(ctx context.Context, sandbox id.Sandbox, incarnation uint64, reason string) error
	Inventory(ctx context.Context) (manager.Inventory, error)
	Stats(ctx context.Context, sandbox id.Sandbox, incarnation uint64) (manager.Stats, error)
	Pause(ctx context.Context, req manager.PauseRequest) (state.State, error)
	Checkpoint(ctx context.Context, sandbox id.Sandbox, incarnation uint64, which id.Snapshot, memory bool) (state.State, error)
	DeleteState(ctx context.Context, which id.Snapshot) error
	KeepWarm(targets []manager.WarmTarget) []manager.WarmKept
	PauseAll(ctx context.Context, reason string) []manager.Outcome
	SetDeadlines(ctx context.Context, list []journal.Deadline) error
	Logs(ctx context.Context, sandbox id.Sandbox, incarnation uint64) (text []byte, truncated bool, err error)
	Dialer
}

// Built is a base template that was built and uploaded.
type Built struct {
	Digest, ManifestDigest string
	SizeBytes              int64
}

// BuildBase builds and uploads the base template and tells log what happens.
type BuildBase func(ctx context.Context, uploadURL string, log func(line string) error) (Built, error)

// Facts are what Hello answers.
type Facts struct {
	HostID     id.Host
	Version    string
	Generation uint64
}

type service struct {
	agentv1connect.UnimplementedAgentServiceHandler

	facts     Facts
	sandboxes Sandboxes
	carrier   Carrier
	imager    Imager
	build     BuildBase
	building  sync.Mutex
}

func (s *service) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{HostId: s.facts.HostID.UUID().String(), Version: s.facts.Version, Generation: s.facts.Generation}, nil
}

func (s *service) CreateSandbox(ctx context.Context, in *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	spec, err := specOf(in)
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	rep, err := s.sandboxes.Create(ctx, spec)
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.CreateSandboxResponse{Sandbox: reportOf(rep)}, nil
}

func specOf(in *agentv1.CreateSandboxRequest) (journal.Spec, error) {
	sandbox, err := id.Sandbox{}.ParseBare(in.GetSandboxId())
	if err != nil {
		return journal.Spec{}, err
	}
	team, err := id.Team{}.ParseBare(in.GetTeamId())
	if err != nil {
		return journal.Spec{}, err
	}
	template, err := id.Template{}.ParseBare(in.GetTemplateId())
	if err != nil {
		return journal.Spec{}, err
	}
	size := 0
	for k, v := range in.GetEnv() {
		size += len(k) + len(v)
	}
	if size > maxEnv {
		return journal.Spec{}, errs.Field("env", "The environment may have 256 KiB.")
	}
	var from id.Snapshot
	if in.GetStateId() != "" {
		if from, err = (id.Snapshot{}).ParseBare(in.GetStateId()); err != nil {
			return journal.Spec{}, err
		}
	}
	return journal.Spec{
		State: from, DiskOnly: in.GetDiskOnly(), Deadline: timeOf(in.GetDeadline()),
		Sandbox: sandbox, Incarnation: in.GetIncarnation(), Team: team, Template: template, Engine: in.GetEngine(),
		Image: imageIn(in.GetImage()), Resources: resourcesIn(in.GetResources()),
		Env: in.GetEnv(), Hostname: in.GetHostname(), AccessToken: in.GetAccessToken(),
		DefaultUser: in.GetDefaultUser(), DefaultWorkdir: in.GetDefaultWorkdir(), Internet: in.GetInternet(),
	}, nil
}

func reportOf(r manager.Report) *agentv1.SandboxReport {
	out := &agentv1.SandboxReport{
		Incarnation: r.Incarnation, Phase: phaseOf(r.Phase), InstanceId: string(r.Instance),
		Engine: r.Engine, EngineVersion: r.EngineVersion, EndReason: r.EndReason, Unknown: r.Unknown,
		PausedReason: r.PausedReason,
	}
	if !r.State.IsZero() {
		out.StateId = r.State.UUID().String()
	}
	if !r.Sandbox.IsZero() {
		out.SandboxId = r.Sandbox.UUID().String()
	}
	if !r.StartedAt.IsZero() {
		out.StartedAt = timestamppb.New(r.StartedAt)
	}
	return out
}

func phaseOf(p journal.Phase) agentv1.SandboxPhase {
	switch p {
	case journal.PhaseCreating:
		return agentv1.SandboxPhase_SANDBOX_PHASE_CREATING
	case journal.PhaseRunning:
		return agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING
	case journal.PhaseDestroying:
		return agentv1.SandboxPhase_SANDBOX_PHASE_DESTROYING
	case journal.PhaseExited:
		return agentv1.SandboxPhase_SANDBOX_PHASE_EXITED
	case journal.PhasePausing:
		return agentv1.SandboxPhase_SANDBOX_PHASE_PAUSING
	case journal.PhasePaused:
		return agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED
	}
	return agentv1.SandboxPhase_SANDBOX_PHASE_UNSPECIFIED
}

func (s *service) DestroySandbox(ctx context.Context, in *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	sandbox, err := id.Sandbox{}.ParseBare(in.GetSandboxId())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	if err := s.sandboxes.Destroy(ctx, sandbox, in.GetIncarnation(), in.GetReason()); err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.DestroySandboxResponse{}, nil
}

func (s *service) Inventory(ctx context.Context, _ *agentv1.InventoryRequest) (*agentv1.InventoryResponse, error) {
	inv, err := s.sandboxes.Inventory(ctx)
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	out := &agentv1.InventoryResponse{
		Generation: s.facts.Generation, TakenAt: timestamppb.New(inv.TakenAt),
		Sandboxes: make([]*agentv1.SandboxReport, len(inv.Sandboxes)),
	}
	for n, r := range inv.Sandboxes {
		out.Sandboxes[n] = reportOf(r)
	}
	for _, st := range inv.States {
		out.States = append(out.States, stateOf(st))
	}
	for _, w := range inv.Warm {
		out.Warm = append(out.Warm, &agentv1.WarmReport{InstanceId: string(w.Instance), Key: w.Key, Ready: w.Ready})
	}
	return out, nil
}

func (s *service) SandboxStats(ctx context.Context, in *agentv1.SandboxStatsRequest) (*agentv1.SandboxStatsResponse, error) {
	sandbox, err := id.Sandbox{}.ParseBare(in.GetSandboxId())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	st, err := s.sandboxes.Stats(ctx, sandbox, in.GetIncarnation())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	out := &agentv1.SandboxStatsResponse{
		CpuTime: durationpb.New(st.CPUTime), MemoryBytes: st.MemoryBytes, MemoryLimitBytes: st.Limits.MemoryBytes,
		DiskBytes: st.DiskBytes, DiskLimitBytes: st.Limits.DiskBytes, Processes: uint32(max(st.Processes, 0)), //nolint:gosec // not negative
	}
	if st.Idle >= 0 {
		out.Idle = durationpb.New(st.Idle)
	}
	return out, nil
}

// BuildBase builds once at a time; a second call is told to come back.
func (s *service) BuildBase(ctx context.Context, in *agentv1.BuildBaseRequest, out *connect.ServerStream[agentv1.BuildBaseResponse]) error {
	if in.GetTo().GetUrl() == "" {
		return rpcerr.ToConnect(errs.Field("to.url", "Say where the template is to be stored."))
	}
	if !s.building.TryLock() {
		return rpcerr.ToConnect(errs.Exhausted("build_in_progress", "This host is already building a template. Try again when it is done."))
	}
	defer s.building.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // the stream takes one message at a time
	built, err := s.build(ctx, in.GetTo().GetUrl(), func(line string) error {
		mu.Lock()
		defer mu.Unlock()
		err := out.Send(&agentv1.BuildBaseResponse{Message: &agentv1.BuildBaseResponse_Log{Log: line}})
		if err != nil {
			cancel(err)
		}
		return err
	})
	if err != nil {
		var typed *errs.Error
		if !errors.As(err, &typed) && ctx.Err() == nil {
			err = errs.Unavailable("build_failed", "The template could not be built: "+err.Error()).Because(err)
		}
		return rpcerr.ToConnect(err)
	}
	mu.Lock()
	defer mu.Unlock()
	return out.Send(&agentv1.BuildBaseResponse{Message: &agentv1.BuildBaseResponse_Result{Result: &agentv1.BuiltImage{
		Digest: built.Digest, SizeBytes: built.SizeBytes, ManifestDigest: built.ManifestDigest,
	}}})
}
