package manager

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/kernel/errs"
)

// WarmTarget is what is to be kept ready for sandboxes that come.
type WarmTarget struct {
	// Key is by which the control plane knows it.
	Key []byte
	// Spec says what all of the instances are: template, engine, image, resources,
	// internet and the state they are restored from. All else in it counts for
	// nothing.
	Spec  journal.Spec
	Count int
}

// WarmKept is what there is of a target.
type WarmKept struct {
	Key   []byte
	Ready int
	// Reason says why there are fewer than asked for.
	Reason string
}

// Reasons why there are fewer warm instances than asked for; another is that of
// the failure of the last try.
const (
	WarmOff     = "off"          // this host keeps none
	WarmLimit   = "limit"        // it keeps as many as it may
	WarmMemory  = "memory_short" // there is too little memory for what nobody uses yet
	WarmFilling = "filling"
)

const (
	warmTick = 200 * time.Millisecond
	// warmHaste is after how long an instance is made although sandboxes were started
	// a moment ago.
	warmHaste    = 3 * time.Second
	warmRetryMin = 2 * time.Second
	warmRetryMax = 5 * time.Minute
	// warmHostname is what an instance is called that is nobody's yet.
	warmHostname = "sandbox"
)

// warmth is all that is kept warm. Guarded by Manager.mu but for what the one
// goroutine that fills has to itself.
type warmth struct {
	wake    chan struct{}
	off     bool // for good
	told    bool // what is wanted, since the start
	targets []WarmTarget
	// ready and going are by instance: going is what is being let go.
	ready, going map[engine.InstanceID]*warm
	// filling is the instance that is being made, stop ends that; stopped is closed
	// once it has ended. All are zero while none is.
	filling engine.InstanceID
	stop    context.CancelCauseFunc
	stopped chan struct{}
	retries map[string]*warmRetry // of targets whose last try failed
	// started is when a sandbox was started last, lacks since when there are too few.
	started, lacks time.Time
}

// warmRetry spaces the tries of a target.
type warmRetry struct {
	reason string
	pause  time.Duration
	next   time.Time
}

// warm is an instance that waits for a sandbox.
type warm struct {
	kept  journal.Warm
	slot  Slot
	dead  bool               // it ended by itself
	tried time.Time          // when its removal failed last
	watch context.CancelFunc // ends its watcher

	removing sync.Mutex // held while it is removed; guards kept from then on
}

func newWarmth() warmth {
	return warmth{
		wake: make(chan struct{}, 1), ready: map[engine.InstanceID]*warm{}, going: map[engine.InstanceID]*warm{},
		retries: map[string]*warmRetry{},
	}
}

// fits tells whether the instance is just what a sandbox of spec would be made
// as, but for what it is told once it runs.
func (w *warm) fits(spec journal.Spec) bool { return alike(w.kept.Record.Spec, spec) }

func alike(a, b journal.Spec) bool {
	return a.Template == b.Template && a.Engine == b.Engine && a.Image.Digest == b.Image.Digest && a.Resources == b.Resources &&
		a.Internet == b.Internet && a.State == b.State && !a.DiskOnly && !b.DiskOnly
}

// KeepWarm says what is to be kept ready, all at once: instances that no target
// names are let go. It returns at once with what there is; the rest comes one
// after the other, while no sandbox waits for its start. After a restart of the
// agent what there was is kept until the next call.
func (m *Manager) KeepWarm(targets []WarmTarget) []WarmKept {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.warm.targets, m.warm.told = slices.Clone(targets), true
	out := make([]WarmKept, 0, len(targets))
	left := m.cfg.MaxWarm
	short := m.cfg.MemoryShort()
	for _, t := range targets {
		k := WarmKept{Key: t.Key}
		for _, w := range m.warm.ready {
			if !w.dead && bytes.Equal(w.kept.Key, t.Key) {
				k.Ready++
			}
		}
		switch retry := m.warm.retries[string(t.Key)]; {
		case k.Ready >= t.Count:
		case m.cfg.MaxWarm == 0:
			k.Reason = WarmOff
		case left < t.Count:
			k.Reason = WarmLimit
		case short:
			k.Reason = WarmMemory
		case retry != nil:
			k.Reason = retry.reason
		default:
			k.Reason = WarmFilling
		}
		left = max(left-t.Count, 0)
		out = append(out, k)
	}
	m.wakeWarm()
	return out
}

