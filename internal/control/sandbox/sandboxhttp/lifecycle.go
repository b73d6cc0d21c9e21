package sandboxhttp

import (
	"context"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// PauseSandbox implements pauseSandbox.
func (h *Handlers) PauseSandbox(ctx context.Context, req restapi.OptPauseSandboxRequest, params restapi.PauseSandboxParams) (restapi.PauseSandboxRes, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	wait := params.Wait.Value != restapi.PauseSandboxWait0
	x, err := h.sandboxes.Pause(ctx, principal.From(ctx), sandboxID, req.Value.Memory.Or(true), wait)
	if err != nil {
		return nil, err
	}
	if !wait {
		out := restapi.PauseSandboxAccepted(toSandbox(x))
		return &out, nil
	}
	out := restapi.PauseSandboxOK(toSandbox(x))
	return &out, nil
}

// ResumeSandbox implements resumeSandbox.
func (h *Handlers) ResumeSandbox(ctx context.Context, req restapi.OptResumeSandboxRequest, params restapi.ResumeSandboxParams) (restapi.ResumeSandboxRes, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	wait := params.Wait.Value != restapi.ResumeSandboxWait0
	x, err := h.sandboxes.Resume(ctx, principal.From(ctx), sandboxID, wide(req.Value.TimeoutSec), !req.Value.Memory.Or(true), wait)
	if err != nil {
		return nil, err
	}
	if !wait {
		out := restapi.ResumeSandboxAccepted(toSandbox(x))
		return &out, nil
	}
	out := restapi.ResumeSandboxOK(toSandbox(x))
	return &out, nil
}

// RecoverSandbox implements recoverSandbox.
func (h *Handlers) RecoverSandbox(ctx context.Context, params restapi.RecoverSandboxParams) (*restapi.Sandbox, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	x, err := h.sandboxes.Recover(ctx, principal.From(ctx), sandboxID)
	if err != nil {
		return nil, err
	}
	out := toSandbox(x)
	return &out, nil
}

// ForkSandbox implements forkSandbox. A repeated fork waits for the copies of the
// first one.
func (h *Handlers) ForkSandbox(ctx context.Context, req *restapi.ForkSandboxRequest, params restapi.ForkSandboxParams) (restapi.ForkSandboxRes, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	receipt, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (sandbox.ForkReceipt, error) {
		return h.sandboxes.Fork(ctx, principal.From(ctx), sandboxID, sandbox.ForkRequest{
			Count: int64(req.Count.Or(1)), TimeoutSec: wide(req.TimeoutSec), Metadata: req.Metadata.Value,
		})
	})
	if err != nil {
		return nil, err
	}
	if params.Wait.Value == restapi.ForkSandboxWait0 {
		made, err := h.sandboxes.LookupFork(ctx, receipt)
		if err != nil {
			return nil, err
		}
		return &restapi.ForkSandboxAccepted{Items: toSandboxes(made)}, nil
	}
	made, err := h.sandboxes.AwaitFork(ctx, receipt)
	if err != nil {
		return nil, err
	}
	return &restapi.ForkSandboxCreated{Items: toSandboxes(made)}, nil
}

func toSandboxes(list []sandbox.Sandbox) []restapi.Sandbox {
	out := make([]restapi.Sandbox, len(list))
	for i, x := range list {
		out[i] = toSandbox(x)
	}
	return out
}

// SetSandboxTimeout implements setSandboxTimeout.
func (h *Handlers) SetSandboxTimeout(ctx context.Context, req *restapi.TimeoutRequest, params restapi.SetSandboxTimeoutParams) (*restapi.Sandbox, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	x, err := h.sandboxes.SetTimeout(ctx, principal.From(ctx), sandboxID, int64(req.TimeoutSec))
	if err != nil {
		return nil, err
	}
	out := toSandbox(x)
	return &out, nil
}

// PingSandbox implements pingSandbox.
func (h *Handlers) PingSandbox(ctx context.Context, params restapi.PingSandboxParams) error {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return err
	}
	return h.sandboxes.Ping(ctx, principal.From(ctx), sandboxID)
}

// GetSandboxMetrics implements getSandboxMetrics.
func (h *Handlers) GetSandboxMetrics(ctx context.Context, params restapi.GetSandboxMetricsParams) (*restapi.SandboxMetrics, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	m, err := h.sandboxes.Metrics(ctx, principal.From(ctx), sandboxID, params.Since.Or(time.Now().Add(-time.Hour)))
	if err != nil {
		return nil, err
	}
	out := &restapi.SandboxMetrics{
		Vcpus: float64(m.Sandbox.CPUMillis) / 1000, MemoryLimitBytes: m.Sandbox.MemoryMB << 20, DiskLimitBytes: m.Sandbox.DiskMB << 20,
		Samples: make([]restapi.SandboxSample, len(m.Samples)),
	}
	for i, f := range m.Samples {
		out.Samples[i] = toSample(f)
	}
	if m.Live != nil {
		out.Live.SetTo(toSample(*m.Live))
	}
	if m.Idle != nil {
		out.IdleSec.SetTo(m.Idle.Seconds())
	}
	return out, nil
}

