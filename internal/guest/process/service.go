package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/passwd"
	"skerry.dev/skerry/internal/guest/procfs"
)

const (
	keepaliveDefault = 90 * time.Second
	execIDMax        = 128
)

var _ processconnect.ProcessHandler = (*Manager)(nil)

// List returns the running processes, by pid.
func (m *Manager) List(context.Context, *pb.ListRequest) (*pb.ListResponse, error) {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.byPID))
	m.mu.Unlock()
	slices.SortFunc(all, func(a, b *command) int { return a.pid - b.pid })
	res := &pb.ListResponse{}
	for _, c := range all {
		if c.running() {
			res.Processes = append(res.Processes, &pb.ProcessInfo{Config: c.config, Pid: uint32(c.pid), Tag: c.tag, ExecId: c.id})
		}
	}
	return res, nil
}

// Start runs a command, or attaches to the one that an earlier Start with the
// same exec id began. The caller's deadline is the command's lifetime; a caller
// who only goes away leaves the command running.
func (m *Manager) Start(ctx context.Context, req *pb.StartRequest, out *connect.ServerStream[pb.StartResponse]) error {
	cfg := req.GetProcess()
	if cfg == nil {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("process is missing"))
	}
	id := req.GetExecId()
	switch {
	case id == "":
		id = uuid.NewString()
	case !validExecID(id):
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("exec_id must be 1 to %d letters, digits or one of _.-", execIDMax))
	}
	c := &command{
		id: id, tag: req.Tag, config: cfg, replay: req.GetReplay(),
		ready: make(chan struct{}), exited: make(chan struct{}), ended: make(chan struct{}),
	}
	var lifetime time.Duration
	if at, ok := ctx.Deadline(); ok {
		lifetime = max(time.Until(at), time.Millisecond)
	}
	c, sub, err := m.start(c, func() (request, error) { return m.resolve(ctx, req, id) }, lifetime)
	if err != nil {
		return err
	}
	if sub == nil {
		var after *uint64
		if c.replay {
			after = new(uint64)
		}
		sub = c.hub.subscribe(after)
	}
	defer sub.close()
	return m.follow(ctx, c, sub, c.replay && req.GetReplay(), func(e *pb.ProcessEvent) error {
		return out.Send(&pb.StartResponse{Event: e})
	})
}

// Connect attaches to a process that runs, or whose result is still kept.
func (m *Manager) Connect(ctx context.Context, req *pb.ConnectRequest, out *connect.ServerStream[pb.ConnectResponse]) error {
	c, err := m.find(req.GetProcess())
	if err != nil {
		return err
	}
	sub := c.hub.subscribe(req.After)
	defer sub.close()
	return m.follow(ctx, c, sub, req.After != nil, func(e *pb.ProcessEvent) error {
		return out.Send(&pb.ConnectResponse{Event: e})
	})
}

// follow sends what sub reads, from the start event to the end.
func (m *Manager) follow(ctx context.Context, c *command, sub *subscriber, offsets bool, send func(*pb.ProcessEvent) error) error {
	start := &pb.ProcessEvent_StartEvent{Pid: uint32(c.pid)}
	if offsets {
		start.ExecId = c.id
	}
	if err := send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: start}}); err != nil {
		return err
	}
	idle := keepalive(ctx)
	for {
		w, err := sub.read(ctx, idle)
		var event *pb.ProcessEvent
		switch {
		case errors.Is(err, errLagging):
			return connect.NewError(connect.CodeResourceExhausted, err)
		case errors.Is(err, context.DeadlineExceeded), err == nil && w.end != nil && c.expired.Load() && hasDeadline(ctx):
			return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the time limit was reached"))
		case err != nil:
			return connect.NewError(connect.CodeCanceled, err)
		case w.piece != nil:
			event = &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: dataOf(w.piece, offsets)}}
		case w.end != nil:
			end := &pb.ProcessEvent_EndEvent{ExitCode: w.end.code, Exited: w.end.exited, Status: w.end.status}
			if w.end.err != "" {
				end.Error = &w.end.err
			}
			return send(&pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: end}})
		case w.gap > 0:
			if !offsets {
				continue
			}
			event = &pb.ProcessEvent{Event: &pb.ProcessEvent_Gap{Gap: &pb.ProcessEvent_GapEvent{LostBytes: w.gap}}}
		default:
			event = &pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}
		}
		if err := send(event); err != nil {
			return err
		}
	}
}

func dataOf(p *piece, offsets bool) *pb.ProcessEvent_DataEvent {
	d := &pb.ProcessEvent_DataEvent{}
	switch p.from {
	case stdout:
		d.Output = &pb.ProcessEvent_DataEvent_Stdout{Stdout: p.data}
	case stderr:
		d.Output = &pb.ProcessEvent_DataEvent_Stderr{Stderr: p.data}
	default:
		d.Output = &pb.ProcessEvent_DataEvent_Pty{Pty: p.data}
	}
	if offsets {
		d.Offset = p.offset
	}
	return d
}

func hasDeadline(ctx context.Context) bool {
	_, ok := ctx.Deadline()
	return ok
}

// keepalive is how long the stream may be silent, as the caller asked.
func keepalive(ctx context.Context) time.Duration {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		n, err := strconv.Atoi(info.RequestHeader().Get(guestapi.HeaderKeepalive))
		if err == nil && n > 0 && n <= 3600 {
			return time.Duration(n) * time.Second
		}
	}
	return keepaliveDefault
}