func (m *Manager) wakeWarm() {
	select {
	case m.warm.wake <- struct{}{}:
	default:
	}
}

// WarmCount is how many instances wait for a sandbox.
func (m *Manager) WarmCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.warm.ready)
}

// takeWarm takes an instance out that fits spec, the one that waited the longest;
// nil when there is none. Called with m.mu held.
func (m *Manager) takeWarm(spec journal.Spec) *warm {
	var best *warm
	for _, w := range m.warm.ready {
		if !w.dead && w.fits(spec) && (best == nil || w.kept.Record.CreatedAt.Before(best.kept.Record.CreatedAt)) {
			best = w
		}
	}
	if best != nil {
		delete(m.warm.ready, best.kept.Record.Instance)
		best.watch()
		m.wakeWarm()
	}
	return best
}

// tendWarm fills and lets go, one after the other, until ctx ends. It looks at
// what there is each time.
func (m *Manager) tendWarm(ctx context.Context) {
	ticker := time.NewTicker(warmTick)
	defer ticker.Stop()
	for {
		for m.tendOne(ctx) {
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-m.warm.wake:
		}
	}
}

// tendOne does what is most urgent; false when nothing is to do now.
func (m *Manager) tendOne(ctx context.Context) bool {
	short := m.cfg.MemoryShort()
	m.mu.Lock()
	if ctx.Err() != nil || m.closed || m.leaving || m.warm.off {
		m.mu.Unlock()
		return false
	}
	if w := m.surplus(short); w != nil {
		delete(m.warm.ready, w.kept.Record.Instance)
		m.warm.going[w.kept.Record.Instance] = w
		m.mu.Unlock()
		return m.letGo(w) == nil
	}
	target, ok := m.lacking(short)
	if !ok {
		m.mu.Unlock()
		return false
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	b := m.newWarm(target, stop)
	m.warm.filling, m.warm.stop, m.warm.stopped = b.rec.Instance, stop, make(chan struct{})
	m.mu.Unlock()
	m.fill(ctx, target, b)
	return true
}

// surplus is an instance to let go: one that could not be before, one that
// ended, that nobody wants any more, or that there is no room for. Called with
// m.mu held.
func (m *Manager) surplus(short bool) *warm {
	for _, w := range m.warm.going {
		if time.Since(w.tried) >= m.cfg.RetryInterval {
			w.tried = time.Now()
			return w
		}
	}
	all := make([]*warm, 0, len(m.warm.ready))
	for _, w := range m.warm.ready {
		if w.dead {
			return w
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b *warm) int {
		return cmp.Or(a.kept.Record.CreatedAt.Compare(b.kept.Record.CreatedAt), cmp.Compare(a.kept.Record.Instance, b.kept.Record.Instance))
	})
	if len(all) > 0 && short {
		return all[0]
	}
	room, left := m.cfg.MaxWarm, make(map[string]int, len(m.warm.targets))
	for _, t := range m.warm.targets {
		left[string(t.Key)] = t.Count
	}
	for _, w := range all {
		if room == 0 || m.warm.told && (left[string(w.kept.Key)] == 0 || !m.wants(w)) {
			return w
		}
		room--
		left[string(w.kept.Key)]--
	}
	return nil
}

// wants tells whether the target of the instance's key is still about the same.
func (m *Manager) wants(w *warm) bool {
	return slices.ContainsFunc(m.warm.targets, func(t WarmTarget) bool {
		return bytes.Equal(t.Key, w.kept.Key) && w.fits(t.Spec)
	})
}

// lacking is the first target that an instance is to be made for now: none while
// sandboxes are being started. Called with m.mu held.
func (m *Manager) lacking(short bool) (WarmTarget, bool) {
	if short || m.creates > 0 || len(m.warm.ready)+len(m.warm.going) >= m.cfg.MaxWarm {
		return WarmTarget{}, false
	}
	have := make(map[string]int, len(m.warm.targets))
	for _, w := range m.warm.ready {
		have[string(w.kept.Key)]++
	}
	now := time.Now()
	for _, t := range m.warm.targets {
		retry := m.warm.retries[string(t.Key)]
		if have[string(t.Key)] >= t.Count || retry != nil && now.Before(retry.next) {
			continue
		}
		if m.warm.lacks.IsZero() {
			m.warm.lacks = now
		}
		if now.Sub(m.warm.started) < m.cfg.WarmRest && now.Sub(m.warm.lacks) < warmHaste {
			return WarmTarget{}, false
		}
		m.warm.lacks = time.Time{}
		return t, true
	}
	return WarmTarget{}, false
}

// letGo removes an instance that waits, and every trace of it. What fails is
// tried again.
func (m *Manager) letGo(w *warm) error {
	w.removing.Lock()
	defer w.removing.Unlock()
	w.watch()
	w.kept.Record.Phase = journal.PhaseDestroying
	err := m.unmark(w.kept.Record.Instance)
	if err == nil {
		err = m.cfg.Journal.KeepWarm(w.kept)
	}
	if err == nil {
		m.step(StepWarmLettingGo)
		err = m.undo(w.kept.Record, undoAll)
	}
	if err == nil {
		err = m.forgetWarm(w.kept.Record.Instance)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		w.tried = time.Now()
		m.cfg.Logger.Error("a warm instance could not be removed yet", "instance_id", string(w.kept.Record.Instance), "err", err)
		return err
	}
	delete(m.warm.going, w.kept.Record.Instance)
	return nil
}

func (m *Manager) forgetWarm(instance engine.InstanceID) error {
	if err := m.unmark(instance); err != nil {
		return err
	}
	if err := m.cfg.Journal.ForgetWarm(instance); err != nil {
		return err
	}
	m.step(StepWarmForgotten)
	return nil
}

// Cool lets go of all instances that wait, and keeps none from then on: whoever
// ends the agent in order finds nothing running that is nobody's.
func (m *Manager) Cool(ctx context.Context) error {
	m.mu.Lock()
	m.warm.off = true
	m.mu.Unlock()
	return m.letAllGo(ctx)
}

// letAllGo ends what is being filled and lets go of all; nil when nothing is left.
// The caller has made sure that nothing is filled any more.
func (m *Manager) letAllGo(ctx context.Context) error {
	m.mu.Lock()
	stop, stopped := m.warm.stop, m.warm.stopped
	m.mu.Unlock()
	if stop != nil {
		stop(errClosing)
		select {
		case <-stopped:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	m.mu.Lock()
	all := make([]*warm, 0, len(m.warm.ready)+len(m.warm.going))
	for i, w := range m.warm.ready {
		delete(m.warm.ready, i)
		m.warm.going[i] = w
	}
	for _, w := range m.warm.going {
		all = append(all, w)
	}
	m.mu.Unlock()
	wide := newWide(m.cfg.PauseWidth)
	for _, w := range all {
		wide.do(func() error { return m.letGo(w) })
	}
	return wide.wait()
}

// watchWarm notices the end of an instance that waits.
func (m *Manager) watchWarm(w *warm, eng engine.Engine) {
	ctx, cancel := context.WithCancel(m.base)
	w.watch = cancel
	rec := w.kept.Record
	m.wg.Go(func() {
		if _, ok := m.await(ctx, eng, rec); !ok {
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		w.dead = true
		m.wakeWarm()
	})
}

// failedWarm spaces the next try of a target. Called with m.mu held.
func (m *Manager) failedWarm(key string, err error) {
	r := m.warm.retries[key]
	if r == nil {
		if len(m.warm.retries) >= maxWarmRetries {
			clear(m.warm.retries)
		}
		r = &warmRetry{}
		m.warm.retries[key] = r
	}
	r.reason = errs.As(err).Reason
	r.pause = min(max(2*r.pause, warmRetryMin), warmRetryMax)
	r.next = time.Now().Add(r.pause)
}

// maxWarmRetries bounds what is remembered of targets, also of those that are
// named no more.
const maxWarmRetries = 1024
