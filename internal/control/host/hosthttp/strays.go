package hosthttp

import (
	"context"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// ListHostStrays implements listHostStrays.
func (h *Handlers) ListHostStrays(ctx context.Context, params restapi.ListHostStraysParams) (*restapi.HostStrayList, error) {
	hostID, err := h.managed(ctx, params.ID)
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
	got, err := h.strays.Strays(ctx, hostID, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.HostStrayList{Items: make([]restapi.HostStray, len(got.Items)), NextCursor: optString(got.NextCursor)}
	for i, x := range got.Items {
		out.Items[i] = restapi.HostStray{
			SandboxID: x.Sandbox.String(), Incarnation: x.Incarnation, Kind: restapi.HostStrayKind(x.Kind), Phase: string(x.Phase),
			FirstSeenAt: x.FirstSeenAt.UTC(), LastSeenAt: x.LastSeenAt.UTC(),
		}
		if x.PausedAt != nil {
			out.Items[i].PausedAt = restapi.NewOptDateTime(x.PausedAt.UTC())
		}
		if x.DestroyAt != nil {
			out.Items[i].DestroyAt = restapi.NewOptDateTime(x.DestroyAt.UTC())
		}
	}
	return out, nil
}

// DestroyHostStray implements destroyHostStray.
func (h *Handlers) DestroyHostStray(ctx context.Context, params restapi.DestroyHostStrayParams) error {
	hostID, err := h.managed(ctx, params.ID)
	if err != nil {
		return err
	}
	sandboxID, err := id.ParseSandbox(params.Sandbox)
	if err != nil {
		return err
	}
	return h.strays.DestroyStray(ctx, principal.From(ctx), hostID, sandboxID)
}

// managed is a host that the caller manages.
func (h *Handlers) managed(ctx context.Context, wire string) (id.Host, error) {
	hostID, err := id.ParseHost(wire)
	if err != nil {
		return id.Host{}, err
	}
	return hostID, h.hosts.MayManage(ctx, principal.From(ctx), hostID)
}
