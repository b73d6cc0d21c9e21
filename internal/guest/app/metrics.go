package app

import (
	"math"
	"net/http"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
)

// sampler turns the kernel's counters into the CPU use since the last look.
type sampler struct {
	mu   sync.Mutex
	last sample
	used float64
}

type sample struct {
	at          time.Time
	busy, total uint64
	ticks       uint64 // of all living processes, where the kernel keeps no sum
}

// clockTick is what one tick of /proc is worth, on every architecture we build for.
const clockTick = 10 * time.Millisecond

func (s *sampler) reset() {
	s.mu.Lock()
	s.last, s.used = sample{}, 0
	s.mu.Unlock()
}

// use returns the percentage of all CPUs that was in use since the last call,
// and the number of processes. Calls that come fast repeat the last answer.
func (s *sampler) use(cpus int) (percent float64, processes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := sample{at: time.Now()}
	var counted bool
	now.busy, now.total, counted = procfs.CPUTicks()
	all, _ := procfs.All()
	for _, p := range all {
		now.ticks += p.CPU
	}
	elapsed := now.at.Sub(s.last.at)
	if elapsed < 100*time.Millisecond {
		return s.used, len(all)
	}
	switch {
	case s.last.at.IsZero():
		s.used = 0
	case counted && now.total > s.last.total && now.busy >= s.last.busy:
		s.used = 100 * float64(now.busy-s.last.busy) / float64(now.total-s.last.total)
	case now.ticks >= s.last.ticks:
		spent := time.Duration(now.ticks-s.last.ticks) * clockTick
		s.used = min(100, 100*spent.Seconds()/elapsed.Seconds()/float64(cpus))
	default: // a process that had used much has ended
		s.used = 0
	}
	s.last = now
	return s.used, len(all)
}

func (d *Daemon) handleMetrics(w http.ResponseWriter, _ *http.Request) {
	m := guestapi.Metrics{TS: time.Now().Unix(), CPUCount: runtime.NumCPU()}
	used, processes := d.metrics.use(m.CPUCount)
	m.CPUUsedPct, m.Processes = math.Round(used*100)/100, processes
	if mem, err := procfs.ReadMemory(); err == nil {
		m.MemTotal, m.MemCache = mem.Total, mem.Cached
		m.MemUsed = mem.Total - min(mem.Available, mem.Total)
		m.MemTotalMB, m.MemUsedMB = m.MemTotal>>20, m.MemUsed>>20
	}
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil {
		m.DiskTotal = st.Blocks * uint64(st.Bsize)
		m.DiskUsed = (st.Blocks - st.Bfree) * uint64(st.Bsize)
	}
	if d.processes.Running() == 0 {
		m.IdleMS = d.active.idle().Milliseconds()
	}
	writeJSON(w, m)
}
