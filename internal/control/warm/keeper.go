package warm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm of the loop.
const (
	// Window is how far back demand is looked at.
	Window        = windowMinutes * time.Minute
	windowMinutes = 10
	// passEvery is how often all is looked at and every host is heard, passSoon
	// after something changed or while hosts are at it. A look may take a part of
	// the time, no more: what takes longer comes less often.
	passEvery = 10 * time.Second
	passSoon  = time.Second
	restShare = 10
	// again is how often a host is told that is to keep nothing.
	again = 30 * time.Second
	// callLimit bounds one host's answer, calls how many are asked at once.
	callLimit = 10 * time.Second
	calls     = 8
)

// Told is what one host is told.
type Told struct {
	host.Ref
	Entries []Entry
	// Lacks: it was last known to have less than that.
	Lacks bool
}

// Store is what the loop needs of the database. Each verb is one transaction.
type Store interface {
	// Decide reads the world, has plan decide, and writes that down. It returns what
	// each host is to be told that can be called; false when another server is just
	// deciding.
	Decide(ctx context.Context, window time.Duration, plan func(World) []Entry) ([]Told, bool, error)
	// Found notes how many of each there are.
	Found(ctx context.Context, h id.Host, there map[string]int) error
}

// Agents are the hosts' agents, as far as they keep instances ready.
type Agents interface {
	KeepWarm(ctx context.Context, h host.Ref, targets []host.WarmTarget) ([]host.Warm, error)
}

// Templates find what is started.
type Templates interface {
	ByID(ctx context.Context, tpl id.Template) (template.Template, error)
	ImageSource(ctx context.Context, t template.Template, h id.Host) (content.Source, error)
}

// Keeper tells hosts what to keep ready. It looks at the world again and again;
// several servers may each run one, of which one decides at a time.
type Keeper struct {
	store     Store
	agents    Agents
	templates Templates
	policy    Policy
	log       *slog.Logger
	hints     chan struct{}
	now       func() time.Time

	mu   sync.Mutex
	told map[id.Host]told
}

// told is what a host was told last, and when.
type told struct {
	generation int64
	what       string
	at         time.Time
	whole      bool // it keeps all of it, or cannot
	failed     bool // the last try
}

// NewKeeper makes the loop.
func NewKeeper(store Store, agents Agents, templates Templates, policy Policy, log *slog.Logger) *Keeper {
	return &Keeper{
		store: store, agents: agents, templates: templates, policy: policy, log: log, hints: make(chan struct{}, 1), now: time.Now,
		told: map[id.Host]told{},
	}
}

// Hint asks for a look soon: something was started. It may be lost.
func (k *Keeper) Hint() {
	select {
	case k.hints <- struct{}{}:
	default:
	}
}

// Run keeps until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		whole, began := true, time.Now()
		err := observe.Round(ctx, "warm_keeper", func(ctx context.Context) (err error) {
			whole, err = k.Pass(ctx)
			return err
		})
		if err != nil && ctx.Err() == nil {
			k.log.WarnContext(ctx, "cannot have all instances kept ready", "error", err)
		}
		if !k.rest(ctx, whole || err != nil, soon(time.Since(began))) {
			return nil
		}
	}
}

// soon is how long a look that took so long is rested after at least. One host that
// hangs does not keep the others waiting for more than the usual.
func soon(took time.Duration) time.Duration {
	return min(max(passSoon, restShare*took), passEvery)
}

// rest waits for the next look, soon after a hint or when hosts are at it; false
// when ctx ended.
func (k *Keeper) rest(ctx context.Context, whole bool, soon time.Duration) bool {
	hints, pause := k.hints, passEvery
	if !whole {
		hints, pause = nil, soon
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-hints: // not at once: more may have happened
			hints = nil
			timer.Reset(soon)
		case <-timer.C:
			return true
		}
	}
}

// Pass is one bounded look. It reports whether all hosts keep what they are to.
func (k *Keeper) Pass(ctx context.Context) (whole bool, err error) {
	all, mine, err := k.store.Decide(ctx, Window, func(w World) []Entry { return Plan(w, k.policy) })
	if err != nil || !mine {
		return true, err
	}
	k.forget(all)
	var wg sync.WaitGroup
	turn := make(chan struct{}, calls)
	failed := make([]error, len(all))
	known := &looked{templates: k.templates, all: map[id.Template]template.Template{}}
	for i, t := range all {
		if !k.due(t) {
			continue
		}
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			if failed[i] = k.tell(ctx, t, known); failed[i] != nil {
				k.note(t, told{failed: true})
			}
		})
	}
	wg.Wait()
	return k.whole(), errors.Join(failed...)
}

