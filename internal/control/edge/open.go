package edge

import (
	"context"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

const (
	// recheckEvery is how long a stream may outlive its access, at most, beside
	// the time of one query and of severWithin.
	recheckEvery = 400 * time.Millisecond
	// recheckWithin bounds that query.
	recheckWithin = 5 * time.Second
	// severWithin is how long a handler whose request is over may go on writing,
	// to say why.
	severWithin = 200 * time.Millisecond
)

// open are the requests under way, by the access that let them in. Its zero
// value is empty.
type open struct {
	mu sync.Mutex
	by map[id.PortAccess]*letIn
	wg sync.WaitGroup
}

// letIn is what one access let in.
type letIn struct {
	expires *time.Time
	cancels map[*context.CancelCauseFunc]struct{}
}

// enter notes a request until leave is called.
func (o *open) enter(a port.Admission, cancel context.CancelCauseFunc) (leave func()) {
	o.wg.Add(1)
	if a.Access.IsZero() { // by a token that lasts as long as the sandbox
		return o.wg.Done
	}
	key := &cancel
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.by == nil {
		o.by = map[id.PortAccess]*letIn{}
	}
	in := o.by[a.Access]
	if in == nil {
		in = &letIn{expires: a.ExpiresAt, cancels: map[*context.CancelCauseFunc]struct{}{}}
		o.by[a.Access] = in
	}
	in.cancels[key] = struct{}{}
	return func() {
		defer o.wg.Done()
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(in.cancels, key)
		if len(in.cancels) == 0 && o.by[a.Access] == in {
			delete(o.by, a.Access)
		}
	}
}

func (o *open) wait() { o.wg.Wait() }

func (o *open) accesses() []id.PortAccess {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make([]id.PortAccess, 0, len(o.by))
	for a := range o.by {
		all = append(all, a)
	}
	return all
}

// end cuts what the asked accesses let in, unless they live.
func (o *open) end(asked []id.PortAccess, lives func(id.PortAccess, *time.Time) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range asked {
		in := o.by[a]
		if in == nil || lives(a, in.expires) {
			continue
		}
		for cancel := range in.cancels {
			(*cancel)(errPrivate)
		}
	}
}

// recheck ends what goes on under an access that is over, until ctx does: one
// query for all together, none while nothing is open. While the database cannot
// be asked, what does not end by the clock goes on.
func (e *Edge) recheck(ctx context.Context) error {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		asked := e.open.accesses()
		if len(asked) == 0 {
			continue
		}
		e.open.end(asked, func(_ id.PortAccess, expires *time.Time) bool { return expires == nil || time.Now().Before(*expires) })
		err := observe.Round(ctx, "port_recheck", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, recheckWithin)
			defer cancel()
			living, err := e.cfg.Accesses.Living(ctx, asked)
			if err != nil {
				return err
			}
			alive := make(map[id.PortAccess]bool, len(living))
			for _, a := range living {
				alive[a] = true
			}
			e.open.end(asked, func(a id.PortAccess, _ *time.Time) bool { return alive[a] })
			return nil
		})
		if err != nil && ctx.Err() == nil {
			e.cfg.Log.WarnContext(ctx, "cannot look whether open ports are still allowed", logkey.Error, err)
		}
	}
}

// severed unblocks a handler shortly after its request is over: a client that
// does not read, or does not send, would hold it. done must be called before
// the handler returns.
func severed(ctx context.Context, w http.ResponseWriter) (done func()) {
	var mu sync.Mutex
	var timer *time.Timer
	over := false
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return
		}
		timer = time.AfterFunc(severWithin, func() {
			mu.Lock()
			defer mu.Unlock()
			if over {
				return
			}
			control := http.NewResponseController(w)
			now := time.Now()
			_ = control.SetWriteDeadline(now)
			_ = control.SetReadDeadline(now)
		})
	})
	return func() {
		stop()
		mu.Lock()
		defer mu.Unlock()
		over = true
		if timer != nil {
			timer.Stop()
		}
	}
}
