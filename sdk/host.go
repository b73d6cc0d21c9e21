package sdk

import (
	"context"
	"iter"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// CreateHost announces a host and returns its one-time token. Kind is "regular"
// or "byoc"; an empty name becomes the machine's own.
func (c *Client) CreateHost(ctx context.Context, kind, name string) (*CreatedHost, error) {
	return c.AnnounceHost(ctx, HostRequest{Type: restapi.CreateHostRequestType(kind), Name: optString(name)})
}

// AnnounceHost is CreateHost with all that may be said of a host.
func (c *Client) AnnounceHost(ctx context.Context, request HostRequest) (*CreatedHost, error) {
	return create(ctx, c, func(key restapi.OptString) (*CreatedHost, error) {
		return c.api.CreateHost(ctx, &request, restapi.CreateHostParams{IdempotencyKey: key})
	})
}

// CreateHostToken returns a new one-time token for a host; the old one is void.
func (c *Client) CreateHostToken(ctx context.Context, id string) (*CreatedHost, error) {
	return create(ctx, c, func(key restapi.OptString) (*CreatedHost, error) {
		return c.api.CreateHostToken(ctx, restapi.CreateHostTokenParams{ID: id, IdempotencyKey: key})
	})
}

// Host returns one host.
func (c *Client) Host(ctx context.Context, id string) (*Host, error) {
	h, err := c.api.GetHost(ctx, restapi.GetHostParams{ID: id})
	return h, c.explain(err)
}

// Hosts walks the hosts that the caller may see, newest first.
func (c *Client) Hosts(ctx context.Context) iter.Seq2[Host, error] {
	return walk(c, func(cursor restapi.OptString) ([]Host, restapi.OptString, error) {
		l, err := c.api.ListHosts(ctx, restapi.ListHostsParams{Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// UpdateHost changes what is set in the request and leaves the rest.
func (c *Client) UpdateHost(ctx context.Context, id string, request HostChange) (*Host, error) {
	h, err := c.api.UpdateHost(ctx, &request, restapi.UpdateHostParams{ID: id})
	return h, c.explain(err)
}

// DrainHost has a host emptied: nothing new is placed there and what runs is
// paused. What still runs after within runs on; zero is no limit.
func (c *Client) DrainHost(ctx context.Context, id string, within time.Duration) (*Host, error) {
	request := restapi.DrainHostRequest{}
	if within > 0 {
		request.DeadlineSec.SetTo(int(within.Seconds()))
	}
	h, err := c.api.DrainHost(ctx, restapi.NewOptDrainHostRequest(request), restapi.DrainHostParams{ID: id})
	return h, c.explain(err)
}

// UndrainHost lets a host take sandboxes again.
func (c *Client) UndrainHost(ctx context.Context, id string) (*Host, error) {
	h, err := c.api.UndrainHost(ctx, restapi.UndrainHostParams{ID: id})
	return h, c.explain(err)
}

// LostWithHost walks what would be lost if a host were deleted, oldest first.
func (c *Client) LostWithHost(ctx context.Context, id string) iter.Seq2[HostLoss, error] {
	return walk(c, func(cursor restapi.OptString) ([]HostLoss, restapi.OptString, error) {
		l, err := c.api.PreviewHostDeletion(ctx, restapi.PreviewHostDeletionParams{ID: id, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// DeleteHost takes a host away for good. Without force it is refused while
// anything would be lost with it.
func (c *Client) DeleteHost(ctx context.Context, id string, force bool) error {
	return c.explain(c.api.DeleteHost(ctx, restapi.DeleteHostParams{ID: id, Force: restapi.NewOptBool(force)}))
}
