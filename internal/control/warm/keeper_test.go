package warm

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a database and hosts.
type fleet struct {
	mu     sync.Mutex
	world  World
	others bool // another server decides
	said   map[id.Host][]host.WarmTarget
	calls  int
	ready  int
	reason string
	down   bool
	found  map[id.Host]map[string]int
	asked  int // of the database, beside Decide
}

func (f *fleet) Decide(_ context.Context, _ time.Duration, plan func(World) []Entry) (out []Told, mine bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.others {
		return nil, false, nil
	}
	entries := plan(f.world)
	for _, h := range f.world.Hosts {
		t := Told{Ref: host.Ref{ID: h.ID, Generation: 1}}
		for _, e := range entries {
			if e.Host == h.ID {
				t.Entries = append(t.Entries, e)
				t.Lacks = t.Lacks || f.found[h.ID][string(e.Key())] < e.Wanted
			}
		}
		out = append(out, t)
	}
	return out, true, nil
}

func (f *fleet) Found(_ context.Context, h id.Host, there map[string]int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.found[h] = there
	f.asked++
	return nil
}

func (f *fleet) KeepWarm(_ context.Context, h host.Ref, targets []host.WarmTarget) ([]host.Warm, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.down {
		return nil, errors.New("down")
	}
	f.said[h.ID] = targets
	out := make([]host.Warm, len(targets))
	for i, t := range targets {
		out[i] = host.Warm{Key: t.Key, Ready: f.ready, Reason: f.reason}
	}
	return out, nil
}

func (f *fleet) ByID(_ context.Context, tpl id.Template) (template.Template, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return template.Template{ID: tpl, ImageSizeBytes: 7}, nil
}

func (f *fleet) ImageSource(context.Context, template.Template, id.Host) (content.Source, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	return content.Source{URL: "https://x"}, nil
}

func newFleet() *fleet {
	return &fleet{
		world: World{Hosts: []Host{machine(id.PlatformTeamID)}, Base: base()}, said: map[id.Host][]host.WarmTarget{}, found: map[id.Host]map[string]int{},
	}
}

func TestTheKeeperTellsHostsUntilTheyHaveIt(t *testing.T) {
	f := newFleet()
	f.reason = filling
	k := NewKeeper(f, f, f, Policy{}, slog.New(slog.DiscardHandler))
	now := time.Now()
	k.now = func() time.Time { return now }
	h := f.world.Hosts[0].ID
	if whole, err := k.Pass(t.Context()); whole || err != nil {
		t.Errorf("while it fills: %v, %v", whole, err)
	}
	said := f.said[h]
	if len(said) != 1 || said[0].Count != 1 || said[0].Engine != "gvisor" || said[0].MaxProcesses != 128 || said[0].Image.SizeBytes != 7 || said[0].ImageFrom.URL == "" {
		t.Errorf("it was told %+v", said)
	}
	f.ready = 3 // more than it was asked for are not believed
	if whole, err := k.Pass(t.Context()); !whole || err != nil {
		t.Errorf("when it has it: %v, %v", whole, err)
	}
	if n := f.found[h][string(said[0].Key)]; n != 1 {
		t.Errorf("%d were noted", n)
	}
	k.policy.Off = true
	for range 2 {
		if _, err := k.Pass(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if f.calls != 3 || len(f.said[h]) != 0 {
		t.Errorf("%d calls, at last %v: what is off is said once", f.calls, f.said[h])
	}
	now = now.Add(again)
	if _, err := k.Pass(t.Context()); err != nil || f.calls != 4 {
		t.Errorf("%d calls, %v", f.calls, err)
	}
	f.down = true
	k.policy.Off = false
	if whole, err := k.Pass(t.Context()); err == nil || !whole {
		t.Errorf("a host that does not answer: %v, %v", whole, err)
	}
	f.others = true
	if _, err := k.Pass(t.Context()); err != nil || f.calls != 5 {
		t.Errorf("while another server decides: %d calls, %v", f.calls, err)
	}
}

// TestALargeFleetCostsLittleOnceItHasAll: hosts that have what they are to keep are
// heard now and then, by nothing of the database but the template; one that lost an
// instance is told at once, and one that does not answer not at each look.
func TestALargeFleetCostsLittleOnceItHasAll(t *testing.T) {
	f := newFleet()
	for range 99 {
		f.world.Hosts = append(f.world.Hosts, machine(id.PlatformTeamID))
	}
	f.ready = 1
	k := NewKeeper(f, f, f, Policy{}, slog.New(slog.DiscardHandler))
	now := time.Now()
	k.now = func() time.Time { return now }
	pass := func(calls, asked int, what string) {
		t.Helper()
		f.calls, f.asked = 0, 0
		_, _ = k.Pass(t.Context())
		if f.calls != calls || f.asked != asked {
			t.Errorf("%s: %d hosts were told and the database was asked %d times, want %d and %d", what, f.calls, f.asked, calls, asked)
		}
	}
	pass(100, 1+100+100, "at first")
	pass(0, 0, "soon after")
	now = now.Add(2 * passEvery)
	pass(100, 1, "a while after")
	h := f.world.Hosts[7].ID
	for key := range f.found[h] {
		f.found[h][key] = 0
	}
	pass(1, 1+1+1, "after one was taken")
	f.down = true
	now = now.Add(2 * passEvery)
	pass(100, 1, "when no host answers")
	pass(0, 0, "soon after that")
}

func TestALongLookIsRestedAfterButNotForLong(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: passSoon, 200 * time.Millisecond: 2 * time.Second, callLimit: passEvery} {
		if got := soon(took); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

func TestAHostThatTellsOfSomethingElseIsNotBelieved(t *testing.T) {
	f := newFleet()
	k := NewKeeper(f, liar{f}, f, Policy{}, slog.New(slog.DiscardHandler))
	if _, err := k.Pass(t.Context()); !errors.Is(err, errNotOurs) {
		t.Errorf("%v", err)
	}
	if len(f.found) != 0 {
		t.Errorf("noted: %v", f.found)
	}
}

type liar struct{ *fleet }

func (l liar) KeepWarm(ctx context.Context, h host.Ref, targets []host.WarmTarget) ([]host.Warm, error) {
	out, err := l.fleet.KeepWarm(ctx, h, targets)
	for i := range out {
		out[i].Key = slices.Clone(out[i].Key)
		out[i].Key[0]++
	}
	return out, err
}

func TestTheKeeperRunsAndStops(t *testing.T) {
	f := newFleet()
	f.ready = 1
	k := NewKeeper(f, f, f, Policy{}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	calls := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.calls }
	testkit.Eventually(t, 20*time.Second, "a first look", func() bool { return calls() == 1 })
	k.Hint()
	k.Hint()
	testkit.Eventually(t, 20*time.Second, "a look after a hint", func() bool { return calls() == 2 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
