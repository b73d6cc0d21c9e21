package scheduler

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"skerry.dev/skerry/internal/kernel/id"
)

func host(name string, cpus, memoryMB int64, placed time.Time) HostView {
	return HostView{
		ID: id.NewHost(), Name: name, CPUCount: cpus, MemoryBytes: memoryMB << 20, DiskBytes: 100 << 30, LastPlacedAt: placed,
		Engines: []Engine{{Name: "fake", Version: "1", Healthy: true}, {Name: "gvisor", Version: "2", Healthy: true}},
	}
}

func TestH13_RoundRobinTakesTheLeastRecentlyPlaced(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	hosts := []HostView{host("a", 2, 4096, t0.Add(2*time.Second)), host("b", 2, 4096, t0), host("c", 2, 4096, time.Time{})}
	s := RoundRobinScheduler{Overcommit: DefaultOvercommit()}
	for i, want := range []string{"c", "b", "a", "c"} {
		d := s.Pick(Request{CPUMillis: 1000, MemoryMB: 512, DiskMB: 4096}, hosts)
		if !d.Placed {
			t.Fatalf("round %d: not placed: %+v", i, d.Refusals)
		}
		for j := range hosts {
			if hosts[j].ID != d.HostID {
				continue
			}
			if hosts[j].Name != want {
				t.Fatalf("round %d: took %s, want %s", i, hosts[j].Name, want)
			}
			hosts[j].LastPlacedAt = t0.Add(time.Hour + time.Duration(i)*time.Second)
		}
	}
}

func TestH13_EachRefusedHostIsExplained(t *testing.T) {
	sick := host("sick", 2, 4096, time.Time{})
	sick.Engines = []Engine{{Name: "gvisor", Reasons: []string{"no user namespaces"}}}
	full := host("full", 1, 1024, time.Time{})
	full.ReservedMemoryMB = 1000
	small := host("small", 1, 4096, time.Time{})
	noDisk := host("no-disk", 8, 4096, time.Time{})
	noDisk.DiskBytes = 1 << 20
	d := RoundRobinScheduler{Overcommit: Overcommit{CPU: 1, Memory: 1}}.Pick(
		Request{CPUMillis: 2000, MemoryMB: 512, DiskMB: 4096, Engine: EngineAuto}, []HostView{sick, small, noDisk})
	if d.Placed || len(d.Refusals) != 3 {
		t.Fatalf("decision %+v", d)
	}
	got := map[string]string{}
	for _, r := range d.Refusals {
		if r.Message == "" {
			t.Errorf("%s refused without a message", r.Host)
		}
		got[r.Host] = r.Reason
	}
	for name, want := range map[string]string{"sick": "no_engine", "small": "cpu", "no-disk": "disk"} {
		if got[name] != want {
			t.Errorf("%s refused for %q, want %q", name, got[name], want)
		}
	}
	d = RoundRobinScheduler{Overcommit: Overcommit{CPU: 1, Memory: 1}}.Pick(Request{CPUMillis: 100, MemoryMB: 512}, []HostView{full})
	if d.Placed || d.Refusals[0].Reason != "memory" {
		t.Fatalf("full host: %+v", d)
	}
}

func TestS13_AutoPrefersGvisorAndNeverMicrovm(t *testing.T) {
	h := host("a", 2, 4096, time.Time{})
	s := RoundRobinScheduler{Overcommit: DefaultOvercommit()}
	if d := s.Pick(Request{Engine: EngineAuto}, []HostView{h}); d.Engine != "gvisor" || d.EngineVersion != "2" {
		t.Errorf("auto chose %q %q", d.Engine, d.EngineVersion)
	}
	h.Engines = []Engine{{Name: "microvm", Healthy: true}}
	if d := s.Pick(Request{Engine: EngineAuto}, []HostView{h}); d.Placed {
		t.Error("auto chose microvm")
	}
	if d := s.Pick(Request{Engine: "microvm"}, []HostView{h}); !d.Placed {
		t.Error("microvm was asked for and refused")
	}
}

func TestSC01_ADecisionNeverOversells(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		over := Overcommit{CPU: float64(rapid.IntRange(1, 4).Draw(t, "cpu")), Memory: float64(rapid.IntRange(1, 4).Draw(t, "memory"))}
		hosts := make([]HostView, rapid.IntRange(1, 4).Draw(t, "hosts"))
		for i := range hosts {
			hosts[i] = host("h", rapid.Int64Range(1, 8).Draw(t, "cpus"), rapid.Int64Range(256, 4096).Draw(t, "mb"), time.Time{})
		}
		s := RoundRobinScheduler{Overcommit: over}
		for range rapid.IntRange(1, 100).Draw(t, "creates") {
			req := Request{CPUMillis: rapid.Int64Range(1, 2000).Draw(t, "want"), MemoryMB: rapid.Int64Range(1, 1024).Draw(t, "wantMB"), DiskMB: 4096}
			d := s.Pick(req, hosts)
			for i := range hosts {
				h := &hosts[i]
				if d.Placed && h.ID == d.HostID {
					h.ReservedCPUMillis += req.CPUMillis
					h.ReservedMemoryMB += req.MemoryMB
					h.ReservedDiskMB += req.DiskMB
				}
				if float64(h.ReservedCPUMillis) > float64(h.CPUCount*1000)*over.CPU ||
					float64(h.ReservedMemoryMB) > float64(h.MemoryBytes>>20)*over.Memory || h.ReservedDiskMB > h.DiskBytes>>20 {
					t.Fatalf("oversold: %+v", *h)
				}
			}
		}
	})
}

