package scheduler

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"skerry.dev/skerry/internal/kernel/id"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func policies(t *rapid.T, over Overcommit) Scheduler {
	s, err := New(rapid.SampledFrom([]string{RoundRobin, LeastLoaded, BinPack}).Draw(t, "policy"), over)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func anyHost(t *rapid.T) HostView {
	h := HostView{
		ID: id.NewHost(), Name: "h", Arch: rapid.SampledFrom([]string{"amd64", "arm64"}).Draw(t, "arch"),
		CPUCount: rapid.Int64Range(1, 8).Draw(t, "cpus"), MemoryBytes: rapid.Int64Range(64, 4096).Draw(t, "mb") << 20,
		DiskBytes:         rapid.Int64Range(64, 4096).Draw(t, "disk") << 20,
		ReservedCPUMillis: rapid.Int64Range(0, 8000).Draw(t, "rcpu"), ReservedMemoryMB: rapid.Int64Range(0, 4096).Draw(t, "rmb"),
		ReservedDiskMB: rapid.Int64Range(0, 2048).Draw(t, "rdisk"),
		LastPlacedAt:   epoch.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "placed")) * time.Second),
	}
	for _, name := range []string{"gvisor", "fake", "microvm"} {
		if rapid.Bool().Draw(t, name) {
			h.Engines = append(h.Engines, Engine{Name: name, Version: strconv.Itoa(rapid.IntRange(1, 2).Draw(t, "v")), Healthy: rapid.IntRange(0, 3).Draw(t, "healthy") > 0})
		}
	}
	if rapid.Bool().Draw(t, "labelled") {
		h.Labels = map[string]string{"zone": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone"), "disk": "nvme"}
	}
	if rapid.Bool().Draw(t, "has") {
		h.Images = []string{"image"}
	}
	return h
}

// unmet are the words of what a host does not fulfil, found without the code under
// test.
func unmet(req Request, h HostView, over Overcommit) []string {
	var out []string
	no := func(reason string, failed bool) {
		if failed {
			out = append(out, reason)
		}
	}
	no("not_there", req.Hosts != nil && !slices.Contains(req.Hosts, h.ID))
	no("arch", req.Arch != "" && req.Arch != h.Arch)
	for k, v := range req.Labels {
		no("labels", h.Labels[k] != v)
	}
	var usable []Engine
	for _, e := range h.Engines {
		if e.Healthy && (e.Name == req.Engine || req.Engine == EngineAuto && e.Name != "microvm") {
			usable = append(usable, e)
		}
	}
	no("no_engine", len(usable) == 0)
	if len(usable) > 0 {
		// gvisor is generated first, which is what auto takes where it can.
		no("engine_version", req.EngineVersion != "" && usable[0].Version != req.EngineVersion)
	}
	no("cpu", req.CPUMillis > h.CPUCount*1000 || float64(h.ReservedCPUMillis+req.CPUMillis) > float64(h.CPUCount*1000)*over.CPU)
	no("memory", req.MemoryMB > h.MemoryBytes>>20 || float64(h.ReservedMemoryMB+req.MemoryMB) > float64(h.MemoryBytes>>20)*over.Memory)
	no("disk", h.ReservedDiskMB+req.DiskMB > h.DiskBytes>>20)
	return out
}

