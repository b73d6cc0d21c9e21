package guard

import (
	"context"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
)

// execMark names the variable all processes of one command carry.
const execMark = "SKERRY_EXEC_ID="

const (
	// episode is how soon after one excess the next means that ending the
	// largest family was not enough.
	episode = 5 * time.Second
	// struggle is how long it is tried to end one family alone.
	struggle = 300 * time.Millisecond
	// crowd is how many processes can be blamed together for a lack of memory.
	crowd = 24
)

// processes brings the sandbox back within its limit. At first it ends the
// session, command or user with the most processes, by whole process groups.
// When that does not hold, because a bomb grows faster than one can look, and
// all processes are the sandbox's own, everybody but PID 1 and the daemon is
// killed: sandbox and files survive, where the host would end all of it.
// Processes that wait to be reaped count, since they hold a place in the table.
// With outrun it is known already that looking takes too long.
func (g *Guard) processes(ctx context.Context, count, limit int, outrun bool) {
	again := time.Since(g.limitAt) < episode
	g.limitAt = time.Now()
	var killed int
	var example procfs.Process
	var cmd string
	ended := false
	if !g.opt.Alone || !again && !outrun {
		killed, example, cmd, ended = g.endLargest(ctx, limit)
	}
	if !ended && g.opt.Alone {
		killed += count
		g.endAll(ctx, limit)
	}
	if killed == 0 {
		return
	}
	g.opt.Log.Warn("too many processes: the largest family was ended", "processes", count, "limit", limit, "killed", killed)
	g.emit(guestapi.Event{
		Kind: guestapi.EventProcessLimit, PID: example.PID, Cmd: cmd,
		Processes: count, Limit: limit, Killed: killed,
	})
}

// threads ends the process with the most threads when the kernel refuses more
// tasks though there are not too many processes: nothing could be started. It
// reports whether threads it was.
func (g *Guard) threads(used, limit int) bool {
	pids, err := procfs.PIDs()
	if err != nil || len(pids) > limit/2 {
		return false
	}
	all, err := procfs.All()
	if err != nil {
		return false
	}
	var victim procfs.Process
	for _, p := range all {
		if p.PID != 1 && p.PID != g.self && !p.Dead() && p.Threads > victim.Threads {
			victim = p
		}
	}
	cmd := procfs.Command(victim.PID, victim.Comm)
	if victim.PID == 0 || unix.Kill(victim.PID, unix.SIGKILL) != nil {
		return false
	}
	g.opt.Log.Warn("too many threads: the process with the most was ended", "pid", victim.PID, "threads", victim.Threads, "limit", limit)
	g.emit(guestapi.Event{Kind: guestapi.EventProcessLimit, PID: victim.PID, Cmd: cmd, Processes: used, Limit: limit, Killed: 1})
	return true
}

// endCrowd ends the largest family when memory is short and no single process
// is to blame: many small ones took it together.
func (g *Guard) endCrowd(ctx context.Context) bool {
	pids, err := procfs.PIDs()
	if err != nil || len(pids) < crowd {
		return false
	}
	killed, example, cmd, ended := g.endLargest(ctx, len(pids)/2)
	if !ended && g.opt.Alone {
		killed += len(pids)
		g.endAll(ctx, len(pids)/2)
	}
	if killed == 0 {
		return false
	}
	g.opt.Log.Warn("memory ran out: the largest family of processes was ended", "processes", len(pids), "killed", killed)
	g.emit(guestapi.Event{
		Kind: guestapi.EventOOMKill, PID: example.PID, Cmd: cmd, RSSBytes: example.RSS, Processes: len(pids), Killed: killed,
	})
	return true
}

// endAll kills everybody, again until nobody is born in between.
func (g *Guard) endAll(ctx context.Context, limit int) {
	for range 200 {
		_ = unix.Kill(-1, unix.SIGKILL)
		if pids, err := procfs.PIDs(); err != nil || len(pids) <= max(limit/2, 2) || !pause(ctx, time.Millisecond) {
			return
		}
	}
}

// endLargest kills the largest family until none of it lives and the others are
// within the limit. It stops everybody before each look, where it may: a bomb
// takes the processor one would read the table with. That alone does not hold
// it, since a kernel may continue groups that are orphaned.
func (g *Guard) endLargest(ctx context.Context, limit int) (killed int, example procfs.Process, cmd string, ended bool) {
	groups := make(map[int]bool)
	if g.opt.Alone {
		defer func() { _ = unix.Kill(-1, unix.SIGCONT) }()
	}
	for began := time.Now(); time.Since(began) < struggle; {
		if g.opt.Alone {
			_ = unix.Kill(-1, unix.SIGSTOP)
		}
		pids, err := procfs.PIDs()
		if err != nil {
			return killed, example, cmd, false
		}
		var left []procfs.Process
		dying := 0
		for _, pid := range pids {
			if g.opt.Alone && time.Since(began) > struggle {
				return killed, example, cmd, false
			}
			p, ok := procfs.Read(pid)
			switch {
			case !ok:
			case p.PID == 1 || p.PID == g.self || p.Group <= 1:
			case !groups[p.Group]:
				left = append(left, p)
			case !p.Dead():
				dying++
			}
		}
		if len(left)+2 <= limit && len(groups) > 0 {
			if dying == 0 {
				return killed, example, cmd, true
			}
			left = nil
		}
		// One may have been born while the kernel went through its group.
		for group := range groups {
			_ = unix.Kill(-group, unix.SIGKILL)
		}
		victims := largest(left, session)
		if len(victims) < len(left)/4 { // they made themselves sessions
			victims = largest(left, command)
		}
		if len(victims) < max(len(left)/8, 2) { // and cleared their environment
			victims = largest(left, owner)
		}
		for _, p := range victims {
			if !groups[p.Group] {
				if cmd == "" {
					example, cmd = p, procfs.Command(p.PID, p.Comm)
				}
				groups[p.Group] = true
				_ = unix.Kill(-p.Group, unix.SIGKILL)
			}
		}
		killed += len(victims)
		if !pause(ctx, 2*time.Millisecond) {
			break
		}
	}
	return killed, example, cmd, false
}

// largest returns the most numerous group of processes with the same key.
func largest(all []procfs.Process, key func(procfs.Process) string) []procfs.Process {
	groups := make(map[string][]procfs.Process)
	best := ""
	for _, p := range all {
		k := key(p)
		groups[k] = append(groups[k], p)
		if len(groups[k]) > len(groups[best]) {
			best = k
		}
	}
	return groups[best]
}

func session(p procfs.Process) string { return strconv.Itoa(p.Session) }

// command is the command a process belongs to, or else its session.
func command(p procfs.Process) string {
	if id := procfs.Env(p.PID, execMark); id != "" {
		return "e" + id
	}
	return "s" + session(p)
}

func owner(p procfs.Process) string {
	fi, err := os.Stat(procfs.Root + "/" + strconv.Itoa(p.PID))
	if err != nil {
		return ""
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(uint64(st.Uid), 10)
	}
	return ""
}
