// Package guard keeps the sandbox alive when something inside takes all of its
// memory, processes or disk. The kernel outside would end the whole sandbox;
// the guard ends the offender first and says so in an event.
package guard

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
)

const (
	reserveDefault = 8 // percent of memory
	// fastest is how quickly a process can fill memory, in bytes a second. The
	// next look comes before it could get from here to the reserve.
	fastest   = 3000 << 20
	lookMin   = 5 * time.Millisecond
	lookMax   = 500 * time.Millisecond
	lookAlone = 5 * time.Second // nothing runs but the daemon
	// lookStart is how long after a start: what ends sooner is not looked at, and a
	// bomb needs some hundred milliseconds. Looking at once would compete with the
	// program that has just been started.
	lookStart = 25 * time.Millisecond
	// standstill is how late a look is when nothing ran at all.
	standstill = time.Second
	afterRest  = 100 * time.Millisecond // until the look then, if memory lasts
	diskEvery  = 2 * time.Second
	diskFloor  = 16 << 20
	// worthKilling is the part of memory, one in so many, that a process must
	// have for its end to help; memory may also be in files.
	worthKilling = 25
	// standsOut is the same in a crowd: what its members have is largely shared,
	// and ending them one by one gives little back.
	standsOut = 5
	// settle is how long the kernel has to give back a dead process's memory
	// before the next one is blamed.
	settle = time.Second
	// aftermath is how long a crowd that was stopped may stay as large as it is
	// before what becomes of it is its own doing.
	aftermath = 100 * time.Millisecond
)

// Options of a Guard. Emit, MaxProcesses and Started are required.
type Options struct {
	// ReservePercent of memory stays available; 0 is 8, negative is no guard.
	ReservePercent int
	// MaxProcesses the sandbox may have at this moment; 0 is no limit.
	MaxProcesses func() int
	// Tasks are those the kernel counts and those it allows, threads included; at
	// its limit every fork fails. nil is no limit.
	Tasks func() (used, limit int)
	// Started receives when a process was started, to look soon.
	Started <-chan struct{}
	// Alone says that every process of this kernel belongs to the sandbox, so
	// that all of them may be stopped at once.
	Alone bool
	Emit  func(guestapi.Event)
	Log   *slog.Logger
}

// Guard is the watch over the sandbox. It belongs to the goroutine that runs it.
type Guard struct {
	opt      Options
	self     int
	diskAt   time.Time
	diskFull bool
	limitAt  time.Time
	count    int           // of processes at the last look
	tasks    int           // likewise, as the kernel counts them
	woken    time.Time     // when a process was started last; it may not be seen at once
	braked   int           // how many were stopped, until it is known what became of them
	brakedAt time.Time     // when they were, or when their number last fell
	calm     time.Duration // until the next look as far as their number goes
	ahead    time.Duration // how long memory lasted at the last look, whoever takes it
	readMem  func() (procfs.Memory, error)
}

// New makes a guard.
func New(opt Options) *Guard {
	if opt.ReservePercent == 0 {
		opt.ReservePercent = reserveDefault
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Guard{opt: opt, self: os.Getpid(), readMem: procfs.ReadMemory}
}

// Run looks, as often as the state of things asks for, until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.opt.Started:
			g.woken = time.Now()
			if soon := g.woken.Add(min(lookStart, g.ahead)); soon.Before(due) {
				due = soon
				timer.Reset(time.Until(due))
			}
			continue
		case <-timer.C:
			// Whoever was frozen with us has taken nothing meanwhile, and has better to
			// do when it wakes up than to be looked at.
			if time.Since(due) > standstill {
				rest := min(afterRest, g.ahead)
				due = time.Now().Add(rest)
				timer.Reset(rest)
				continue
			}
		}
		next := g.look(ctx)
		due = time.Now().Add(next)
		timer.Reset(next)
	}
}

// look does what is needed and returns when to look again.
func (g *Guard) look(ctx context.Context) time.Duration {
	limit := g.opt.MaxProcesses()
	// In a crowd every call of the kernel waits for all the others, so that what
	// ends a bomb comes first and asks little.
	growing := false
	if g.opt.Tasks != nil && limit > 0 {
		used, most := g.opt.Tasks()
		if g.hungUp(used, time.Now()) {
			g.opt.Log.Warn("too many processes: they ended when they were stopped", "processes", g.braked, "limit", limit)
			g.emit(guestapi.Event{Kind: guestapi.EventProcessLimit, Processes: g.braked, Limit: limit, Killed: g.braked - used})
		}
		growing, g.tasks = g.opt.Alone && used > g.tasks && used > limit/2, used
		if used >= most {
			if !g.threads(used, most) {
				g.processes(ctx, used, limit, true)
			}
			return lookMin
		}
	}
	// A crowd that grows waits while it is looked at, or there would be no end.
	if growing {
		g.braked, g.brakedAt = g.tasks, time.Now()
		_ = unix.Kill(-1, unix.SIGSTOP)
		defer func() { _ = unix.Kill(-1, unix.SIGCONT) }()
	}
	next := g.memory(ctx)
	if growing {
		next = lookMin
	}
	if time.Since(g.diskAt) >= diskEvery {
		g.diskAt = time.Now()
		g.disk()
	}
	pids, err := procfs.PIDs()
	if err != nil {
		return lookMax
	}
	// PID 1 and the daemon: nobody who could take anything, however little there
	// is. A start wakes us.
	if time.Since(g.woken) > settle && rest(len(pids), next) {
		return lookAlone
	}
	if limit > 0 {
		if len(pids) > limit {
			g.processes(ctx, len(pids), limit, false)
			return lookMin
		}
		// While their number changes it is looked at often: a bomb needs a few
		// hundred milliseconds to take everything.
		if g.calm = min(2*g.calm, lookMax); len(pids) != g.count || len(pids) > limit/2 {
			g.calm = 25 * time.Millisecond
		}
		g.count = len(pids)
		next = min(next, g.calm)
	}
	return next
}

