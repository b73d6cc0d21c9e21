package rpcserver

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// names are what a command about saving a sandbox goes by.
func names(sandboxID, stateID string) (sandbox id.Sandbox, which id.Snapshot, err error) {
	if sandbox, err = (id.Sandbox{}).ParseBare(sandboxID); err != nil {
		return sandbox, which, err
	}
	which, err = id.Snapshot{}.ParseBare(stateID)
	return sandbox, which, err
}

func (s *service) PauseSandbox(ctx context.Context, in *agentv1.PauseSandboxRequest) (*agentv1.PauseSandboxResponse, error) {
	sandbox, which, err := names(in.GetSandboxId(), in.GetStateId())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	st, err := s.sandboxes.Pause(ctx, manager.PauseRequest{
		Sandbox: sandbox, Incarnation: in.GetIncarnation(), State: which, Memory: in.GetMemory(),
		IfIdleFor: in.GetIfIdleFor().AsDuration(), Reason: in.GetReason(),
	})
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.PauseSandboxResponse{State: stateOf(st)}, nil
}

func (s *service) CheckpointSandbox(ctx context.Context, in *agentv1.CheckpointSandboxRequest) (*agentv1.CheckpointSandboxResponse, error) {
	sandbox, which, err := names(in.GetSandboxId(), in.GetStateId())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	st, err := s.sandboxes.Checkpoint(ctx, sandbox, in.GetIncarnation(), which, in.GetMemory())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.CheckpointSandboxResponse{State: stateOf(st)}, nil
}

func (s *service) DeleteState(ctx context.Context, in *agentv1.DeleteStateRequest) (*agentv1.DeleteStateResponse, error) {
	which, err := id.Snapshot{}.ParseBare(in.GetStateId())
	if err == nil {
		err = s.carrier.Drop(ctx, which) // it is not waited for
	}
	if err == nil {
		err = s.sandboxes.DeleteState(ctx, which)
	}
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.DeleteStateResponse{}, nil
}

func (s *service) PauseAll(ctx context.Context, in *agentv1.PauseAllRequest) (*agentv1.PauseAllResponse, error) {
	out := &agentv1.PauseAllResponse{}
	for _, o := range s.sandboxes.PauseAll(ctx, in.GetReason()) {
		wire := &agentv1.PauseAllResponse_Outcome{SandboxId: o.Sandbox.UUID().String(), Incarnation: o.Incarnation}
		if o.Err != nil {
			e := errs.As(o.Err)
			wire.ErrorReason, wire.ErrorMessage = e.Reason, e.Message
		} else {
			wire.State = stateOf(o.State)
		}
		out.Outcomes = append(out.Outcomes, wire)
	}
	return out, nil
}

func (s *service) SetDeadlines(ctx context.Context, in *agentv1.SetDeadlinesRequest) (*agentv1.SetDeadlinesResponse, error) {
	list := make([]journal.Deadline, 0, len(in.GetDeadlines()))
	for _, d := range in.GetDeadlines() {
		sandbox, err := id.Sandbox{}.ParseBare(d.GetSandboxId())
		if err != nil {
			return nil, rpcerr.ToConnect(err)
		}
		list = append(list, journal.Deadline{Sandbox: sandbox, Incarnation: d.GetIncarnation(), At: timeOf(d.GetDeadline())})
	}
	if err := s.sandboxes.SetDeadlines(ctx, list); err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.SetDeadlinesResponse{}, nil
}

func (s *service) SandboxLogs(ctx context.Context, in *agentv1.SandboxLogsRequest) (*agentv1.SandboxLogsResponse, error) {
	sandbox, err := id.Sandbox{}.ParseBare(in.GetSandboxId())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	text, truncated, err := s.sandboxes.Logs(ctx, sandbox, in.GetIncarnation())
	if err != nil {
		return nil, rpcerr.ToConnect(err)
	}
	return &agentv1.SandboxLogsResponse{Text: text, Truncated: truncated}, nil
}

// timeOf is the zero time where none was sent.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func stateOf(st state.State) *agentv1.State {
	return &agentv1.State{
		StateId: st.ID.UUID().String(), SandboxId: st.Sandbox.UUID().String(), Engine: st.Engine,
		EngineVersion: st.EngineVersion, CpuFeatures: st.CPUFeatures, ImageDigest: st.ImageDigest,
		Memory: st.Memory, SizeBytes: st.SizeBytes, Digest: st.Digest, CreatedAt: timestamppb.New(st.CreatedAt),
		Resources: &agentv1.Resources{
			CpuMillis: uint32(st.Resources.CPUMillis), MemoryMb: uint32(st.Resources.MemoryBytes / mib), //nolint:gosec // were made from such
			DiskMb: uint32(st.Resources.DiskBytes / mib), MaxProcesses: uint32(st.Resources.MaxProcesses), //nolint:gosec // as above
		},
	}
}