func validExecID(s string) bool {
	for i := range len(s) {
		c := s[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-'
		if !ok {
			return false
		}
	}
	return len(s) <= execIDMax
}

// resolve turns the request into what the kernel needs, as the acting user.
func (m *Manager) resolve(ctx context.Context, req *pb.StartRequest, id string) (request, error) {
	set := m.opt.Settings()
	fallback := set.DefaultUser
	if fallback == "" {
		fallback = guestapi.DefaultUser
	}
	u, err := m.opt.Accounts.Lookup(passwd.Acting(ctx, fallback))
	if err != nil {
		return request{}, connect.NewError(connect.CodeUnauthenticated, err)
	}
	if set.MaxProcesses > 0 {
		pids, err := procfs.PIDs()
		if err != nil {
			return request{}, connect.NewError(connect.CodeInternal, err)
		}
		if len(pids) >= set.MaxProcesses {
			return request{}, connect.NewError(connect.CodeResourceExhausted,
				fmt.Errorf("the sandbox has %d processes and may have %d: end some first", len(pids), set.MaxProcesses))
		}
	}
	cfg := req.GetProcess()
	r := request{user: u, stdin: req.Stdin == nil || *req.Stdin}
	if req.Pty != nil {
		if r.size = req.Pty.GetSize(); r.size == nil {
			r.size = &pb.PTY_Size{}
		}
	}
	if r.dir, err = workdir(u, set.Workdir, cfg.GetCwd()); err != nil {
		return request{}, err
	}
	r.env = environment(u, set.Env, cfg.GetEnvs(), id, r.size != nil)
	if r.argv0, err = lookup(cfg.GetCmd(), r.dir, r.env); err != nil {
		return request{}, err
	}
	r.argv = append([]string{cfg.GetCmd()}, cfg.GetArgs()...)
	return r, nil
}

// Update changes a terminal's size.
func (m *Manager) Update(_ context.Context, req *pb.UpdateRequest) (*pb.UpdateResponse, error) {
	c, err := m.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if req.Pty == nil || req.Pty.Size == nil {
		return &pb.UpdateResponse{}, nil
	}
	if c.tty == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal"))
	}
	if err := c.resize(req.Pty.Size); err != nil && c.running() {
		return nil, connect.NewError(connect.CodeInternal, fmt.Errorf("resizing the terminal: %w", err))
	}
	return &pb.UpdateResponse{}, nil
}

// SendInput returns when the process's input took all bytes.
func (m *Manager) SendInput(ctx context.Context, req *pb.SendInputRequest) (*pb.SendInputResponse, error) {
	c, err := m.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := c.give(ctx, req.GetInput()); err != nil {
		return nil, err
	}
	return &pb.SendInputResponse{}, nil
}

// StreamInput is SendInput for many pieces; the first message names the process.
func (m *Manager) StreamInput(ctx context.Context, in *connect.ClientStream[pb.StreamInputRequest]) (*pb.StreamInputResponse, error) {
	var c *command
	for in.Receive() {
		switch e := in.Msg().GetEvent().(type) {
		case *pb.StreamInputRequest_Start:
			if c != nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("start came twice"))
			}
			var err error
			if c, err = m.findRunning(e.Start.GetProcess()); err != nil {
				return nil, err
			}
		case *pb.StreamInputRequest_Data:
			if c == nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the first message must be start"))
			}
			if err := c.give(ctx, e.Data.GetInput()); err != nil {
				return nil, err
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return &pb.StreamInputResponse{}, nil
}

// give writes to the process what fits its kind of input.
func (c *command) give(ctx context.Context, input *pb.ProcessInput) error {
	var data []byte
	switch i := input.GetInput().(type) {
	case *pb.ProcessInput_Stdin:
		if c.tty != nil {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has a terminal: send pty input"))
		}
		data = i.Stdin
	case *pb.ProcessInput_Pty:
		if c.tty == nil {
			return connect.NewError(connect.CodeFailedPrecondition, errors.New("the process has no terminal: send stdin input"))
		}
		data = i.Pty
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("input is missing"))
	}
	err := c.in.write(ctx, data)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errNoInput), errors.Is(err, unix.EPIPE), errors.Is(err, unix.EIO), errors.Is(err, os.ErrClosed):
		return connect.NewError(connect.CodeFailedPrecondition, errNoInput)
	default:
		return connect.NewError(connect.CodeInternal, fmt.Errorf("writing to the process: %w", err))
	}
}

// SendSignal reaches the process group; SIGKILL takes everything the command
// started, and returns when it is gone.
func (m *Manager) SendSignal(_ context.Context, req *pb.SendSignalRequest) (*pb.SendSignalResponse, error) {
	c, err := m.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(req.GetSignal())
	switch sig {
	case unix.SIGKILL:
		m.killTree(c)
		return &pb.SendSignalResponse{}, nil
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTERM, unix.SIGCONT, unix.SIGSTOP:
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("signal %d is not supported", sig))
	}
	if !m.reaper.signal(c.pid, sig) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with pid %d not found", c.pid))
	}
	return &pb.SendSignalResponse{}, nil
}

// CloseStdin ends a process's input after what was sent before.
func (m *Manager) CloseStdin(ctx context.Context, req *pb.CloseStdinRequest) (*pb.CloseStdinResponse, error) {
	c, err := m.findRunning(req.GetProcess())
	if err != nil {
		return nil, err
	}
	if c.tty != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("a terminal's input is ended by sending byte 0x04"))
	}
	if err := c.in.close(ctx); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &pb.CloseStdinResponse{}, nil
}