// tell has one host keep what it is to, and notes what it has.
func (k *Keeper) tell(ctx context.Context, t Told, known *looked) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	settled := k.settled(t)
	targets := make([]host.WarmTarget, 0, len(t.Entries))
	for _, e := range t.Entries {
		target, err := k.target(ctx, e, known, settled)
		if err != nil {
			return fmt.Errorf("host %s: template %s: %w", t.ID, e.Template, err)
		}
		targets = append(targets, target)
	}
	kept, err := k.agents.KeepWarm(ctx, t.Ref, targets)
	if err != nil {
		return fmt.Errorf("host %s: %w", t.ID, err)
	}
	there, whole := make(map[string]int, len(kept)), true
	for i, e := range t.Entries {
		if i >= len(kept) || !bytes.Equal(kept[i].Key, targets[i].Key) {
			return fmt.Errorf("host %s: %w", t.ID, errNotOurs)
		}
		there[string(kept[i].Key)] = min(max(kept[i].Ready, 0), e.Wanted)
		whole = whole && (kept[i].Ready >= e.Wanted || kept[i].Reason != filling)
	}
	k.note(t, told{whole: whole})
	if all := !slices.ContainsFunc(t.Entries, func(e Entry) bool { return there[string(e.Key())] < e.Wanted }); all && !t.Lacks {
		return nil // as is known
	}
	return k.store.Found(ctx, t.ID, there)
}

// looked are the templates that a pass has read.
type looked struct {
	templates Templates
	mu        sync.Mutex
	all       map[id.Template]template.Template
}

func (l *looked) byID(ctx context.Context, tpl id.Template) (template.Template, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.all[tpl]; ok {
		return t, nil
	}
	t, err := l.templates.ByID(ctx, tpl)
	if err == nil {
		l.all[tpl] = t
	}
	return t, err
}

// filling is the reason of a host that is at it.
const filling = "filling"

// target is what a host is told of an entry. Where the image comes from counts for
// those alone that have yet to make one: what a settled host finds missing, it
// says.
func (k *Keeper) target(ctx context.Context, e Entry, known *looked, settled bool) (host.WarmTarget, error) {
	t := host.WarmTarget{
		Key: e.Key(), Template: e.Template, Engine: e.Engine, CPUMillis: e.CPUMillis, MemoryMB: e.MemoryMB, DiskMB: e.DiskMB,
		MaxProcesses: sandbox.MaxProcesses(e.MemoryMB), Internet: e.Internet, Count: e.Wanted, State: e.State,
	}
	tpl, err := known.byID(ctx, e.Template)
	if err != nil {
		return t, err
	}
	t.Image = host.ImageCargo{Digest: e.Image, SizeBytes: tpl.ImageSizeBytes}
	if settled {
		return t, nil
	}
	t.ImageFrom, err = k.templates.ImageSource(ctx, tpl, e.Host)
	return t, err
}

// sum is what a host is told, to be compared.
func sum(t Told) string {
	var b []byte
	for _, e := range t.Entries {
		b = fmt.Appendf(b, "%x %d\n", e.Key(), e.Wanted)
	}
	return string(b)
}

// settled reports whether the host has all of it, as far as is known.
func (k *Keeper) settled(t Told) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last, known := k.told[t.ID]
	return known && last.generation == t.Generation && last.what == sum(t) && last.whole && !last.failed && !t.Lacks
}

// due reports whether a host is to be told: what is new, what it lacks, and now and
// then again, for what it has to be heard. One that is to keep nothing, and one
// that could not be told, is told more rarely.
func (k *Keeper) due(t Told) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last, known := k.told[t.ID]
	since := k.now().Sub(last.at)
	switch {
	case !known || last.generation != t.Generation:
		return true
	case last.failed:
		return since >= passEvery+slack(t.ID)
	case last.what != sum(t) || !last.whole || t.Lacks:
		return true
	case len(t.Entries) > 0:
		return since >= passEvery+slack(t.ID)
	}
	return since >= again
}

// slack is a part of passEvery by which hosts are not all heard at once, where
// looks come more often than that.
func slack(h id.Host) time.Duration {
	u := h.UUID()
	return passEvery * time.Duration(u[15]) / 256
}

// note remembers how telling a host went.
func (k *Keeper) note(t Told, how told) {
	how.generation, how.what, how.at = t.Generation, sum(t), k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told[t.ID] = how
}

// forget forgets hosts that cannot be called.
func (k *Keeper) forget(all []Told) {
	there := make(map[id.Host]bool, len(all))
	for _, t := range all {
		there[t.ID] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for h := range k.told {
		if !there[h] {
			delete(k.told, h)
		}
	}
}

func (k *Keeper) whole() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range k.told {
		if !t.whole && !t.failed {
			return false
		}
	}
	return true
}
