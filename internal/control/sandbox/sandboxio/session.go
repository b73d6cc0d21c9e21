package sandboxio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
	// settled is how long a connection must last to count as one that worked.
	settled = 5 * time.Second
	// lastWords is how long a command that was killed at its timeout may take to
	// deliver its last output and its end.
	lastWords = 5 * time.Second
	// farewell is how long an ended stream may take to say so, after which its
	// connection is thrown away and not used again.
	farewell = 200 * time.Millisecond
)

// StartRequest begins a command that is followed.
type StartRequest struct {
	Command
	// TTY gives the command a terminal.
	TTY *Size
	// Stdin keeps standard input open; without it the command reads nothing. A
	// terminal is always open.
	Stdin bool
}

// Started names a command.
type Started struct {
	ExecID string
	PID    uint32
}

// Session is one caller's hold on one command. It outlives the connection to
// the guest: when that breaks, the session looks for the command by its id and
// goes on at the byte where it stopped. Letting go of a session leaves the
// command alone.
//
// Start, Attach, Next and Close belong to one goroutine; the methods that act on the command may be
// called from others at the same time.
type Session struct {
	s       *Service
	by      principal.Principal
	ctx     context.Context // ends with the caller or the sandbox
	events  context.Context // ends with ctx, or by Interrupt
	deafen  context.CancelFunc
	visit   *visit
	execID  string
	request *pb.StartRequest
	timeout time.Duration

	began    time.Time
	ledger   ledger
	src      *source
	drop     context.CancelFunc // of src
	watchdog *time.Timer        // calls drop
	started  bool               // the guest has told of the start
	dialed   time.Time          // when src was opened
	trouble  time.Time          // since when nothing arrived, zero while things go well
	pause    time.Duration
	expired  time.Time // when last words must be in, zero before the timeout

	mu    sync.Mutex
	route route
	tty   bool // known to have a terminal
}

// route is the present way to the guest.
type route struct {
	visit  *visit
	ctx    context.Context
	cancel context.CancelFunc
}

