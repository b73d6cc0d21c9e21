// Package sandboxhttp is the sandbox room's slice of the REST handler.
package sandboxhttp

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/go-faster/jx"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Handlers serves the routes. Principals come from the request's context.
type Handlers struct {
	sandboxes *sandbox.Service
	replays   *idempotency.Service
}

// New makes the handlers.
func New(sandboxes *sandbox.Service, replays *idempotency.Service) *Handlers {
	return &Handlers{sandboxes: sandboxes, replays: replays}
}

// CreateSandbox implements createSandbox. A repeated create waits for the
// sandbox of the first one.
func (h *Handlers) CreateSandbox(ctx context.Context, req *restapi.CreateSandboxRequest, params restapi.CreateSandboxParams) (restapi.CreateSandboxRes, error) {
	receipt, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (sandbox.Receipt, error) {
		return h.sandboxes.Create(ctx, principal.From(ctx), createRequest(req))
	})
	if err != nil {
		return nil, err
	}
	if params.Wait.Value == restapi.CreateSandboxWait0 {
		x, err := h.sandboxes.Lookup(ctx, receipt)
		if err != nil {
			return nil, err
		}
		return &restapi.AcceptedSandbox{OperationID: receipt.Operation.String(), Sandbox: toSandbox(x)}, nil
	}
	x, err := h.sandboxes.Await(ctx, receipt)
	if err != nil {
		return nil, err
	}
	out := toSandbox(x)
	return &out, nil
}

func createRequest(req *restapi.CreateSandboxRequest) sandbox.CreateRequest {
	out := sandbox.CreateRequest{
		Template: req.Template.Or(""), Snapshot: req.Snapshot.Or(""), CheckpointIntervalSec: wide(req.CheckpointIntervalSec), OnTimeout: sandbox.OnTimeout(req.OnTimeout.Value), Engine: string(req.Engine.Value),
		Metadata: req.Metadata.Value, Env: req.Env.Value, HostLabels: req.HostLabels.Value,
		AutoResume: req.AutoResume.Or(false), PausedTTLSec: wide(req.PausedTTLSec), MemoryMB: wide(req.MemoryMB), DiskMB: wide(req.DiskMB), TimeoutSec: wide(req.TimeoutSec), IdleTimeoutSec: wide(req.IdleTimeoutSec),
	}
	if v, ok := req.Vcpus.Get(); ok {
		out.VCPUs = &v
	}
	if v, ok := req.Network.Value.Internet.Get(); ok {
		out.Internet = &v
	}
	return out
}

func wide(v restapi.OptInt) *int64 {
	n, ok := v.Get()
	if !ok {
		return nil
	}
	w := int64(n)
	return &w
}

// GetSandbox implements getSandbox.
func (h *Handlers) GetSandbox(ctx context.Context, params restapi.GetSandboxParams) (*restapi.Sandbox, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	x, err := h.sandboxes.Get(ctx, principal.From(ctx), sandboxID)
	if err != nil {
		return nil, err
	}
	out := toSandbox(x)
	return &out, nil
}

// DeleteSandbox implements deleteSandbox.
func (h *Handlers) DeleteSandbox(ctx context.Context, params restapi.DeleteSandboxParams) error {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return err
	}
	return h.sandboxes.Delete(ctx, principal.From(ctx), sandboxID)
}

