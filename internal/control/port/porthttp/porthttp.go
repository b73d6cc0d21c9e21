// Package porthttp serves the operations on sandboxes' ports.
package porthttp

import (
	"context"
	"net/url"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// QueryToken is the query parameter in which a shared link carries its token.
const QueryToken = "skerry_token"

// Ports is the room's slice of restapi.Handler.
type Ports struct {
	service *port.Service
	replays *idempotency.Service
	origin  port.Origin
}

// New returns the slice; origin is where the ports are reached.
func New(service *port.Service, replays *idempotency.Service, origin port.Origin) *Ports {
	return &Ports{service: service, replays: replays, origin: origin}
}

// OpenPort implements restapi.Handler.
func (p *Ports) OpenPort(ctx context.Context, req *restapi.OpenPortRequest, params restapi.OpenPortParams) (*restapi.OpenedPort, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	opened, err := idempotency.Do(ctx, p.replays, func(ctx context.Context) (port.Opened, error) {
		r := port.OpenRequest{Port: req.Port, Public: req.Public.Or(false), Name: req.Name.Or("")}
		if n, ok := req.ExpiresInSec.Get(); ok {
			lasts := int64(n)
			r.ExpiresInSec = &lasts
		}
		return p.service.Open(ctx, principal.From(ctx), sandbox, r)
	})
	if err != nil {
		return nil, err
	}
	out := &restapi.OpenedPort{Access: p.access(opened.Access), URL: p.origin.URL(sandbox, opened.Access.Port)}
	if opened.Token != "" {
		out.Token.SetTo(opened.Token)
		out.URL += "?" + QueryToken + "=" + url.QueryEscape(opened.Token)
	}
	return out, nil
}

// ListPorts implements restapi.Handler.
func (p *Ports) ListPorts(ctx context.Context, params restapi.ListPortsParams) (*restapi.PortAccessList, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	request, err := page.NewRequest(limit, params.Cursor.Or(""))
	if err != nil {
		return nil, err
	}
	found, err := p.service.List(ctx, principal.From(ctx), sandbox, request)
	if err != nil {
		return nil, err
	}
	list := &restapi.PortAccessList{Items: make([]restapi.PortAccess, len(found.Items))}
	for i, a := range found.Items {
		list.Items[i] = p.access(a)
	}
	if found.NextCursor != "" {
		list.NextCursor.SetTo(found.NextCursor)
	}
	return list, nil
}

// ClosePort implements restapi.Handler.
func (p *Ports) ClosePort(ctx context.Context, params restapi.ClosePortParams) error {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return err
	}
	access, err := id.ParsePortAccess(params.AccessID)
	if err != nil {
		return err
	}
	return p.service.Close(ctx, principal.From(ctx), sandbox, access)
}

func (p *Ports) access(a port.Access) restapi.PortAccess {
	out := restapi.PortAccess{
		ID: a.ID.String(), Port: a.Port, Public: a.Public, URL: p.origin.URL(a.SandboxID, a.Port), CreatedBy: a.CreatedBy, CreatedAt: a.CreatedAt.UTC(),
	}
	if a.Name != "" {
		out.Name.SetTo(a.Name)
	}
	if a.ExpiresAt != nil {
		out.ExpiresAt.SetTo(a.ExpiresAt.UTC())
	}
	return out
}
