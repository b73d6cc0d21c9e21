package identity

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

const (
	// DefaultHeartbeat is the time between two heartbeats.
	DefaultHeartbeat = 30 * time.Second

	// DefaultSampleEvery is the time between two samples of each sandbox.
	DefaultSampleEvery = 30 * time.Second

	maxEvents  = 200  // in one call
	maxSamples = 2000 // in one call
)

// Load is what a heartbeat carries.
type Load struct {
	Sandboxes     int   `json:"sandboxes"`
	CPUMillis     int64 `json:"cpu_millis"`
	MemoryBytes   int64 `json:"memory_bytes"`
	DiskFreeBytes int64 `json:"disk_free_bytes"`
}

// Outbox holds the events to deliver.
type Outbox interface {
	Events(limit int) ([]journal.Event, error)
	Confirm(seq uint64) error
	Wake() <-chan struct{}
}

// Contact is how a host keeps in touch.
type Contact struct {
	Identity   *Identity
	Generation uint64
	Version    string
	Address    string
	// Engines are what this start of the agent offers: another one may have
	// registered, and the builds it keeps change. Nil tells nothing.
	Engines func(context.Context) []EngineFact
	Load    func() Load
	Outbox  Outbox
	// Samples reads what the sandboxes used; nil sends none. SampleEvery is the
	// time between two; 0 is DefaultSampleEvery.
	Samples     func(context.Context) []Sample
	SampleEvery time.Duration
	// Heartbeat is the time between two; 0 is DefaultHeartbeat.
	Heartbeat time.Duration
	// RetryMin and RetryMax bound the back-off after a failure; 0 is 500 ms and
	// the heartbeat.
	RetryMin, RetryMax time.Duration
}

func (c Contact) withDefaults() Contact {
	if c.Heartbeat <= 0 {
		c.Heartbeat = DefaultHeartbeat
	}
	if c.SampleEvery <= 0 {
		c.SampleEvery = DefaultSampleEvery
	}
	if c.RetryMin <= 0 {
		c.RetryMin = 500 * time.Millisecond
	}
	if c.RetryMax <= 0 {
		c.RetryMax = max(c.Heartbeat, c.RetryMin)
	}
	return c
}

// Sample is what one sandbox used.
type Sample struct {
	SandboxID   string    `json:"sandbox_id"` // a bare UUID
	Incarnation uint64    `json:"incarnation"`
	At          time.Time `json:"at"`
	CPUMillis   int       `json:"cpu_millis"`
	MemoryBytes int64     `json:"memory_bytes"`
	DiskBytes   int64     `json:"disk_bytes"`
	Processes   int       `json:"processes"`
}

