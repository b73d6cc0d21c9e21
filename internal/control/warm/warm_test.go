package warm

import (
	"testing"

	"pgregory.net/rapid"

	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/id"
)

func kind(memory int64) Kind {
	return Kind{Template: id.NewTemplate(), Engine: "gvisor", Image: "d", CPUMillis: 1000, MemoryMB: memory, DiskMB: 1024, Internet: true}
}

func machine(pool id.Team) Host {
	return Host{
		ID: id.NewHost(), Pool: pool, Takes: true, Arch: "amd64", Engines: []scheduler.Engine{{Name: "gvisor", Version: "1", Healthy: true}},
		FreeCPUMillis: 64_000, FreeMemoryMB: 64_000, FreeDiskMB: 640_000,
	}
}

func base() *Kind {
	k := kind(512)
	k.Engine = scheduler.EngineAuto
	return &k
}

// of is how many a host keeps of what has the template of k.
func of(entries []Entry, h id.Host, k Kind) (n int) {
	for _, e := range entries {
		if e.Host == h && e.Template == k.Template {
			n += e.Wanted
		}
	}
	return n
}

func TestPlanByDemand(t *testing.T) {
	a, b, own := machine(id.PlatformTeamID), machine(id.PlatformTeamID), machine(id.NewTeam())
	w := World{Hosts: []Host{a, b, own}, Base: base()}
	entries := Plan(w, Policy{})
	for _, h := range w.Hosts {
		if n := of(entries, h.ID, *w.Base); n != 1 {
			t.Errorf("without any demand a host keeps %d of the default", n)
		}
	}
	if entries[0].Engine != "gvisor" {
		t.Errorf("its engine is %q", entries[0].Engine)
	}
	much, once := kind(1024), kind(2048)
	inUse := *w.Base
	inUse.Engine = "gvisor"
	w.Demands = []Demand{{much, id.PlatformTeamID, 45}, {once, id.PlatformTeamID, 1}, {inUse, id.PlatformTeamID, 2}, {much, own.Pool, 2}}
	entries = Plan(w, Policy{})
	if x, y := of(entries, a.ID, much), of(entries, b.ID, much); x+y != 6 {
		t.Errorf("of what is started 4.5 times a minute there are %d and %d", x, y)
	}
	if n := of(entries, own.ID, much); n != 2 {
		t.Errorf("the team's own host keeps %d", n)
	}
	if of(entries, a.ID, once)+of(entries, b.ID, once) != 0 {
		t.Error("what was started once is kept")
	}
	if x, y := of(entries, a.ID, inUse), of(entries, b.ID, inUse); x+y != 2 {
		t.Errorf("of the default there are %d and %d", x, y)
	}
}

func TestPlanByPolicy(t *testing.T) {
	a, drained := machine(id.PlatformTeamID), machine(id.PlatformTeamID)
	drained.Takes = false
	w := World{Hosts: []Host{a, drained}, Base: base(), Demands: []Demand{{kind(1024), id.PlatformTeamID, 20}}}
	if entries := Plan(w, Policy{Off: true}); len(entries) != 0 {
		t.Errorf("off: %v", entries)
	}
	entries := Plan(w, Policy{Count: 20})
	if x, y := of(entries, a.ID, *w.Base), of(entries, a.ID, w.Demands[0].Kind); x != 17 || y != 3 {
		t.Errorf("of 20 there are %d of the default and %d of the other", x, y)
	}
	if of(entries, drained.ID, *w.Base) != 0 {
		t.Error("a host that is emptied keeps some")
	}
	w.Base = nil
	if entries := Plan(w, Policy{}); of(entries, a.ID, w.Demands[0].Kind) != 3 {
		t.Errorf("without a default: %v", entries)
	}
	for text, want := range map[string]Policy{"auto": {}, "": {}, "off": {Off: true}, "0": {Off: true}, "7": {Count: 7}} {
		if got, err := ParsePolicy(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1", "many", "1001"} {
		if _, err := ParsePolicy(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestWhatIsRestoredIsKeptWhereItsStateIs(t *testing.T) {
	a, b := machine(id.PlatformTeamID), machine(id.PlatformTeamID)
	k := kind(512)
	k.State = id.NewSnapshot()
	b.States = []id.Snapshot{k.State}
	entries := Plan(World{Hosts: []Host{a, b}, Demands: []Demand{{k, id.PlatformTeamID, 10}}}, Policy{})
	if of(entries, a.ID, k) != 0 || of(entries, b.ID, k) != 2 {
		t.Errorf("%v", entries)
	}
}

// Whatever the world is, no host keeps more than it has room for, or of what it
// cannot run, and the same world gives the same entries.
func TestSC03_PlanKeepsToEveryBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pools := []id.Team{id.PlatformTeamID, id.NewTeam()}
		var w World
		for range rapid.IntRange(0, 6).Draw(t, "hosts") {
			h := machine(rapid.SampledFrom(pools).Draw(t, "pool"))
			h.FreeCPUMillis = rapid.Int64Range(-1000, 20_000).Draw(t, "cpu")
			h.FreeMemoryMB = rapid.Int64Range(-100, 20_000).Draw(t, "memory")
			h.FreeDiskMB = rapid.Int64Range(0, 20_000).Draw(t, "disk")
			h.Arch = rapid.SampledFrom([]string{"amd64", "arm64"}).Draw(t, "arch")
			h.Engines[0].Healthy = rapid.IntRange(0, 4).Draw(t, "healthy") > 0
			h.Takes = rapid.IntRange(0, 4).Draw(t, "takes") > 0
			w.Hosts = append(w.Hosts, h)
		}
		if rapid.Bool().Draw(t, "base") {
			w.Base = base()
		}
		for range rapid.IntRange(0, 6).Draw(t, "demands") {
			k := kind(rapid.Int64Range(64, 4096).Draw(t, "mb"))
			k.Arch = rapid.SampledFrom([]string{"", "amd64", "arm64"}).Draw(t, "for")
			w.Demands = append(w.Demands, Demand{k, rapid.SampledFrom(pools).Draw(t, "of"), rapid.IntRange(1, 300).Draw(t, "count")})
		}
		p := Policy{Count: rapid.SampledFrom([]int{0, 0, 3, 30}).Draw(t, "policy")}
		entries := Plan(w, p)
		again := Plan(w, p)
		if len(again) != len(entries) {
			t.Fatalf("%d entries and then %d", len(entries), len(again))
		}
		for i := range entries {
			if entries[i] != again[i] {
				t.Fatalf("entry %d is %+v and then %+v", i, entries[i], again[i])
			}
		}
		for _, h := range w.Hosts {
			var n int
			var cpu, memory, disk int64
			for _, e := range entries {
				if e.Host != h.ID {
					continue
				}
				if e.Wanted < 1 || !h.Takes || !h.Engines[0].Healthy || e.Engine != "gvisor" || e.Arch != "" && e.Arch != h.Arch {
					t.Fatalf("%+v on %+v", e, h)
				}
				n += e.Wanted
				cpu, memory, disk = cpu+int64(e.Wanted)*e.CPUMillis, memory+int64(e.Wanted)*e.MemoryMB, disk+int64(e.Wanted)*e.DiskMB
			}
			if n > max(p.Count, perHost) || n > 0 && (cpu > h.FreeCPUMillis || memory > h.FreeMemoryMB || disk > h.FreeDiskMB) {
				t.Fatalf("%d on %+v", n, h)
			}
		}
	})
}