func TestP5_HoldersOfAStateComeFirst(t *testing.T) {
	old, now := time.Unix(1, 0), time.Unix(2, 0)
	hosts := []HostView{host("a", 8, 8192, old), host("b", 8, 8192, now), host("c", 8, 8192, now)}
	for i := range hosts {
		hosts[i].Arch = "amd64"
		hosts[i].Engines = []Engine{{Name: "gvisor", Version: "2", Healthy: true, CPUFeatures: []string{"avx"}}}
	}
	a, b, c := hosts[0].ID, hosts[1].ID, hosts[2].ID
	base := Request{CPUMillis: 1000, MemoryMB: 512, DiskMB: 1, Engine: "gvisor", EngineVersion: "2"}
	for name, x := range map[string]struct {
		change func(*Request)
		want   id.Host
		reason string // of every refusal, where none fits
	}{
		"anywhere":               {func(*Request) {}, a, ""},
		"its home":               {func(r *Request) { r.Holders, r.Home = []id.Host{b, c}, c }, c, ""},
		"a home without it":      {func(r *Request) { r.Holders, r.Home = []id.Host{b}, c }, b, ""},
		"not set aside":          {func(r *Request) { r.Holders, r.Home, r.Avoid = []id.Host{b, c}, c, []id.Host{c} }, b, ""},
		"elsewhere":              {func(r *Request) { r.Holders, r.Avoid = []id.Host{b}, []id.Host{b} }, a, ""},
		"only holders":           {func(r *Request) { r.Hosts, r.Holders = []id.Host{b}, []id.Host{b} }, b, ""},
		"nowhere":                {func(r *Request) { r.Hosts = []id.Host{} }, id.Host{}, "not_there"},
		"another version":        {func(r *Request) { r.EngineVersion = "1" }, id.Host{}, "engine_version"},
		"a version kept":         {func(r *Request) { r.EngineVersion = "kept" }, b, ""},
		"a version to be had":    {func(r *Request) { r.EngineVersion, r.EngineArches = "1", []string{"amd64"} }, a, ""},
		"for another machine":    {func(r *Request) { r.EngineVersion, r.EngineArches = "1", []string{"arm64"} }, id.Host{}, "engine_version"},
		"features it lacks":      {func(r *Request) { r.CPUFeatures = []string{"amx"} }, id.Host{}, "cpu_features"},
		"several together":       {func(r *Request) { r.Count = 8 }, a, ""},
		"too many of it":         {func(r *Request) { r.Count = 9 }, id.Host{}, "cpu"},
		"more memory than there": {func(r *Request) { r.Count, r.CPUMillis, r.MemoryMB = 3, 1, 4000 }, id.Host{}, "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			views := slices.Clone(hosts)
			views[1].Engines = []Engine{{Name: "gvisor", Version: "2", Healthy: true, CPUFeatures: []string{"avx"}, Builds: []EngineBuild{{Version: "kept"}}}}
			req := base
			x.change(&req)
			d := RoundRobinScheduler{Overcommit: Overcommit{CPU: 1, Memory: 1}}.Pick(req, views)
			if d.HostID != x.want || d.Placed == x.want.IsZero() {
				t.Errorf("went to %s (%v)", d.HostID, d.Refusals)
			}
			for _, r := range d.Refusals {
				if x.reason != "" && r.Reason != x.reason {
					t.Errorf("refused for %s: %s", r.Reason, r.Message)
				}
			}
		})
	}
}

// A host that has the sandbox ready comes before others that fit, and never
// because of something else that it has ready; what waits fills a host for the
// order, and never for the room.
func TestH13_WhatIsReadyComesFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		over := Overcommit{CPU: 4, Memory: 4}
		s := policies(t, over)
		req := Request{CPUMillis: 1000, MemoryMB: 128, DiskMB: 64, Engine: "gvisor", Template: id.NewTemplate(), Internet: true}
		ready := Warm{Template: req.Template, Engine: "gvisor", CPUMillis: 1000, MemoryMB: 128, DiskMB: 64, Internet: true, Ready: 1}
		hosts := rapid.SliceOfN(rapid.Custom(anyHost), 1, 8).Draw(t, "hosts")
		cold := s.Pick(req, hosts)
		for i := range hosts {
			other := ready
			switch rapid.IntRange(0, 5).Draw(t, "other") {
			case 0:
				other.Ready = 0
			case 1:
				other.MemoryMB++
			case 2:
				other.State = id.NewSnapshot()
			case 3:
				other.Internet = false
			case 4:
				other.Template = id.NewTemplate()
			default:
				other.Engine = "fake"
			}
			hosts[i].Warm = []Warm{other}
		}
		if got := s.Pick(req, hosts); got.HostID != cold.HostID {
			t.Fatalf("what is of no use moved it from %s to %s", cold.HostID, got.HostID)
		}
		at := rapid.IntRange(0, len(hosts)-1).Draw(t, "ready")
		hosts[at].Warm = append(hosts[at].Warm, ready)
		got := s.Pick(req, hosts)
		if _, refused := fits(req, &hosts[at], over); (refused == nil) != (got.HostID == hosts[at].ID) && refused == nil {
			t.Fatalf("it is on %s, and ready on %s", got.HostID, hosts[at].ID)
		}
		for i := range hosts {
			hosts[i].WarmCPUMillis, hosts[i].WarmMemoryMB = 1<<30, 1<<30
		}
		if full := s.Pick(req, hosts); full.Placed != got.Placed || len(full.Refusals) != len(got.Refusals) {
			t.Fatalf("what waits keeps it out: %+v, not %+v", full, got)
		}
	})
}