// Two hundred sets of hosts: whoever is taken fulfils everything, nobody who
// does is left out, and each who does not is told why, truly.
func TestSC04_EveryPlacementFulfilsEveryConstraint(t *testing.T) {
	sets, placed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		over := Overcommit{CPU: float64(rapid.IntRange(1, 4).Draw(t, "cpuover")), Memory: float64(rapid.IntRange(1, 3).Draw(t, "memover"))}
		hosts := rapid.SliceOfN(rapid.Custom(anyHost), 0, 8).Draw(t, "hosts")
		s := policies(t, over)
		for range 3 {
			req := Request{
				CPUMillis: rapid.Int64Range(1, 4000).Draw(t, "cpu"), MemoryMB: rapid.Int64Range(1, 2048).Draw(t, "memory"), DiskMB: rapid.Int64Range(1, 2048).Draw(t, "disk"),
				Engine: rapid.SampledFrom([]string{EngineAuto, "gvisor", "microvm"}).Draw(t, "engine"), Image: "image",
				Arch:          rapid.SampledFrom([]string{"", "amd64", "arm64"}).Draw(t, "arch"),
				EngineVersion: rapid.SampledFrom([]string{"", "", "1"}).Draw(t, "version"),
			}
			if rapid.IntRange(0, 3).Draw(t, "labels") == 0 {
				req.Labels = map[string]string{"zone": "a", "disk": "nvme"}
			}
			if len(hosts) > 0 && rapid.IntRange(0, 4).Draw(t, "pinned") == 0 {
				req.Hosts = []id.Host{hosts[0].ID}
			}
			d := s.Pick(req, hosts)
			sets++
			refused := map[id.Host]string{}
			for _, r := range d.Refusals {
				if r.Message == "" || refused[r.HostID] != "" {
					t.Fatalf("refusals %+v", d.Refusals)
				}
				refused[r.HostID] = r.Reason
			}
			fit := 0
			for _, h := range hosts {
				why := unmet(req, h, over)
				if len(why) == 0 {
					fit++
				}
				if reason, ok := refused[h.ID]; ok != (len(why) > 0) || ok && !slices.Contains(why, reason) {
					t.Fatalf("%+v for %+v: refused for %q, does not fulfil %v", h, req, reason, why)
				}
				if d.Placed && d.HostID == h.ID {
					placed++
					if len(why) > 0 {
						t.Fatalf("%+v was taken for %+v: %v", h, req, why)
					}
				}
			}
			if d.Placed != (fit > 0) {
				t.Fatalf("placed %v, %d fit", d.Placed, fit)
			}
		}
	})
	if sets < 200 || placed == 0 {
		t.Errorf("only %d sets, %d placed", sets, placed)
	}
}

func TestH13_LeastLoadedTakesTheEmptiest(t *testing.T) {
	a, b := host("a", 4, 4096, time.Time{}), host("b", 4, 4096, time.Time{})
	a.ReservedMemoryMB, b.ReservedCPUMillis = 2048, 1000
	s := LeastLoadedScheduler{Overcommit{1, 1}}
	req := Request{CPUMillis: 100, MemoryMB: 100, Image: "i"}
	if d := s.Pick(req, []HostView{a, b}); d.HostID != b.ID {
		t.Error("the fuller one was taken")
	}
	// An image is worth a tenth of a host, not half of one.
	a.Images = []string{"i"}
	if d := s.Pick(req, []HostView{a, b}); d.HostID != b.ID {
		t.Error("the much fuller one was taken for its image")
	}
	b.ReservedCPUMillis = 1800
	if d := s.Pick(req, []HostView{a, b}); d.HostID != a.ID {
		t.Error("the image counted for nothing")
	}
}

func TestH13_BinPackFillsBeforeItBegins(t *testing.T) {
	hosts := []HostView{host("a", 4, 4096, time.Time{}), host("b", 4, 4096, time.Time{}), host("c", 4, 4096, time.Time{})}
	s := BinPackScheduler{Overcommit{1, 1}}
	used := map[id.Host]int{}
	for range 8 {
		d := s.Pick(Request{CPUMillis: 1000, MemoryMB: 512}, hosts)
		if !d.Placed {
			t.Fatal("not placed")
		}
		used[d.HostID]++
		for i := range hosts {
			if hosts[i].ID == d.HostID {
				hosts[i].ReservedCPUMillis += 1000
				hosts[i].ReservedMemoryMB += 512
			}
		}
	}
	if len(used) != 2 {
		t.Errorf("eight sandboxes of a quarter of a host are on %d hosts", len(used))
	}
	fresh := []HostView{host("a", 4, 4096, time.Time{}), host("b", 4, 4096, time.Time{})}
	fresh[0].ReservedCPUMillis = 2000
	fresh[1].Images = []string{"i"}
	if d := s.Pick(Request{CPUMillis: 1000, MemoryMB: 512, Image: "i"}, fresh); d.HostID != fresh[1].ID {
		t.Error("the image is no preference")
	}
}

func TestH13_AnUnknownPolicyIsRefused(t *testing.T) {
	if _, err := New("random", DefaultOvercommit()); err == nil {
		t.Error("taken")
	}
}
