package hostlink

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// maxLogs bounds what is passed on of a sandbox's console, in bytes.
const maxLogs = 1 << 20

// checked refuses a state that an agent calls complete and that is not what was
// asked for.
func checked(st *agentv1.State, p sandbox.Pause) (sandbox.Saved, error) {
	if st.GetDigest() == "" || stateID(st.GetStateId()) != p.State || st.GetMemory() && !p.Memory {
		return sandbox.Saved{}, errs.Internal(errors.New("hostlink: the agent answers with another state than it was to save"))
	}
	return saved(st), nil
}

// PauseSandbox implements sandbox.Agents.
func (a *Agents) PauseSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Saved{}, err
	}
	req := &agentv1.PauseSandboxRequest{
		SandboxId: p.Sandbox.UUID().String(), Incarnation: uint64(p.Incarnation), StateId: p.State.UUID().String(), Memory: p.Memory, Reason: p.Reason,
	}
	if p.IfIdleFor > 0 {
		req.IfIdleFor = durationpb.New(p.IfIdleFor)
	}
	res, err := c.PauseSandbox(ctx, req)
	if err != nil {
		return sandbox.Saved{}, failure(err)
	}
	return checked(res.GetState(), p)
}

// CheckpointSandbox implements sandbox.Agents.
func (a *Agents) CheckpointSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Saved{}, err
	}
	res, err := c.CheckpointSandbox(ctx, &agentv1.CheckpointSandboxRequest{
		SandboxId: p.Sandbox.UUID().String(), Incarnation: uint64(p.Incarnation), StateId: p.State.UUID().String(), Memory: p.Memory,
	})
	if err != nil {
		return sandbox.Saved{}, failure(err)
	}
	return checked(res.GetState(), p)
}

// DeleteState implements sandbox.Agents.
func (a *Agents) DeleteState(ctx context.Context, h host.Ref, state id.Snapshot) error {
	c, err := a.pool.Client(h)
	if err != nil {
		return err
	}
	if _, err := c.DeleteState(ctx, &agentv1.DeleteStateRequest{StateId: state.UUID().String()}); err != nil {
		return failure(err)
	}
	return nil
}

// SetDeadlines implements sandbox.Agents.
func (a *Agents) SetDeadlines(ctx context.Context, h host.Ref, deadlines []sandbox.Deadline) error {
	c, err := a.pool.Client(h)
	if err != nil {
		return err
	}
	req := &agentv1.SetDeadlinesRequest{Deadlines: make([]*agentv1.SetDeadlinesRequest_Deadline, len(deadlines))}
	for i, d := range deadlines {
		req.Deadlines[i] = &agentv1.SetDeadlinesRequest_Deadline{
			SandboxId: d.Sandbox.UUID().String(), Incarnation: uint64(d.Incarnation), Deadline: timestamppb.New(d.At),
		}
	}
	if _, err := c.SetDeadlines(ctx, req); err != nil {
		return failure(err)
	}
	return nil
}

// Stats implements sandbox.Agents.
func (a *Agents) Stats(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64) (sandbox.Stats, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Stats{}, err
	}
	res, err := c.SandboxStats(ctx, &agentv1.SandboxStatsRequest{SandboxId: x.UUID().String(), Incarnation: uint64(incarnation)})
	if err != nil {
		return sandbox.Stats{}, failure(err)
	}
	return sandbox.Stats{
		CPUTime: res.GetCpuTime().AsDuration(), MemoryBytes: res.GetMemoryBytes(), MemoryLimitBytes: res.GetMemoryLimitBytes(),
		DiskBytes: res.GetDiskBytes(), DiskLimitBytes: res.GetDiskLimitBytes(), Processes: int64(res.GetProcesses()), Idle: res.GetIdle().AsDuration(),
	}, nil
}

// Logs implements sandbox.Agents. What a console says is anything; it is made
// text here.
func (a *Agents) Logs(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64) (sandbox.Logs, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return sandbox.Logs{}, err
	}
	res, err := c.SandboxLogs(ctx, &agentv1.SandboxLogsRequest{SandboxId: x.UUID().String(), Incarnation: uint64(incarnation)})
	if err != nil {
		return sandbox.Logs{}, failure(err)
	}
	text, cut := res.GetText(), res.GetTruncated()
	if len(text) > maxLogs {
		text, cut = text[len(text)-maxLogs:], true
	}
	return sandbox.Logs{Text: strings.ToValidUTF8(string(text), "\uFFFD"), Truncated: cut}, nil
}
