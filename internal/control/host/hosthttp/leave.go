package hosthttp

import (
	"context"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// UpdateHost implements updateHost.
func (h *Handlers) UpdateHost(ctx context.Context, req *restapi.UpdateHostRequest, params restapi.UpdateHostParams) (*restapi.Host, error) {
	u := host.Update{Labels: req.Labels.Value}
	for _, f := range []struct {
		from restapi.OptString
		to   **string
	}{{req.Name, &u.Name}, {req.Provider, &u.Provider}, {req.AvailabilityZone, &u.AvailabilityZone}} {
		if v, ok := f.from.Get(); ok {
			*f.to = &v
		}
	}
	if req.Labels.Set && u.Labels == nil {
		u.Labels = map[string]string{}
	}
	return answer(params.ID, func(x id.Host) (host.Host, error) { return h.hosts.Update(ctx, principal.From(ctx), x, u) })
}

// DrainHost implements drainHost.
func (h *Handlers) DrainHost(ctx context.Context, req restapi.OptDrainHostRequest, params restapi.DrainHostParams) (*restapi.Host, error) {
	var within *time.Duration
	if secs, ok := req.Value.DeadlineSec.Get(); ok {
		limit := time.Duration(min(max(secs, 0), 1<<31)) * time.Second // no overflow; the room says what is too much
		within = &limit
	}
	return answer(params.ID, func(x id.Host) (host.Host, error) { return h.hosts.Drain(ctx, principal.From(ctx), x, within) })
}

// UndrainHost implements undrainHost.
func (h *Handlers) UndrainHost(ctx context.Context, params restapi.UndrainHostParams) (*restapi.Host, error) {
	return answer(params.ID, func(x id.Host) (host.Host, error) { return h.hosts.Undrain(ctx, principal.From(ctx), x) })
}

// DeleteHost implements deleteHost.
func (h *Handlers) DeleteHost(ctx context.Context, params restapi.DeleteHostParams) error {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return err
	}
	return h.hosts.Delete(ctx, principal.From(ctx), hostID, params.Force.Value)
}

// PreviewHostDeletion implements previewHostDeletion.
func (h *Handlers) PreviewHostDeletion(ctx context.Context, params restapi.PreviewHostDeletionParams) (*restapi.HostDeletion, error) {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return nil, err
	}
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	p, err := page.NewRequest(limit, params.Cursor.Value)
	if err != nil {
		return nil, err
	}
	lost, err := h.hosts.Preview(ctx, principal.From(ctx), hostID, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.HostDeletion{
		Items: make([]restapi.HostLoss, len(lost.Items)), NextCursor: optString(lost.NextCursor),
		Sandboxes: int(lost.Sandboxes), Snapshots: int(lost.Snapshots),
	}
	for i, l := range lost.Items {
		out.Items[i] = restapi.HostLoss{
			Kind: restapi.HostLossKind(l.Kind), ID: l.WireID(), TeamID: l.Team.String(), TeamName: optString(l.TeamName),
			Name: l.Name, Status: l.Status, CreatedAt: l.CreatedAt.UTC(),
		}
	}
	return out, nil
}

func answer(wire string, do func(id.Host) (host.Host, error)) (*restapi.Host, error) {
	hostID, err := id.ParseHost(wire)
	if err != nil {
		return nil, err
	}
	got, err := do(hostID)
	if err != nil {
		return nil, err
	}
	out := toHost(got)
	return &out, nil
}
