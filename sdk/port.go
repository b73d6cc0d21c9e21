package sdk

import (
	"context"
	"iter"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// PortAccess says that a port of a sandbox is reached from outside, and by
// whom; OpenedPort is a new one with its token.
type (
	PortAccess = restapi.PortAccess
	OpenedPort = restapi.OpenedPort
)

// OpenPort says for whom a port is to be opened.
type OpenPort struct {
	Port   int
	Public bool   // for everybody who knows the address; else who shows the token
	Name   string // what it is for
	// For is how long; zero: until it is closed or the sandbox is deleted.
	For time.Duration
}

// OpenPort lets a port of a sandbox be reached from outside. The token of a
// private one is in the answer, and never shown again.
func (c *Client) OpenPort(ctx context.Context, id string, o OpenPort) (*OpenedPort, error) {
	request := &restapi.OpenPortRequest{Port: o.Port}
	if o.Public {
		request.Public.SetTo(true)
	}
	if o.Name != "" {
		request.Name.SetTo(o.Name)
	}
	if o.For != 0 {
		request.ExpiresInSec.SetTo(int(o.For / time.Second))
	}
	return create(ctx, c, func(key restapi.OptString) (*OpenedPort, error) {
		return c.api.OpenPort(ctx, request, restapi.OpenPortParams{ID: id, IdempotencyKey: key})
	})
}

// Ports walks the accesses to a sandbox's ports, newest first.
func (c *Client) Ports(ctx context.Context, id string) iter.Seq2[PortAccess, error] {
	return walk(c, func(cursor restapi.OptString) ([]PortAccess, restapi.OptString, error) {
		l, err := c.api.ListPorts(ctx, restapi.ListPortsParams{ID: id, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// ClosePort takes an access back: what is open ends within a second.
func (c *Client) ClosePort(ctx context.Context, id, access string) error {
	return c.explain(c.api.ClosePort(ctx, restapi.ClosePortParams{ID: id, AccessID: access}))
}
