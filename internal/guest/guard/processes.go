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

// processes ends the command, session or user with the most processes until
// the sandbox is within its limit. All are stopped before the first is killed:
// a bomb grows faster than one can kill.
func (g *Guard) processes(ctx context.Context, count, limit int) {
	killed := make(map[int]bool)
	var example procfs.Process
	for range 50 {
		all, err := procfs.All()
		if err != nil {
			return
		}
		alive := all[:0]
		for _, p := range all {
			if !p.Dead() && p.PID != 1 && p.PID != g.self {
				alive = append(alive, p)
			}
		}
		if len(alive)+2 <= limit {
			break
		}
		victims := largest(alive, family)
		if len(victims) < max(len(alive)/8, 2) { // each made itself a family of one
			victims = largest(alive, owner)
		}
		for _, p := range victims {
			_ = unix.Kill(p.PID, unix.SIGSTOP)
		}
		for _, p := range victims {
			if unix.Kill(p.PID, unix.SIGKILL) == nil {
				killed[p.PID] = true
				example = p
			}
		}
		if !pause(ctx, 5*time.Millisecond) {
			break
		}
	}
	// One event a second is enough to tell that a bomb goes on.
	if len(killed) == 0 || time.Since(g.limitAt) < time.Second {
		return
	}
	g.limitAt = time.Now()
	g.opt.Log.Warn("too many processes: the largest family was ended", "processes", count, "limit", limit, "killed", len(killed))
	g.opt.Emit(guestapi.Event{
		Kind: guestapi.EventProcessLimit, PID: example.PID, Cmd: procfs.Command(example.PID, example.Comm),
		Processes: count, Limit: limit, Killed: len(killed),
	})
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

// family is the command a process belongs to, or else its session.
func family(p procfs.Process) string {
	if id := procfs.Env(p.PID, execMark); id != "" {
		return "e" + id
	}
	return "s" + strconv.Itoa(p.Session)
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
