// Package process starts commands for clients, carries their input and output
// and ends them with everything they started. It owns each process from start
// to exit result; who may call is decided before.
package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/guest/awake"
	"skerry.dev/skerry/internal/guest/passwd"
	"skerry.dev/skerry/internal/guest/procfs"
)

const (
	keepPlain  = 30 * time.Second // exit results of clients that did not ask for replay
	keepReplay = 24 * time.Hour
	// A command's time limit and a result's age count while the sandbox runs;
	// these are what a standstill may cost them.
	deadlineGrain = time.Second
	keepGrains    = 64 // parts of the whole
	// keepCount bounds the exit results that are kept, whatever their age.
	keepCount = 1024
	// outputBudget bounds the output of all processes together that is kept for
	// replay; windowMin is what each running one has in any case.
	outputBudget = 64 << 20
	windowMin    = 64 << 10
	// runningMax bounds the processes clients may have started at one time.
	runningMax = 4096
)

// Settings is what the sandbox's configuration says at this moment.
type Settings struct {
	DefaultUser  string
	Workdir      string
	Env          map[string]string
	MaxProcesses int // in the whole sandbox; 0 is no limit
}

// Options of a Manager. Accounts and Settings are required.
type Options struct {
	Accounts *passwd.Database
	Settings func() Settings
	// Clock is what time limits are measured by; nil makes one.
	Clock *awake.Clock
	// Confine is called by each thread that starts programs, before the first.
	Confine func() error
	Log     *slog.Logger
}

// Manager owns the processes.
type Manager struct {
	opt     Options
	root    bool // it may act as others
	spawner *spawner
	reaper  *reaper
	null    *os.File
	started chan struct{}
	wg      sync.WaitGroup

	mu     sync.Mutex
	closed bool
	byID   map[string]*command
	byPID  map[int]*command
	live   int
	done   []*command // in the order of their end
}

// New makes a manager. Close ends it.
func New(opt Options) (*Manager, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Clock == nil {
		opt.Clock = awake.New(time.Now)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("opening the empty input: %w", err)
	}
	sp, err := newSpawner(opt.Confine)
	if err != nil {
		null.Close()
		return nil, err
	}
	return &Manager{
		opt: opt, root: os.Geteuid() == 0, spawner: sp, reaper: newReaper(), null: null, started: make(chan struct{}, 1),
		byID: make(map[string]*command), byPID: make(map[int]*command),
	}, nil
}

// Started receives after processes were started; it holds one token.
func (m *Manager) Started() <-chan struct{} { return m.started }

// Running is how many commands have not ended.
func (m *Manager) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live
}

// Close kills every command with all it started and returns when nothing is
// held any more.
func (m *Manager) Close() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.closed = true
	for _, c := range m.done {
		if c.kept != nil {
			c.kept.Stop()
		}
	}
	all := make([]*command, 0, len(m.byID))
	for _, c := range m.byID {
		all = append(all, c)
	}
	m.mu.Unlock()
	for _, c := range all {
		<-c.ready
		if c.failed != nil {
			continue
		}
		select {
		case <-c.ended:
		default:
			m.killTree(c)
		}
		for _, p := range c.pumps {
			_ = p.file.Close() // a grandchild that outlived its command is read no more
		}
	}
	m.wg.Wait()
	m.reaper.close()
	m.spawner.close()
	m.null.Close()
}

// start runs r as a new command, or returns the one that already has the id.
// The subscriber is in place before the first byte can come.
func (m *Manager) start(c *command, prepare func() (request, error), timeout time.Duration) (*command, *subscriber, error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, nil, connect.NewError(connect.CodeUnavailable, errors.New("the sandbox is shutting down"))
	}
	if old, ok := m.byID[c.id]; ok {
		m.mu.Unlock()
		<-old.ready
		if old.failed != nil {
			return nil, nil, old.failed
		}
		return old, nil, nil
	}
	if m.live >= runningMax {
		m.mu.Unlock()
		return nil, nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d commands are running already", runningMax))
	}
	m.byID[c.id] = c
	m.live++
	limit := m.windowFor(m.live)
	m.wg.Add(1)
	m.mu.Unlock()

	fail := func(err error) (*command, *subscriber, error) {
		c.failed = err
		m.mu.Lock()
		delete(m.byID, c.id)
		m.live--
		m.mu.Unlock()
		close(c.ready)
		m.wg.Done()
		return nil, nil, err
	}
	r, err := prepare()
	if err != nil {
		return fail(err)
	}
	c.hub = newHub(c.replay, limit)
	sub := c.hub.subscribe(nil)
	before := m.reaper.before()
	if err := m.launch(c, r); err != nil {
		return fail(err)
	}
	m.mu.Lock()
	m.byPID[c.pid] = c
	m.mu.Unlock()
	m.reaper.add(c.pid, before, func(ws unix.WaitStatus) {
		c.status = ws
		close(c.exited)
	})
	if timeout > 0 {
		c.deadline = m.opt.Clock.AfterFunc(timeout, deadlineGrain, func() {
			c.expired.Store(true)
			m.killTree(c)
		})
	}
	close(c.ready)
	go func() {
		defer m.wg.Done()
		m.attend(c)
	}()
	select {
	case m.started <- struct{}{}:
	default:
	}
	return c, sub, nil
}

