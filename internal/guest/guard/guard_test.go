package guard

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
)

func TestEventsAreNumberedHeldAndAnnounced(t *testing.T) {
	e := NewEvents(1000)
	_, more := e.Since(0)
	for range kept + 10 {
		e.Emit(guestapi.Event{Kind: guestapi.EventDiskFull})
	}
	select {
	case <-more:
	default:
		t.Error("nobody was told")
	}
	all, _ := e.Since(0)
	if len(all) != kept || all[0].Seq != 1011 || all[kept-1].Seq != 1000+kept+10 {
		t.Errorf("%d events from %d to %d", len(all), all[0].Seq, all[len(all)-1].Seq)
	}
	if some, _ := e.Since(1000 + kept + 8); len(some) != 2 {
		t.Errorf("%d events after the last but two", len(some))
	}
}

// The guard looks as often as memory could run out, and never busily.
func TestS15_HowOftenTheGuardLooks(t *testing.T) {
	var m procfs.Memory
	g := New(Options{MaxProcesses: func() int { return 0 }, Emit: func(guestapi.Event) {}})
	g.readMem = func() (procfs.Memory, error) { return m, nil }
	for _, c := range []struct {
		total, available uint64
		min, max         time.Duration
	}{
		{8 << 30, 6 << 30, lookMax, lookMax},
		{512 << 20, 400 << 20, 100 * time.Millisecond, 300 * time.Millisecond},
		{512 << 20, 60 << 20, lookMin, 20 * time.Millisecond},
	} {
		m = procfs.Memory{Total: c.total, Available: c.available}
		if d := g.memory(context.Background()); d < c.min || d > c.max {
			t.Errorf("%d of %d MiB available: looks after %s", c.available>>20, c.total>>20, d)
		}
	}
}

// A crowd that ended because it was stopped is told of, also when it takes a
// while to go; one that lived on is not, whatever becomes of it later.
func TestS14_ACrowdThatHungUpIsToldOf(t *testing.T) {
	type look struct {
		after time.Duration
		used  int
		ended bool
	}
	for name, looks := range map[string][]look{
		"at once":            {{5, 30, true}},
		"over many looks":    {{5, 70, false}, {90, 60, false}, {180, 50, false}, {270, 30, true}},
		"it lives on":        {{5, 80, false}, {120, 80, false}, {125, 30, false}},
		"it falls and stays": {{5, 70, false}, {120, 70, false}, {125, 30, false}},
	} {
		g, began := New(Options{}), time.Now()
		g.braked, g.brakedAt, g.tasks = 80, began, 80
		for _, l := range looks {
			if got := g.hungUp(l.used, began.Add(l.after*time.Millisecond)); got != l.ended {
				t.Errorf("%s: after %d ms, %d left: %v", name, l.after, l.used, got)
			}
			g.tasks = l.used
		}
	}
}

// An idle sandbox costs its host nothing to speak of, also a small one.
func TestALonelyDaemonRests(t *testing.T) {
	for _, c := range []struct {
		processes int
		next      time.Duration
		want      bool
	}{{2, 70 * time.Millisecond, true}, {2, lookMax, true}, {2, lookMin, false}, {2, 0, false}, {3, lookMax, false}} {
		if got := rest(c.processes, c.next); got != c.want {
			t.Errorf("%d processes, next look in %s: %v", c.processes, c.next, got)
		}
	}
}

func TestS15_NothingIsKilledThatCouldNotHelp(t *testing.T) {
	g := New(Options{MaxProcesses: func() int { return 0 }, Emit: func(e guestapi.Event) { t.Errorf("emitted %+v", e) }})
	if g.killLargest(context.Background(), procfs.Memory{Total: 1 << 62}, 0, 1<<57) {
		t.Error("killed something")
	}
}

func TestAProcessBelongsToItsCommandOrSession(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	cmd.Env = append(os.Environ(), execMark+"fam")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	p, ok := procfs.Read(cmd.Process.Pid)
	if !ok || command(p) != "efam" || command(procfs.Process{PID: 1 << 30, Session: 5}) != "s5" {
		t.Errorf("%v: %q", ok, command(p))
	}
	many := []procfs.Process{{PID: 1 << 30, Session: 5}, {PID: 1<<30 + 1, Session: 5}, {PID: 1<<30 + 2, Session: 6}}
	if got := largest(many, command); len(got) != 2 || got[0].Session != 5 {
		t.Errorf("%v", got)
	}
}
