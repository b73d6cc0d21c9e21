package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/network"
)

// figures are read from the agent's inside whenever somebody fetches metrics;
// all of them lie in memory but for one look at the file system.
type figures struct {
	w *watch

	sandboxes, warm, slots, slotsMax, states, stateBytes, diskFree, diskSize, cpu, memory, contact *prometheus.Desc
}

func newFigures(w *watch) *figures {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("skerry_agent_"+name, help, labels, nil)
	}
	return &figures{
		w:          w,
		sandboxes:  d("sandboxes", "Sandboxes this host knows, by phase.", "phase"),
		warm:       d("warm_instances", "Instances that wait for a sandbox."),
		slots:      d("network_slots", "Network slots, by what they are for.", "state"),
		slotsMax:   d("network_slots_limit", "How many network slots there may be."),
		states:     d("saved_states", "Complete saved states on this host."),
		stateBytes: d("saved_states_bytes", "Size of the saved states on this host."),
		diskFree:   d("disk_free_bytes", "Free space of the file system below the data directory."),
		diskSize:   d("disk_size_bytes", "Size of the file system below the data directory."),
		cpu:        d("promised_cpus", "CPUs promised to the sandboxes that run."),
		memory:     d("promised_memory_bytes", "Memory promised to the sandboxes that run."),
		contact:    d("last_contact_timestamp_seconds", "When the control plane last answered, in Unix time; 0 before it did."),
	}
}

// Describe implements prometheus.Collector.
func (f *figures) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{f.sandboxes, f.warm, f.slots, f.slotsMax, f.states, f.stateBytes, f.diskFree, f.diskSize, f.cpu, f.memory, f.contact} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	in := f.w.inside.Load()
	if in == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	phases := in.manager.Phases()
	for _, p := range []journal.Phase{
		journal.PhaseCreating, journal.PhaseRunning, journal.PhasePausing, journal.PhasePaused, journal.PhaseDestroying, journal.PhaseExited,
	} {
		gauge(f.sandboxes, float64(phases[p]), string(p))
	}
	gauge(f.warm, float64(in.manager.WarmCount()))
	if n, ok := in.networks.(interface{ Usage() network.Usage }); ok {
		u := n.Usage()
		gauge(f.slots, float64(u.Used), "used")
		gauge(f.slots, float64(u.Warm), "warm")
		gauge(f.slotsMax, float64(u.Max))
	}
	var size int64
	states := in.states.List()
	for _, s := range states {
		size += s.SizeBytes
	}
	gauge(f.states, float64(len(states)))
	gauge(f.stateBytes, float64(size))
	if total, free, err := disk(in.cfg.DataDir); err == nil {
		gauge(f.diskFree, float64(free))
		gauge(f.diskSize, float64(total))
	}
	load := in.manager.Load()
	gauge(f.cpu, float64(load.CPUMillis)/1000)
	gauge(f.memory, float64(load.MemoryBytes))
	heard := 0.0
	if at := in.identity.Heard(); !at.IsZero() {
		heard = float64(at.Unix())
	}
	gauge(f.contact, heard)
}