// windowFor is the share of each of n running commands in the budget.
func (m *Manager) windowFor(n int) int {
	return max(windowMin, min(window, outputBudget/2/max(n, 1)))
}

// finished keeps the result of c for those who come late.
func (m *Manager) finished(c *command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live--
	m.done = append(m.done, c)
	keep := keepPlain
	if c.replay {
		keep = keepReplay
	}
	if !m.closed {
		c.kept = m.opt.Clock.AfterFunc(keep, keep/keepGrains, func() { m.forget(c) })
	}
	for len(m.done) > keepCount {
		m.remove(m.done[0])
	}
	held := 0
	for i := len(m.done) - 1; i >= 0; i-- {
		limit := window
		if held >= outputBudget/2 {
			limit = 0
		}
		held += m.done[i].hub.shrink(limit)
	}
}

func (m *Manager) forget(c *command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(c)
}

// remove is called with mu held; safe to repeat.
func (m *Manager) remove(c *command) {
	if m.byID[c.id] == c {
		delete(m.byID, c.id)
	}
	if m.byPID[c.pid] == c {
		delete(m.byPID, c.pid)
	}
	if c.kept != nil {
		c.kept.Stop()
	}
	for i, d := range m.done {
		if d == c {
			m.done = append(m.done[:i], m.done[i+1:]...)
			return
		}
	}
}

// find returns the command a selector means, running or kept.
func (m *Manager) find(sel *pb.ProcessSelector) (*command, error) {
	var c *command
	var what string
	m.mu.Lock()
	switch s := sel.GetSelector().(type) {
	case *pb.ProcessSelector_Pid:
		c, what = m.byPID[int(s.Pid)], fmt.Sprintf("pid %d", s.Pid)
	case *pb.ProcessSelector_ExecId:
		c, what = m.byID[s.ExecId], fmt.Sprintf("exec id %q", s.ExecId)
	case *pb.ProcessSelector_Tag:
		what = "tag " + s.Tag
		for _, d := range m.byPID {
			if d.tag == nil || *d.tag != s.Tag {
				continue
			}
			if c == nil || (!c.running() && d.running()) {
				c = d
			}
		}
	default:
		m.mu.Unlock()
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("process must name a pid, a tag or an exec id"))
	}
	m.mu.Unlock()
	if c != nil {
		<-c.ready
	}
	if c == nil || c.failed != nil {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with %s not found", what))
	}
	return c, nil
}

// findRunning is find for what makes no sense after the exit.
func (m *Manager) findRunning(sel *pb.ProcessSelector) (*command, error) {
	c, err := m.find(sel)
	if err != nil {
		return nil, err
	}
	if !c.running() {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d not found", c.pid))
	}
	return c, nil
}

func (c *command) running() bool {
	select {
	case <-c.exited:
		return false
	default:
		return true
	}
}

// killTree ends the command and everything it started, also what left its
// process group, its session or its parents. All are stopped first, so that
// nothing can be born between looking and killing.
func (m *Manager) killTree(c *command) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = m.reaper.signal(c.pid, unix.SIGSTOP)
	self, mark := os.Getpid(), envMark+"="+c.id
	seen := make(map[int]uint64)
	for range 16 {
		family, err := procfs.Tree(c.pid, mark, self)
		if err != nil {
			m.opt.Log.Error("cannot read the process table", "error", err)
			break
		}
		fresh := false
		for _, p := range family {
			if seen[p.PID] != p.Start {
				seen[p.PID], fresh = p.Start, true
				_ = unix.Kill(p.PID, unix.SIGSTOP)
			}
		}
		if !fresh {
			break
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		_ = m.reaper.signal(c.pid, unix.SIGKILL)
		for pid, start := range seen {
			if p, ok := procfs.Read(pid); ok && p.Start == start && !p.Dead() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		family, err := procfs.Tree(c.pid, mark, self)
		if err != nil || (len(family) == 0 && !c.running()) {
			return
		}
		for _, p := range family {
			seen[p.PID] = p.Start
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			m.opt.Log.Error("processes outlived their kill", "pid", c.pid, "left", len(family))
			return
		}
	}
}