func toSample(f sandbox.Figures) restapi.SandboxSample {
	return restapi.SandboxSample{
		At: f.At.UTC().Truncate(time.Microsecond), VcpusUsed: float64(f.CPUMillis) / 1000, MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		Processes: int(f.Processes),
	}
}

// GetSandboxLogs implements getSandboxLogs.
func (h *Handlers) GetSandboxLogs(ctx context.Context, params restapi.GetSandboxLogsParams) (*restapi.SandboxLogs, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	l, err := h.sandboxes.Logs(ctx, principal.From(ctx), sandboxID)
	if err != nil {
		return nil, err
	}
	return &restapi.SandboxLogs{Text: l.Text, Truncated: l.Truncated}, nil
}

// ListSnapshots implements listSnapshots.
func (h *Handlers) ListSnapshots(ctx context.Context, params restapi.ListSnapshotsParams) (*restapi.SnapshotList, error) {
	p, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	f := sandbox.StateFilter{Kind: sandbox.StateKind(params.Type.Or(restapi.ListSnapshotsTypeSnapshot))}
	if params.Type.Value == restapi.ListSnapshotsTypeAll {
		f.Kind = ""
	}
	got, err := h.sandboxes.ListSnapshots(ctx, principal.From(ctx), f, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.SnapshotList{Items: make([]restapi.Snapshot, len(got.Items)), NextCursor: optString(got.NextCursor)}
	for i, x := range got.Items {
		out.Items[i] = toSnapshot(x)
	}
	return out, nil
}

// CreateSnapshot implements createSnapshot. A repeated one waits for the first.
func (h *Handlers) CreateSnapshot(ctx context.Context, req *restapi.CreateSnapshotRequest, params restapi.CreateSnapshotParams) (restapi.CreateSnapshotRes, error) {
	sandboxID, err := id.ParseSandbox(req.SandboxID)
	if err != nil {
		return nil, errs.Field("sandbox_id", errs.As(err).Message)
	}
	receipt, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (sandbox.SnapshotReceipt, error) {
		return h.sandboxes.Snapshot(ctx, principal.From(ctx), sandbox.SnapshotRequest{
			Sandbox: sandboxID, Name: req.Name, Memory: req.Memory.Or(true), Overwrite: req.Overwrite.Value,
		})
	})
	if err != nil {
		return nil, err
	}
	if params.Wait.Value == restapi.CreateSnapshotWait0 {
		made, err := h.sandboxes.LookupSnapshot(ctx, receipt)
		if err != nil {
			return nil, err
		}
		out := restapi.CreateSnapshotAccepted(toSnapshot(made))
		return &out, nil
	}
	made, err := h.sandboxes.AwaitSnapshot(ctx, receipt)
	if err != nil {
		return nil, err
	}
	out := restapi.CreateSnapshotCreated(toSnapshot(made))
	return &out, nil
}

// GetSnapshot implements getSnapshot.
func (h *Handlers) GetSnapshot(ctx context.Context, params restapi.GetSnapshotParams) (*restapi.Snapshot, error) {
	x, err := h.sandboxes.GetSnapshot(ctx, principal.From(ctx), params.Name)
	if err != nil {
		return nil, err
	}
	out := toSnapshot(x)
	return &out, nil
}

// DeleteSnapshot implements deleteSnapshot.
func (h *Handlers) DeleteSnapshot(ctx context.Context, params restapi.DeleteSnapshotParams) error {
	return h.sandboxes.DeleteSnapshot(ctx, principal.From(ctx), params.Name)
}

func toSnapshot(x sandbox.Snapshot) restapi.Snapshot {
	status := x.Status
	if status == sandbox.StateDeleted {
		status = sandbox.StateDeleting // to whoever asked for it, it is going
	}
	out := restapi.Snapshot{
		ID: x.ID.String(), Type: restapi.SnapshotType(x.Kind), Name: optString(x.Name), Status: restapi.SnapshotStatus(status), Error: optString(x.Error),
		SandboxID: x.SandboxID.String(), Template: x.TemplateName, Engine: x.Engine, EngineVersion: optString(x.EngineVersion), Memory: x.Memory,
		Vcpus: float64(x.CPUMillis) / 1000, MemoryMB: int(x.MemoryMB), DiskMB: int(x.DiskMB), SizeBytes: x.SizeBytes, Stored: x.Stored,
		OnlyOnHost: onlyOn(x.Stored, x.Copies), Hosts: make([]string, len(x.Copies)),
		CreatedBy: x.CreatedByName, CreatedAt: x.CreatedAt.UTC(), ReadyAt: optTime(x.ReadyAt),
	}
	for i, h := range x.Copies {
		out.Hosts[i] = h.String()
	}
	if x.Stored {
		out.StoredBytes.SetTo(x.StoredBytes)
	}
	if x.Uploading && x.Status == sandbox.StateReady {
		out.Upload.SetTo(restapi.SnapshotUpload{DoneBytes: x.SentBytes, TotalBytes: x.SizeBytes, Error: optString(x.UploadError)})
	}
	return out
}