// hungUp reports whether a crowd ended because it was stopped: the kernel hangs
// up on groups whose parents end while they stand still. On a busy machine they
// go over several looks.
func (g *Guard) hungUp(used int, now time.Time) bool {
	switch {
	case g.braked == 0:
	case used < g.braked/2:
		return true
	case used < g.tasks:
		g.brakedAt = now
	case now.Sub(g.brakedAt) > aftermath:
		g.braked = 0
	}
	return false
}

// rest reports whether nobody runs who has to be watched, and memory is not
// short already. In a small sandbox the next look would be soon all the same.
func rest(processes int, next time.Duration) bool { return processes <= 2 && next > lookMin }

// memory ends the largest process when less than the reserve is available.
func (g *Guard) memory(ctx context.Context) time.Duration {
	if g.opt.ReservePercent < 0 {
		return lookMax
	}
	m, err := g.readMem()
	if err != nil || m.Total == 0 {
		return lookMax
	}
	reserve := m.Total / 100 * uint64(g.opt.ReservePercent)
	if m.Available >= reserve {
		g.ahead = time.Duration(float64(m.Available-reserve) / fastest * float64(time.Second))
		return min(max(g.ahead, lookMin), lookMax)
	}
	g.ahead = 0
	// Many take memory faster than one can look, so that they wait meanwhile. A
	// few are spared that: a shell would see its command stop.
	least := m.Total / worthKilling
	if g.crowded() {
		least = m.Total / standsOut
		_ = unix.Kill(-1, unix.SIGSTOP)
		defer func() { _ = unix.Kill(-1, unix.SIGCONT) }()
	}
	if !g.killLargest(ctx, m, reserve, least) && !g.endCrowd(ctx) {
		return lookMin
	}
	return 0
}

// emit tells of what was ended; it needs no other reason then.
func (g *Guard) emit(e guestapi.Event) {
	g.braked = 0
	g.opt.Emit(e)
}

// crowded reports whether there are many, all of them the sandbox's own.
func (g *Guard) crowded() bool {
	if !g.opt.Alone {
		return false
	}
	if g.opt.Tasks != nil {
		used, _ := g.opt.Tasks()
		return used >= crowd
	}
	return g.count >= crowd
}

// killLargest ends the process with the most memory and waits until its memory
// is back, so that the next look does not blame an innocent one. It waits no
// longer when memory goes on shrinking all the same.
func (g *Guard) killLargest(ctx context.Context, m procfs.Memory, reserve, least uint64) bool {
	all, err := procfs.All()
	if err != nil {
		return false
	}
	all = slices.DeleteFunc(all, func(p procfs.Process) bool {
		return p.PID == 1 || p.PID == g.self || p.Dead() || p.RSS < least
	})
	slices.SortFunc(all, func(a, b procfs.Process) int { return cmp.Compare(b.RSS, a.RSS) })
	killed := false
	// One is enough when it has what is missing; where many grow at once, ending
	// them one by one is slower than they are.
	for freed := uint64(0); len(all) > 0 && (!killed || m.Available+freed < reserve); all = all[1:] {
		victim := all[0]
		cmd := procfs.Command(victim.PID, victim.Comm)
		if unix.Kill(victim.PID, unix.SIGKILL) != nil {
			continue
		}
		killed = true
		freed += victim.RSS / 2 // the rest may be shared
		g.opt.Log.Warn("memory ran out: the largest process was ended", "pid", victim.PID, "rss", victim.RSS)
		g.emit(guestapi.Event{Kind: guestapi.EventOOMKill, PID: victim.PID, Cmd: cmd, RSSBytes: victim.RSS})
	}
	if !killed {
		return false
	}
	for until := time.Now().Add(settle); time.Now().Before(until) && pause(ctx, 5*time.Millisecond); {
		now, err := g.readMem()
		if err != nil || now.Available >= reserve || now.Available < m.Available/2 {
			break
		}
	}
	return true
}

// disk tells once when the root file system gets full, and again only after
// there was room in between.
func (g *Guard) disk() {
	var st unix.Statfs_t
	if unix.Statfs("/", &st) != nil || st.Blocks == 0 {
		return
	}
	size := uint64(st.Bsize)
	free, floor := st.Bavail*size, max(st.Blocks*size/100, diskFloor)
	switch {
	case free < floor && !g.diskFull:
		g.diskFull = true
		g.emit(guestapi.Event{Kind: guestapi.EventDiskFull, FreeBytes: free})
	case free >= 2*floor:
		g.diskFull = false
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
