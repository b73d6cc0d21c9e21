package sdk

import (
	"context"
	"iter"

	"skerry.dev/skerry/gen/restapi"
)

// HostStray is a sandbox that a host holds and that is not known to be there.
type HostStray = restapi.HostStray

// HostStrays walks what a host holds that is not known to be there, in the order
// of ids.
func (c *Client) HostStrays(ctx context.Context, host string) iter.Seq2[HostStray, error] {
	return walk(c, func(cursor restapi.OptString) ([]HostStray, restapi.OptString, error) {
		l, err := c.api.ListHostStrays(ctx, restapi.ListHostStraysParams{ID: host, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// DestroyHostStray has a host destroy one of them soon, with what is saved of
// it.
func (c *Client) DestroyHostStray(ctx context.Context, host, sandbox string) error {
	return c.explain(c.api.DestroyHostStray(ctx, restapi.DestroyHostStrayParams{ID: host, Sandbox: sandbox}))
}