// Measure sends samples until ctx ends, the first at once. Those the control plane does not take
// are dropped: the next are as good.
func (c Contact) Measure(ctx context.Context) {
	c = c.withDefaults()
	if c.Samples == nil {
		return
	}
	ticker := time.NewTicker(c.SampleEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		for part := range slices.Chunk(c.Samples(ctx), maxSamples) {
			err := observe.Round(ctx, "samples", func(ctx context.Context) error {
				return c.withRenewal(ctx, func(ctx context.Context) error {
					return c.Identity.call(ctx, "/v1/hosts/"+id.FormatHost(c.Identity.HostID())+"/samples", true, map[string]any{"samples": part}, nil)
				})
			})
			if err != nil && ctx.Err() == nil {
				c.Identity.cfg.Logger.Debug("samples were dropped", "count", len(part), "err", err)
				break
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

type wireEvent struct {
	Seq         uint64    `json:"seq"`
	Kind        string    `json:"kind"`
	SandboxID   string    `json:"sandbox_id"` // a bare UUID
	Incarnation uint64    `json:"incarnation"`
	At          time.Time `json:"at"`
	Data        any       `json:"data"`
}

// Beat sends heartbeats until ctx ends, whatever the answers are, and renews
// the credentials at half their life.
func (c Contact) Beat(ctx context.Context) {
	c = c.withDefaults()
	retry := c.backoff()
	for ctx.Err() == nil {
		if c.Identity.RenewalDue() {
			if err := c.Identity.Refresh(ctx, ""); err != nil {
				c.Identity.notRenewed(err)
			}
		}
		err := observe.Round(ctx, "heartbeat", func(ctx context.Context) error { return c.withRenewal(ctx, c.beat) })
		pause := spread(c.Heartbeat)
		if err == nil {
			now := time.Now() // with the monotonic clock
			c.Identity.heard.Store(&now)
		}
		if err != nil && ctx.Err() == nil {
			c.Identity.cfg.Logger.Warn("a heartbeat failed", "err", err)
			pause = retry.next(err)
		} else {
			retry.reset()
		}
		if !sleepUnless(ctx, pause, c.Identity.rejoined) {
			return
		}
	}
}

func (c Contact) beat(ctx context.Context) error {
	body := map[string]any{"generation": c.Generation, "address": c.Address, "load": c.Load(), "version": c.Version}
	if c.Engines != nil {
		body["engines"] = c.Engines(ctx)
	}
	return c.Identity.call(ctx, "/v1/hosts/"+id.FormatHost(c.Identity.HostID())+"/heartbeat", true, body, nil)
}

// Deliver sends events until ctx ends, each at least once and in order. It
// sleeps while there are none. An event that the control plane will never take
// is found by halving the batch, logged and dropped, so that it holds up no
// other.
func (c Contact) Deliver(ctx context.Context) {
	c = c.withDefaults()
	retry := c.backoff()
	limit := maxEvents
	for ctx.Err() == nil {
		sent := 0
		err := observe.Round(ctx, "event_delivery", func(ctx context.Context) error {
			return c.withRenewal(ctx, func(ctx context.Context) (err error) {
				sent, err = c.deliver(ctx, limit)
				return err
			})
		})
		switch {
		case malformed(err) && limit > 1:
			limit /= 2
		case malformed(err):
			limit = maxEvents
			if err := c.drop(err); err != nil {
				c.Identity.cfg.Logger.Error("an event could not be dropped", "err", err)
				sleep(ctx, retry.next(err))
			}
		case err != nil:
			if ctx.Err() == nil {
				c.Identity.cfg.Logger.Warn("events could not be delivered yet", "err", err)
			}
			sleep(ctx, retry.next(err))
		case sent > 0:
			limit = maxEvents
			retry.reset()
		default:
			select {
			case <-c.Outbox.Wake():
			case <-ctx.Done():
			}
		}
	}
}

// malformed reports whether err says that the same events can never be taken.
func malformed(err error) bool {
	var r *Refused
	return errors.As(err, &r) &&
		(r.Status == http.StatusBadRequest || r.Status == http.StatusRequestEntityTooLarge || r.Status == http.StatusUnprocessableEntity)
}

func (c Contact) drop(why error) error {
	events, err := c.Outbox.Events(1)
	if err != nil || len(events) == 0 {
		return err
	}
	c.Identity.cfg.Logger.Error("the control plane does not take an event; it is dropped", "kind", events[0].Kind, "err", why)
	return c.Outbox.Confirm(events[0].Seq)
}

func (c Contact) deliver(ctx context.Context, limit int) (int, error) {
	events, err := c.Outbox.Events(limit)
	if err != nil || len(events) == 0 {
		return 0, err
	}
	wire := make([]wireEvent, len(events))
	for n, e := range events {
		wire[n] = wireEvent{Seq: e.Seq, Kind: e.Kind, SandboxID: e.Sandbox.UUID().String(), Incarnation: e.Incarnation, At: e.At, Data: struct{}{}}
		if len(e.Data) > 0 {
			wire[n].Data = e.Data
		}
	}
	err = c.Identity.call(ctx, "/v1/hosts/"+id.FormatHost(c.Identity.HostID())+"/events", true, map[string]any{
		"generation": c.Generation, "events": wire,
	}, nil)
	if err != nil {
		return 0, err
	}
	return len(events), c.Outbox.Confirm(events[len(events)-1].Seq)
}

// withRenewal does a call, and once more after renewing the credentials when
// they were refused.
func (c Contact) withRenewal(ctx context.Context, call func(context.Context) error) error {
	seen := c.Identity.jwt()
	err := call(ctx)
	if !Unauthorized(err) {
		return err
	}
	if rerr := c.Identity.Refresh(ctx, seen); rerr != nil {
		return errors.Join(err, rerr)
	}
	return call(ctx)
}

// Heard is when the last heartbeat was answered, the zero time before the
// first. It carries the monotonic clock.
func (i *Identity) Heard() time.Time {
	if at := i.heard.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// Turned reports whether the control plane refused the last renewal of our
// credentials: it was reached, and does not want this host.
func (i *Identity) Turned() bool { return i.refused.Load() }

// RenewalDue reports whether half the life of the certificate or the JWT is
// over.
func (i *Identity) RenewalDue() bool {
	m := i.current.Load()
	return m != nil && !i.cfg.Clock.Now().Before(m.renewAt)
}

// notRenewed tells that a renewal failed, and how much time is left for it.
func (i *Identity) notRenewed(err error) {
	m := i.current.Load()
	if m == nil || i.cfg.Clock.Now().Before(m.late) {
		i.cfg.Logger.Warn("the credentials could not be renewed yet", "err", err)
		return
	}
	i.cfg.Logger.Error("the credentials could not be renewed and end soon: see to it that this host reaches the control plane",
		"ends_at", m.endsAt, "err", err)
}

func (i *Identity) jwt() string {
	if m := i.current.Load(); m != nil {
		return m.creds.HostJWT
	}
	return ""
}

// backoff doubles with each failure and is spread, so that hosts do not come
// back all at once.
type backoff struct{ pause, least, most time.Duration }

func (c Contact) backoff() *backoff { return &backoff{c.RetryMin, c.RetryMin, c.RetryMax} }

func (b *backoff) reset() { b.pause = b.least }

func (b *backoff) next(err error) time.Duration {
	d := spread(b.pause)
	b.pause = min(2*b.pause, b.most)
	var r *Refused
	if errors.As(err, &r) && r.RetryAfter > d {
		d = r.RetryAfter
	}
	return d
}

// spread is d, give or take a fifth.
func spread(d time.Duration) time.Duration {
	fifth := int64(d) / 5
	return d + time.Duration(rand.Int64N(2*fifth+1)-fifth)
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool { return sleepUnless(ctx, d, nil) }

// sleepUnless is sleep that ends with woken, too.
func sleepUnless(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-woken:
		return true
	case <-ctx.Done():
		return false
	}
}
