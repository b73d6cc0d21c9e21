package rpcserver

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

func TestPausingOverTheWire(t *testing.T) {
	f := start(t, &fixture{})
	c := f.client(t, f.ca.ControlCertificate())
	sandbox, which := f.world.sandbox.UUID().String(), id.NewSnapshot()
	paused, err := c.PauseSandbox(t.Context(), &agentv1.PauseSandboxRequest{
		SandboxId: sandbox, Incarnation: 2, StateId: which.UUID().String(), Memory: true, IfIdleFor: durationpb.New(time.Minute), Reason: "idle",
	})
	if err != nil {
		t.Fatal(err)
	}
	if st := paused.State; st.StateId != which.UUID().String() || st.SandboxId != sandbox || st.Digest != "d" || st.SizeBytes != 7 || !st.Memory ||
		st.EngineVersion != "v" || len(st.CpuFeatures) != 1 || st.Resources.MemoryMb != 2 || st.Resources.DiskMb != 3 {
		t.Errorf("the state is %v", st)
	}
	if got := f.world.pause; got.Incarnation != 2 || got.State != which || !got.Memory || got.IfIdleFor != time.Minute || got.Reason != "idle" {
		t.Errorf("the manager was asked for %+v", got)
	}
	if saved, err := c.CheckpointSandbox(t.Context(), &agentv1.CheckpointSandboxRequest{SandboxId: sandbox, Incarnation: 2, StateId: which.UUID().String()}); err != nil || saved.State.StateId != which.UUID().String() {
		t.Errorf("checkpoint: %v, %v", saved, err)
	}
	if _, err := c.DeleteState(t.Context(), &agentv1.DeleteStateRequest{StateId: which.UUID().String()}); err != nil {
		t.Error(err)
	}
	all, err := c.PauseAll(t.Context(), &agentv1.PauseAllRequest{Reason: "drain"})
	if err != nil || len(all.Outcomes) != 2 || all.Outcomes[0].State == nil || all.Outcomes[1].State != nil || all.Outcomes[1].ErrorReason != "disk_full" {
		t.Errorf("pause all: %v, %v", all, err)
	}
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Microsecond)
	if _, err := c.SetDeadlines(t.Context(), &agentv1.SetDeadlinesRequest{Deadlines: []*agentv1.SetDeadlinesRequest_Deadline{
		{SandboxId: sandbox, Incarnation: 2, Deadline: timestamppb.New(until)}, {SandboxId: sandbox, Incarnation: 3},
	}}); err != nil {
		t.Fatal(err)
	}
	if got := f.world.deadlines; len(got) != 2 || !got[0].At.Equal(until) || !got[1].At.IsZero() || got[1].Incarnation != 3 {
		t.Errorf("deadlines %v", got)
	}
	if logs, err := c.SandboxLogs(t.Context(), &agentv1.SandboxLogsRequest{SandboxId: sandbox, Incarnation: 2}); err != nil || string(logs.Text) != "a\xff" || !logs.Truncated {
		t.Errorf("logs: %v, %v", logs, err)
	}
	inv, err := c.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil || len(inv.States) != 1 {
		t.Fatalf("inventory: %v, %v", inv, err)
	}
	if last := inv.Sandboxes[2]; last.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED || last.StateId == "" || last.PausedReason != "lost_contact" {
		t.Errorf("a paused sandbox is reported as %v", last)
	}
}

func TestResumeAndItsDeadlineOverTheWire(t *testing.T) {
	f := start(t, &fixture{})
	c := f.client(t, f.ca.ControlCertificate())
	which, until := id.NewSnapshot(), time.Now().Add(time.Minute).UTC()
	req := &agentv1.CreateSandboxRequest{
		SandboxId: id.NewSandbox().UUID().String(), Incarnation: 3, TeamId: id.NewTeam().UUID().String(), TemplateId: id.NewTemplate().UUID().String(),
		Engine: "fake", StateId: which.UUID().String(), Deadline: timestamppb.New(until),
	}
	if _, err := c.CreateSandbox(t.Context(), req); err != nil || f.world.spec.State != which || !f.world.spec.Deadline.Equal(until) {
		t.Errorf("the manager got %+v, %v", f.world.spec, err)
	}
	req.StateId = "x"
	if _, err := c.CreateSandbox(t.Context(), req); !errs.Is(rpcerr.FromConnect(err), "invalid_id") {
		t.Errorf("a malformed state id: %v", err)
	}
	f.world.err = errs.FailedPrecondition("not_idle", "Busy.").With("idle_ms", int64(1200))
	_, err := c.PauseSandbox(t.Context(), &agentv1.PauseSandboxRequest{SandboxId: req.SandboxId, Incarnation: 3, StateId: which.UUID().String()})
	if got := errs.As(rpcerr.FromConnect(err)); got.Reason != "not_idle" || got.Details["idle_ms"] == nil {
		t.Errorf("not idle: %v with %v", err, got.Details)
	}
}
