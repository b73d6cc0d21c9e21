// Package procfs reads what the daemon needs to know of the other processes
// and of memory from /proc. It trusts nothing but the kernel's own numbers: a
// process may name itself anything, line breaks and brackets included.
package procfs

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is where the kernel shows its processes.
const Root = "/proc"

// Process is one line of the process table.
type Process struct {
	PID, PPID int
	Group     int
	Session   int
	Start     uint64 // clock ticks since boot; with PID, who it is
	CPU       uint64 // clock ticks used, user and system
	RSS       uint64 // bytes
	Threads   int
	State     byte
	Comm      string
}

// Dead reports whether the process only waits to be reaped.
func (p Process) Dead() bool { return p.State == 'Z' || p.State == 'X' }

// PIDs returns the ids of all processes. It asks the kernel itself: it is called
// for each command that starts, and Go's own reading of a directory costs twice
// as many system calls.
func PIDs() ([]int, error) {
	dir, err := unix.Open(Root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: Root, Err: err}
	}
	defer unix.Close(dir)
	buf := make([]byte, 16<<10)
	var pids []int
	var names []string
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: Root, Err: err}
		}
		if n <= 0 {
			return pids, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
}

// All returns every process that could be read; those that end meanwhile are
// left out.
func All() ([]Process, error) {
	pids, err := PIDs()
	if err != nil {
		return nil, err
	}
	all := make([]Process, 0, len(pids))
	for _, pid := range pids {
		if p, ok := Read(pid); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// Read returns one process; ok is false when it is gone.
func Read(pid int) (Process, bool) {
	data, err := readSmall(Root+"/"+strconv.Itoa(pid)+"/stat", 4096)
	if err != nil {
		return Process{}, false
	}
	return parseStat(data)
}

// parseStat reads a stat line. The command name stands in round brackets and
// may contain any of them, so the fields begin after the last closing one.
func parseStat(data []byte) (Process, bool) {
	open, shut := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 2 || shut < open {
		return Process{}, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data[:open])))
	if err != nil || pid <= 0 {
		return Process{}, false
	}
	f := strings.Fields(string(data[shut+1:]))
	if len(f) < 22 {
		return Process{}, false
	}
	num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
	return Process{
		PID: pid, Comm: string(data[open+1 : shut]), State: f[0][0],
		PPID: int(num(1)), Group: int(num(2)), Session: int(num(3)),
		CPU: num(11) + num(12), Threads: int(num(17)), Start: num(19), RSS: num(21) * uint64(os.Getpagesize()),
	}, true
}

// HasEnv reports whether the process was started with the variable, given as
// NAME=value.
func HasEnv(pid int, entry string) bool {
	name, value, _ := strings.Cut(entry, "=")
	return value != "" && Env(pid, name+"=") == value
}

// Env returns the value of a variable, named with its "=", that the process was
// started with; empty when there is none in the first 256 KiB of them.
func Env(pid int, name string) string {
	data, err := readSmall(Root+"/"+strconv.Itoa(pid)+"/environ", 256<<10)
	if err != nil {
		return ""
	}
	for len(data) > 0 {
		var one []byte
		one, data, _ = bytes.Cut(data, []byte{0})
		if v, ok := strings.CutPrefix(string(one), name); ok {
			return v
		}
	}
	return ""
}

// Command returns the command line in readable form, at most 256 bytes of
// valid UTF-8; it falls back on the process's short name.
func Command(pid int, comm string) string {
	data, err := readSmall(Root+"/"+strconv.Itoa(pid)+"/cmdline", 256)
	if err != nil || len(data) == 0 {
		return strings.ToValidUTF8(comm, "\uFFFD")
	}
	return strings.ToValidUTF8(strings.TrimSpace(string(bytes.ReplaceAll(data, []byte{0}, []byte{' '}))), "\uFFFD")
}

// Memory is the part of meminfo the daemon uses, in bytes.
type Memory struct{ Total, Available, Cached uint64 }

// ReadMemory reads meminfo.
func ReadMemory() (Memory, error) {
	data, err := readSmall(Root+"/meminfo", 16<<10)
	if err != nil {
		return Memory{}, err
	}
	return parseMemory(data), nil
}

func parseMemory(data []byte) Memory {
	var m Memory
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if len(f) == 0 {
			continue
		}
		kib, err := strconv.ParseUint(f[0], 10, 54)
		if err != nil {
			continue
		}
		switch name {
		case "MemTotal":
			m.Total = kib << 10
		case "MemAvailable":
			m.Available = kib << 10
		case "Cached":
			m.Cached = kib << 10
		}
	}
	return m
}

// CPUTicks returns the busy and total clock ticks of all CPUs; ok is false
// where the kernel does not count them.
func CPUTicks() (busy, total uint64, ok bool) {
	data, err := readSmall(Root+"/stat", 4096)
	if err != nil {
		return 0, 0, false
	}
	line, _, _ := strings.Cut(string(data), "\n")
	f := strings.Fields(line)
	if len(f) < 5 || f[0] != "cpu" {
		return 0, 0, false
	}
	for i, s := range f[1:] {
		n, _ := strconv.ParseUint(s, 10, 64)
		if i > 7 { // guest time is already part of user time
			break
		}
		total += n
		if i != 3 && i != 4 { // idle, iowait
			busy += n
		}
	}
	return busy, total, total > 0
}

// readSmall reads at most limit bytes with one descriptor and no detour
// through the runtime's poller.
func readSmall(name string, limit int) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, min(limit, 4096))
	for len(buf) < limit {
		buf = slices.Grow(buf, min(limit-len(buf), 4096))
		n, err := unix.Read(fd, buf[len(buf):min(cap(buf), limit)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
	return buf, nil
}