// ListSandboxes implements listSandboxes.
func (h *Handlers) ListSandboxes(ctx context.Context, params restapi.ListSandboxesParams) (*restapi.SandboxList, error) {
	p, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	statuses, err := sandbox.ParseStatuses(params.Status.Value)
	if err != nil {
		return nil, err
	}
	metadata, err := sandbox.ParseMetadata(params.Metadata)
	if err != nil {
		return nil, err
	}
	got, err := h.sandboxes.List(ctx, principal.From(ctx), sandbox.Filter{Statuses: statuses, Template: params.Template.Value, Metadata: metadata}, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.SandboxList{Items: make([]restapi.Sandbox, len(got.Items)), NextCursor: optString(got.NextCursor)}
	for i, x := range got.Items {
		out.Items[i] = toSandbox(x)
	}
	return out, nil
}

// ListSandboxEvents implements listSandboxEvents.
func (h *Handlers) ListSandboxEvents(ctx context.Context, params restapi.ListSandboxEventsParams) (*restapi.SandboxEventList, error) {
	sandboxID, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	p, err := pageOf(params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	got, err := h.sandboxes.Events(ctx, principal.From(ctx), sandboxID, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.SandboxEventList{Items: make([]restapi.SandboxEvent, len(got.Items)), NextCursor: optString(got.NextCursor)}
	for i, e := range got.Items {
		data := make(restapi.SandboxEventData, len(e.Data))
		for k, v := range e.Data {
			raw, err := json.Marshal(v)
			if err != nil {
				return nil, errs.Internal(err)
			}
			data[k] = jx.Raw(raw)
		}
		out.Items[i] = restapi.SandboxEvent{Kind: e.Kind, At: e.At.UTC(), Data: data}
	}
	return out, nil
}

func pageOf(limit restapi.OptInt, cursor restapi.OptString) (page.Request, error) {
	var n *int
	if v, ok := limit.Get(); ok {
		n = &v
	}
	return page.NewRequest(n, cursor.Value)
}

func toSandbox(x sandbox.Sandbox) restapi.Sandbox {
	actions := x.Status.Offered()
	out := restapi.Sandbox{
		ID: x.ID.String(), Status: restapi.SandboxStatus(x.Status), Template: x.TemplateName, TemplateID: x.TemplateID.String(),
		Engine: x.Engine, Vcpus: float64(x.CPUMillis) / 1000, MemoryMB: int(x.MemoryMB), DiskMB: int(x.DiskMB), Internet: x.Internet,
		Metadata: x.Metadata, TimeoutSec: int(x.TimeoutSec), OnTimeout: restapi.SandboxOnTimeout(x.OnTimeout),
		DeadlineAt: optTime(x.DeadlineAt), Actions: make([]string, len(actions)), EndReason: optString(x.EndReason), Error: optString(x.Error),
		CreatedBy: x.CreatedByName, CreatedAt: x.CreatedAt.UTC(), StartedAt: optTime(x.StartedAt), EndedAt: optTime(x.EndedAt),
	}
	if out.Metadata == nil {
		out.Metadata = restapi.SandboxMetadata{}
	}
	if x.IdleTimeoutSec != nil {
		out.IdleTimeoutSec.SetTo(int(*x.IdleTimeoutSec))
	}
	for i, a := range actions {
		out.Actions[i] = string(a)
	}
	if x.CheckpointIntervalSec != nil {
		out.CheckpointIntervalSec.SetTo(int(*x.CheckpointIntervalSec))
	}
	if x.FromState != nil {
		out.SnapshotID.SetTo(x.FromState.String())
	}
	withState(&out, x)
	if !out.RecoverableFrom.Set && !x.Status.Live() {
		out.Actions = slices.DeleteFunc(out.Actions, func(a string) bool { return a == string(sandbox.ActionRecover) })
	}
	return out
}

// withState adds what is saved of a sandbox, as long as it is there.
func withState(out *restapi.Sandbox, x sandbox.Sandbox) {
	out.PausedAt, out.PausedReason = optTime(x.PausedAt), optString(x.PausedReason)
	if x.AutoResume {
		out.AutoResume.SetTo(true)
	}
	if x.PausedTTLSec != nil {
		out.PausedTTLSec.SetTo(int(*x.PausedTTLSec))
	}
	if at := x.ExpiresAt(); at != nil {
		out.ExpiresAt = optTime(at)
	}
	if p := x.Progress; p != nil && p.What != "" {
		out.Progress.SetTo(restapi.OperationProgress{What: restapi.OperationProgressWhat(p.What), DoneBytes: p.Done, TotalBytes: p.Total})
	}
	if x.StateID == nil || x.StateAt == nil || x.StateStatus != sandbox.StateReady {
		return
	}
	out.SavedAt = optTime(x.StateAt)
	out.SavedBytes.SetTo(x.StateBytes)
	out.Stored.SetTo(x.StateStored)
	out.OnlyOnHost = onlyOn(x.StateStored, x.StateCopies)
	if !x.Status.Live() {
		out.RecoverableFrom.SetTo(restapi.Recoverable{SnapshotID: x.StateID.String(), At: x.StateAt.UTC()})
	}
}

// onlyOn is the one host with which a state would be lost.
func onlyOn(stored bool, copies []id.Host) (out restapi.OptString) {
	if !stored && len(copies) == 1 {
		out.SetTo(copies[0].String())
	}
	return out
}

func optString(s string) (out restapi.OptString) {
	if s != "" {
		out.SetTo(s)
	}
	return out
}

func optTime(t *time.Time) (out restapi.OptDateTime) {
	if t != nil {
		out.SetTo(t.UTC())
	}
	return out
}
