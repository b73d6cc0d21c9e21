package hostlink

import (
	"context"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// greetWithin bounds how long a new sandbox is waited for ahead of need.
	greetWithin = 5 * time.Second
	// maxGreets bounds how many are greeted at once; others are met when needed.
	maxGreets = 64
)

// greets are what a client does ahead of need, until it is closed.
type greets struct {
	ctx  context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup
	turn chan struct{}
}

func newGreets() *greets {
	g := &greets{turn: make(chan struct{}, maxGreets)}
	g.ctx, g.end = context.WithCancel(context.Background())
	return g
}

// Greet opens a connection to a sandbox's daemon, which the first command will
// use: its handshakes are done while the sandbox's start is written down. It
// does not wait, and what fails is met again by the command.
func (c *Client) Greet(sandbox id.Sandbox, incarnation int64) {
	g := c.greets
	if g.ctx.Err() != nil {
		return
	}
	select {
	case g.turn <- struct{}{}:
	default:
		return
	}
	g.wg.Go(func() {
		defer func() { <-g.turn }()
		ctx, cancel := context.WithTimeout(g.ctx, greetWithin)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+guestapi.PathHealth, nil)
		if err != nil {
			return
		}
		if res, err := c.Guest(sandbox, incarnation).RoundTrip(req); err == nil {
			_ = res.Body.Close()
		}
	})
}
