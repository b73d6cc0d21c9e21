package scheduler

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"skerry.dev/skerry/internal/kernel/id"
)

// candidate is a host that fits.
type candidate struct {
	*HostView
	engine Engine
	// load is the larger share of what may be promised of CPU and memory, the
	// sandbox included.
	load float64
	// has: what the sandbox starts from is there already.
	has bool
	// warm: it is started there already.
	warm bool
	// rank is 0 for its home, 1 for others that hold its state, 2 for the rest.
	rank int
}

// pick takes the first of those that fit, in the given order; those that hold
// the state it starts from come before that, and of them those that have it
// ready.
func pick(req Request, hosts []HostView, over Overcommit, order func(a, b candidate) int) Decision {
	var d Decision
	var best candidate
	for i := range hosts {
		h := &hosts[i]
		engine, refusal := fits(req, h, over)
		if refusal != nil {
			d.Refusals = append(d.Refusals, *refusal)
			continue
		}
		warm := req.all() == 1 && slices.ContainsFunc(h.Warm, func(w Warm) bool { return w.Fits(req, engine.Name) })
		c := candidate{HostView: h, engine: engine, load: load(req, h, over), warm: warm, has: req.Image != "" && slices.Contains(h.Images, req.Image), rank: rank(req, h.ID)}
		if best.HostView == nil || cmp.Or(cmp.Compare(c.rank, best.rank), warmFirst(c, best), order(c, best)) < 0 {
			best = c
		}
	}
	if best.HostView != nil {
		d.HostID, d.Engine, d.EngineVersion, d.Placed = best.ID, best.engine.Name, best.engine.Version, true
	}
	return d
}

func rank(req Request, h id.Host) int {
	switch {
	case !slices.Contains(req.Holders, h):
		return 2
	case h != req.Home:
		return 1
	}
	return 0
}

const mb = 1 << 20

func load(req Request, h *HostView, over Overcommit) float64 {
	return max(
		float64(h.ReservedCPUMillis+h.WarmCPUMillis+req.CPUMillis*req.all())/max(float64(h.CPUCount*1000)*over.CPU, 1),
		float64(h.ReservedMemoryMB+h.WarmMemoryMB+req.MemoryMB*req.all())/max(float64(h.MemoryBytes/mb)*over.Memory, 1),
	)
}

// havingFirst orders hosts that have what the sandbox starts from before others.
func havingFirst(a, b candidate) int {
	switch {
	case a.has == b.has:
		return 0
	case a.has:
		return -1
	}
	return 1
}

func compareID(a, b id.Host) int {
	ua, ub := a.UUID(), b.UUID()
	return bytes.Compare(ua[:], ub[:])
}

// fits returns the engine that would isolate the sandbox there, or why it
// cannot be there.
func fits(req Request, h *HostView, over Overcommit) (Engine, *Refusal) {
	refuse := func(reason, format string, args ...any) (Engine, *Refusal) {
		return Engine{}, &Refusal{HostID: h.ID, Host: h.Name, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
	if req.Hosts != nil && !slices.Contains(req.Hosts, h.ID) {
		return refuse("not_there", "does not have the saved state")
	}
	if slices.Contains(req.Avoid, h.ID) {
		return refuse("set_aside", "may still hold what the sandbox was before; it is looked at first")
	}
	if req.Arch != "" && req.Arch != h.Arch {
		return refuse("arch", "the image is made for %s, the host is %s", req.Arch, h.Arch)
	}
	for _, k := range slices.Sorted(maps.Keys(req.Labels)) {
		if has, ok := h.Labels[k]; !ok || has != req.Labels[k] {
			return refuse("labels", "wants a host with the label %s=%s", k, req.Labels[k])
		}
	}
	engine, why := choose(req.Engine, h.Engines)
	if why != "" {
		return refuse("no_engine", "%s", why)
	}
	if !engine.Runs(req.EngineVersion) && !slices.Contains(req.EngineArches, h.Arch) {
		return refuse("engine_version", "it was saved under %s %s, the host has %s", engine.Name, req.EngineVersion, engine.Version)
	}
	if lacks := missing(req.CPUFeatures, engine.CPUFeatures, slices.Contains(req.Holders, h.ID)); len(lacks) > 0 {
		return refuse("cpu_features", "memory was saved on a CPU that has %s, this one has not", strings.Join(lacks, ", "))
	}
	if req.CPUMillis > h.CPUCount*1000 {
		return refuse("cpu", "wants %d thousandths of a CPU, the host has %d CPUs", req.CPUMillis, h.CPUCount)
	}
	if cpu := int64(float64(h.CPUCount*1000)*over.CPU) - h.ReservedCPUMillis; req.CPUMillis*req.all() > cpu {
		return refuse("cpu", "wants %d thousandths of a CPU, %d are free", req.CPUMillis*req.all(), max(cpu, 0))
	}
	if req.MemoryMB > h.MemoryBytes/mb {
		return refuse("memory", "wants %d MB of memory, the host has %d", req.MemoryMB, h.MemoryBytes/mb)
	}
	if memory := int64(float64(h.MemoryBytes/mb)*over.Memory) - h.ReservedMemoryMB; req.MemoryMB*req.all() > memory {
		return refuse("memory", "wants %d MB of memory, %d are free", req.MemoryMB*req.all(), max(memory, 0))
	}
	if disk := h.DiskBytes/mb - h.ReservedDiskMB; req.DiskMB*req.all() > disk {
		return refuse("disk", "wants %d MB of disk, %d are free", req.DiskMB*req.all(), max(disk, 0))
	}
	return engine, nil
}