// Open finds a running sandbox. The caller must Close the session; its context
// ending ends the session too.
func (s *Service) Open(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (*Session, error) {
	inner, v, err := s.enter(ctx, by, sandbox, "")
	if err != nil {
		return nil, err
	}
	x := &Session{s: s, by: by, ctx: inner, visit: v}
	x.events, x.deafen = context.WithCancel(inner)
	x.take(v)
	return x, nil
}

// Interrupt makes Start, Attach and Next return canceled, now and from now on.
// The methods that act on the command still work. It may be called at any time.
func (x *Session) Interrupt() { x.deafen() }

// Close lets go of the command, which goes on; safe to repeat.
func (x *Session) Close() {
	x.hangUp()
	x.deafen()
	x.visit.leave()
	x.mu.Lock()
	x.route.cancel()
	x.mu.Unlock()
}

// take makes v the way to the guest and ends calls on the way before.
func (x *Session) take(v *visit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.route.cancel != nil {
		x.route.cancel()
	}
	x.route.visit = v
	x.route.ctx, x.route.cancel = context.WithCancel(v.within(x.ctx))
}

func (x *Session) present() *visit {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.route.visit
}

func (x *Session) way() context.Context {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.route.ctx
}

// Start begins a command, once, however often its connection breaks meanwhile.
func (x *Session) Start(req StartRequest) (Started, error) {
	if err := errors.Join(req.check(), checkUser(req.User)); err != nil {
		return Started{}, errs.As(err)
	}
	if req.TTY != nil {
		if err := req.TTY.check(); err != nil {
			return Started{}, err
		}
	}
	if req.User != "" {
		x.visit.user = req.User
	}
	stdin := req.Stdin || req.TTY != nil
	x.execID, x.timeout = uuid.NewString(), req.Timeout
	x.request = &pb.StartRequest{Process: req.config(), Stdin: &stdin, Replay: true, ExecId: x.execID}
	if req.TTY != nil {
		x.request.Pty, x.tty = req.TTY.pty(), true
	}
	x.began = time.Now()
	pid, err := x.connect(true)
	return Started{ExecID: x.execID, PID: pid}, err
}

// Attach goes on with a command that runs or whose result is still kept, from
// the byte at offset after; 0 is the beginning. What is no longer held is told
// as one gap.
func (x *Session) Attach(execID string, after uint64) (Started, error) {
	if err := checkExecID(execID); err != nil {
		return Started{}, err
	}
	x.execID, x.ledger, x.began = execID, ledger{next: after, loose: true}, time.Now()
	pid, err := x.connect(false)
	return Started{ExecID: execID, PID: pid}, err
}

// Next waits for what comes next. After the exit, or an error, nothing does.
// Not calling it holds up the command once the buffers in between are full, and
// costs no memory here.
func (x *Session) Next() (Event, error) {
	for {
		if x.src == nil {
			if !x.expired.IsZero() && time.Now().After(x.expired) {
				return Event{Exit: &Exit{Code: codeKilled, Status: "signal: killed", Error: "signal: killed", TimedOut: true}}, nil
			}
			if _, err := x.connect(false); err != nil {
				if !x.expired.IsZero() && !errs.Is(err, "sandbox_ended") && x.events.Err() == nil {
					x.expired = time.Unix(1, 0)
					continue
				}
				return Event{}, err
			}
		}
		msg, ok := x.receive(x.patience())
		if !ok {
			if err := x.broken(); err != nil {
				return Event{}, err
			}
			continue
		}
		x.trouble, x.pause = time.Time{}, 0
		ev, err := x.ledger.take(msg)
		switch {
		case err != nil:
			x.hangUp()
			return Event{}, err
		case ev.Exit != nil:
			x.bye()
			late := !x.expired.IsZero() || x.timeout > 0 && time.Since(x.began) >= x.timeout
			ev.Exit.TimedOut = late && ev.Exit.Code == codeKilled
			return ev, nil
		case ev.Data != nil:
			if ev.From == Terminal {
				x.hasTerminal()
			}
			return ev, nil
		case ev.Lost > 0:
			return ev, nil
		}
	}
}

// patience is how long the guest may be silent.
func (x *Session) patience() time.Duration {
	if x.expired.IsZero() {
		return x.s.opt.Silence
	}
	return max(min(time.Until(x.expired), x.s.opt.Silence), time.Millisecond)
}

// receive waits for one event, at most for the given time.
func (x *Session) receive(within time.Duration) (*pb.ProcessEvent, bool) {
	x.watchdog.Reset(within)
	defer x.watchdog.Stop()
	return x.src.receive()
}

// broken looks at why the events stopped: nil when it is worth to connect again.
func (x *Session) broken() error {
	err := x.src.err()
	x.hangUp()
	if over := x.visit.over(x.events); over != nil {
		return over
	}
	switch {
	case x.trouble.IsZero(), time.Since(x.dialed) > settled:
		x.trouble, x.pause = time.Now(), 0
	case x.pause == 0:
		x.pause = retryFirst // it broke again before anything came
	}
	ce := said(err)
	switch {
	case ce == nil && err != nil && connect.CodeOf(err) == connect.CodeResourceExhausted:
		return misbehaves("an event that is too large").Because(err)
	case ce == nil:
		return nil
	case ce.Code() == connect.CodeDeadlineExceeded && x.timeout > 0 && x.expired.IsZero():
		x.expired = time.Now().Add(lastWords)
		return nil
	case ce.Code() == connect.CodeResourceExhausted:
		return nil // we were too slow for the guest; it keeps what it can
	default:
		return outage(err)
	}
}

// connect opens a stream of the command's events and reads its start, trying
// for as long as a broken connection may last.
func (x *Session) connect(start bool) (pid uint32, err error) {
	for try := 0; ; try++ {
		if !x.trouble.IsZero() && time.Now().After(x.giveUp()) {
			if err == nil {
				err = errors.New("the command's events break off each time")
			}
			return 0, outage(err)
		}
		if x.pause > 0 {
			if err := x.rest(); err != nil {
				return 0, err
			}
		}
		if over := x.visit.over(x.events); over != nil {
			return 0, over
		}
		if try > 0 {
			err = x.find()
		}
		if err == nil || try == 0 {
			if pid, err = x.dial(start); err == nil {
				return pid, nil
			}
		}
		if over := x.visit.over(x.events); over != nil {
			return 0, over
		}
		if typed := (*errs.Error)(nil); errors.As(err, &typed) && typed.Code != errs.CodeUnavailable {
			return 0, typed
		}
		if x.trouble.IsZero() {
			x.trouble = time.Now()
		}
		if time.Now().After(x.giveUp()) || errs.Is(err, "sandbox_misbehaves") {
			return 0, errs.As(err)
		}
		if x.pause == 0 {
			x.pause = retryFirst
		}
	}
}

// giveUp is when trouble has lasted too long.
func (x *Session) giveUp() time.Time {
	limit := x.trouble.Add(x.s.opt.ResumeWindow)
	if !x.expired.IsZero() && x.expired.Before(limit) {
		return x.expired
	}
	return limit
}

// rest waits between two tries, longer each time.
func (x *Session) rest() error {
	timer := time.NewTimer(x.pause)
	defer timer.Stop()
	x.pause = min(2*x.pause, retryMost)
	select {
	case <-timer.C:
		return nil
	case <-x.events.Done():
		return x.visit.over(x.events)
	}
}

// find asks anew for the way to the sandbox: its host may have come back on
// another connection, and the caller may have lost the right to it.
func (x *Session) find() error {
	target, err := x.s.targets.Target(x.events, x.by, x.visit.Sandbox)
	switch errs.CodeOf(err) {
	case "":
		x.take(&visit{Target: target, user: x.visit.user})
		return nil
	case errs.CodeNotFound, errs.CodeConflict, errs.CodeFailedPrecondition:
		return sandboxEnded().Because(err)
	default:
		return errs.As(err)
	}
}

// dial tries once.
func (x *Session) dial(start bool) (uint32, error) {
	ctx, cancel := context.WithCancel(x.way())
	deaf := context.AfterFunc(x.events, cancel)
	x.drop = func() { deaf(); cancel() }
	x.watchdog = time.AfterFunc(x.s.opt.StartWait, cancel)
	var err error
	if start {
		if x.timeout > 0 {
			ctx = withLifetime(ctx, x.timeout)
		}
		var s *connect.ServerStreamForClient[pb.StartResponse]
		if s, err = x.s.process.Start(ctx, x.request); err == nil {
			x.src = sourceOf(s, (*pb.StartResponse).GetEvent)
		}
	} else {
		after := x.ledger.next
		var s *connect.ServerStreamForClient[pb.ConnectResponse]
		if s, err = x.s.process.Connect(ctx, &pb.ConnectRequest{Process: x.selector(), After: &after}); err == nil {
			x.src = sourceOf(s, (*pb.ConnectResponse).GetEvent)
		}
	}
	if err == nil {
		var first *pb.ProcessEvent
		var ok bool
		if first, ok = x.src.receive(); ok {
			x.watchdog.Stop()
			if s := first.GetStart(); s != nil {
				x.started, x.dialed = true, time.Now()
				return s.GetPid(), nil
			}
			x.hangUp()
			return 0, misbehaves("no start")
		}
		err = x.src.err()
	}
	x.hangUp()
	ce := said(err)
	switch {
	case ce == nil && err == nil:
		err = errors.New("the stream ended before its start")
	case ce == nil && connect.CodeOf(err) == connect.CodeUnauthenticated:
		return 0, x.visit.unknownUser("")
	case ce == nil && connect.CodeOf(err) == connect.CodeResourceExhausted:
		return 0, misbehaves("an event that is too large").Because(err)
	case ce != nil && ce.Code() == connect.CodeDeadlineExceeded && start && x.timeout > 0:
		// So short a timeout that the start itself was not told.
		x.expired = time.Now().Add(lastWords)
		return 0, nil
	case ce != nil:
		return 0, x.visit.refusal(ce, x.request.GetProcess().GetCmd(), x.request.GetProcess().GetCwd())
	}
	return 0, outage(fmt.Errorf("following the command: %w", err))
}

func (x *Session) selector() *pb.ProcessSelector {
	return &pb.ProcessSelector{Selector: &pb.ProcessSelector_ExecId{ExecId: x.execID}}
}

// hangUp ends the present stream, if any.
func (x *Session) hangUp() {
	if x.drop == nil {
		return
	}
	x.watchdog.Stop()
	x.drop()
	if x.src != nil {
		_ = x.src.close()
	}
	x.src, x.drop = nil, nil
}

// bye reads the end of a stream whose command ended, so that its connection can
// be used again.
func (x *Session) bye() {
	x.receive(farewell)
	x.hangUp()
}
