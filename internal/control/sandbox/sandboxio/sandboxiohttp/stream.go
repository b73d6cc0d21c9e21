package sandboxiohttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	maxFrame = 1 << 20 // of a client, in bytes
	// writeStall is how long a client may take no byte before it counts as gone.
	writeStall = 5 * time.Minute
	// lastWill is how long the input of a client that left is still given to its
	// command.
	lastWill = 5 * time.Second
	// statusEnded closes a stream whose sandbox has ended.
	statusEnded websocket.StatusCode = 4001
)

// StreamExec serves exec/stream. After the exit message the server closes with
// 1000; after an error message with 1011, with 1008 when the first message was
// at fault or the caller's session or key has ended, and with 4001 when the sandbox ended. A frame over 1 MiB is answered
// with 1009, a restart of this server with 1012: attach again.
func (h *Handlers) StreamExec(w http.ResponseWriter, r *http.Request) { h.stream(w, r, false) }

// OpenPTY serves pty: StreamExec with a terminal.
func (h *Handlers) OpenPTY(w http.ResponseWriter, r *http.Request) { h.stream(w, r, true) }

func (h *Handlers) stream(w http.ResponseWriter, r *http.Request, terminal bool) {
	sandbox, err := id.ParseSandbox(r.PathValue("id"))
	if err == nil {
		err = h.admissible(r)
	}
	if err == nil {
		err = h.enter()
	}
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	defer h.leave()
	by := principal.From(r.Context())
	// The stream outlives the request it came with, as net/http sees it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	defer context.AfterFunc(h.closing, cancel)()
	defer context.AfterFunc(r.Context(), func() {
		if refused(r.Context()) != nil {
			cancel()
		}
	})()
	session, err := h.io.Open(ctx, by, sandbox)
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	defer session.Close()
	present, leave := context.WithCancel(ctx)
	defer leave()
	defer context.AfterFunc(present, session.Interrupt)()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols:       []string{subprotocol},
		InsecureSkipVerify: true, // admissible looked at the origin
	})
	if err != nil {
		return // Accept has answered
	}
	defer func() { _ = conn.CloseNow() }()
	defer context.AfterFunc(h.closed, func() { _ = conn.CloseNow() })()
	conn.SetReadLimit(maxFrame)
	s := &stream{
		h: h, conn: conn, session: session, terminal: terminal, requestID: by.RequestID, request: r.Context(),
		ctx: present, cancel: leave, first: make(chan frame, 1), lanes: newLanes(h.spare),
	}
	s.run(ctx)
}

// refused is why the caller of a request may no longer call; nil while it may,
// and when the request ended for another reason.
func refused(request context.Context) error {
	if err := context.Cause(request); err != nil && errs.CodeOf(err) == errs.CodeUnauthenticated {
		return err
	}
	return nil
}

// admissible refuses what is no WebSocket of ours, and pages of foreign origins:
// a browser sends its user's credentials whoever wrote the page.
func (h *Handlers) admissible(r *http.Request) error {
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		own := err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
		if !own && !slices.ContainsFunc(h.opt.AllowedOrigins, func(o string) bool { return strings.EqualFold(o, origin) }) {
			return errs.Forbidden("origin_not_allowed", "Pages of this origin may not open streams here. The operator can allow it.")
		}
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return errs.Invalid("upgrade_required", "This route speaks WebSocket only, with the subprotocol "+subprotocol+".")
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(p) == subprotocol {
				return nil
			}
		}
	}
	return errs.Invalid("unsupported_subprotocol", "Ask for the WebSocket subprotocol "+subprotocol+".")
}

// frame is one message of a client.
type frame struct {
	binary bool
	data   []byte
	at     time.Time
}

// stream is one open WebSocket. Its main goroutine carries output, one message
// at a time: a client that reads slowly slows its command and nothing else.
type stream struct {
	h         *Handlers
	conn      *websocket.Conn
	session   *sandboxio.Session
	terminal  bool
	requestID string
	request   context.Context // tells when the client may no longer call
	ctx       context.Context // ends when the client leaves and when the server closes
	cancel    context.CancelFunc
	first     chan frame
	lanes     *lanes
	wg        sync.WaitGroup

	reading atomic.Bool  // the reader is waiting for the client
	writing atomic.Bool  // a write is waiting for the client
	heard   atomic.Int64 // how often bytes of messages came from the client

	mu       sync.Mutex // held while writing
	finished bool       // the last message went out
}

// run serves the stream to its end and returns when nothing of it is left. What
// the client said before it left is still done, within bounds.
func (s *stream) run(ctx context.Context) {
	acting, stop := context.WithCancel(ctx)
	var acts sync.WaitGroup
	defer s.lanes.discard()
	defer acts.Wait()
	defer stop()
	defer s.wg.Wait()
	s.wg.Go(s.read)
	err := s.begin()
	fault := websocket.StatusInternalError
	if err == nil {
		acts.Go(func() { s.lanes.input(acting, s.session.IsTerminal, s.report) })
		acts.Go(func() { s.lanes.control(acting, s.report) })
		s.wg.Go(s.ping)
		err = s.follow()
	} else if errs.CodeOf(err) == errs.CodeInvalid {
		fault = websocket.StatusPolicyViolation
	}
	status := websocket.StatusNormalClosure
	switch {
	case err == nil:
	case s.h.closing.Err() != nil:
		status = websocket.StatusServiceRestart
	case refused(s.request) != nil:
		status = websocket.StatusPolicyViolation
		_ = s.write(websocket.MessageText, errorMessage(refused(s.request), s.requestID), true)
	case s.ctx.Err() != nil && !errs.Is(err, "sandbox_ended"):
		_ = s.conn.CloseNow() // the client has left
		late := time.AfterFunc(lastWill, stop)
		defer late.Stop()
		s.wg.Wait()
		acts.Wait()
		return
	default:
		if status = fault; errs.Is(err, "sandbox_ended") {
			status = statusEnded
		}
		_ = s.write(websocket.MessageText, errorMessage(err, s.requestID), true)
	}
	stop()
	s.cancel()
	_ = s.conn.Close(status, "")
}

// begin waits for the first message and does what it says.
func (s *stream) begin() error {
	timer := time.NewTimer(s.h.opt.FirstMessage)
	defer timer.Stop()
	var f frame
	select {
	case f = <-s.first:
	case <-timer.C:
		return badMessage("The first message did not come in time.")
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
	if f.binary {
		return badMessage("The first message must be text: a command, or what to attach to.")
	}
	var o opening
	if err := strict(f.data, &o); err != nil {
		return err
	}
	var started sandboxio.Started
	if o.Attach != nil {
		execID, after, err := o.attach()
		if err != nil {
			return err
		}
		if started, err = s.session.Attach(execID, after); err != nil {
			return err
		}
	} else {
		req, err := o.start(s.terminal)
		if err != nil {
			return err
		}
		if started, err = s.session.Start(req); err != nil {
			return err
		}
	}
	return s.write(websocket.MessageText, startMessage(started), false)
}

// follow carries output until the exit, which it tells last.
func (s *stream) follow() error {
	var buf []byte
	for {
		ev, err := s.session.Next()
		switch {
		case err != nil:
			return err
		case ev.Exit != nil:
			return s.write(websocket.MessageText, exitMessage(*ev.Exit), true)
		case ev.Lost > 0:
			err = s.write(websocket.MessageText, gapMessage(ev.Lost), false)
		default:
			buf = appendOutput(buf[:0], ev)
			err = s.write(websocket.MessageBinary, buf, false)
		}
		if err != nil {
			return err
		}
	}
}

// write sends one message; after the last one it sends nothing more.
func (s *stream) write(kind websocket.MessageType, data []byte, last bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return nil
	}
	s.finished = last
	s.writing.Store(true)
	defer s.writing.Store(false)
	// Not s.ctx: the library drops the connection when a write's context ends,
	// and the last words come after it did.
	ctx, cancel := context.WithTimeout(s.h.closed, writeStall)
	defer cancel()
	err := s.conn.Write(ctx, kind, data)
	if err != nil {
		s.cancel()
	}
	return err
}

// report tells of an error that does not end the stream.
func (s *stream) report(err error) {
	_ = s.write(websocket.MessageText, errorMessage(err, s.requestID), false)
}

// read takes the client's messages in their order. While the command takes no
// input and the lane is full it reads nothing, which is how the client learns.
func (s *stream) read() {
	defer s.lanes.close()
	defer s.cancel()
	for n := 0; ; n++ {
		s.reading.Store(true)
		kind, data, err := s.receive()
		s.reading.Store(false)
		if err != nil {
			return
		}
		f := frame{binary: kind == websocket.MessageBinary, data: data, at: time.Now()}
		if n == 0 {
			s.first <- f
			continue
		}
		if err := s.accept(f); err != nil {
			if s.ctx.Err() != nil {
				return
			}
			s.report(err)
		}
	}
}

// receive reads one message and counts its pieces as signs of life.
func (s *stream) receive() (websocket.MessageType, []byte, error) {
	kind, r, err := s.conn.Reader(s.h.closed)
	if err != nil {
		return 0, nil, err
	}
	data, err := io.ReadAll(listener{r, &s.heard})
	return kind, data, err
}

// listener counts the reads that give something.
type listener struct {
	r     io.Reader
	heard *atomic.Int64
}

func (l listener) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 {
		l.heard.Add(1)
	}
	return n, err
}

// accept puts one message into its lane.
func (s *stream) accept(f frame) error {
	if f.binary {
		if len(f.data) == 0 || f.data[0] != inputByte {
			return badMessage("A binary message is one byte 0 and then input.")
		}
		return s.lanes.pushInput(s.ctx, len(f.data), func(ctx context.Context) error { return s.session.Input(ctx, f.data[1:]) })
	}
	var c control
	if err := strict(f.data, &c); err != nil {
		return err
	}
	switch {
	case c.Type == "resize" && c.Cols != nil && c.Rows != nil && c.Signal == nil:
		size := sandboxio.Size{Cols: *c.Cols, Rows: *c.Rows}
		return s.lanes.pushControl(s.ctx, f.at, func(ctx context.Context) error { return s.session.Resize(ctx, size) })
	case c.Type == "signal" && c.Signal != nil && c.Cols == nil && c.Rows == nil:
		return s.lanes.pushControl(s.ctx, f.at, func(ctx context.Context) error { return s.session.Signal(ctx, *c.Signal) })
	case c.Type == "close_stdin" && c.Cols == nil && c.Rows == nil && c.Signal == nil:
		return s.lanes.pushInput(s.ctx, 0, s.session.CloseStdin)
	default:
		return badMessage("A text message is a resize with cols and rows, a signal with its name, or close_stdin.")
	}
}

// ping keeps every leg in between from calling the stream idle, and finds
// clients that are gone. A client that is slow to read, or whose input the
// command does not take, cannot answer in time and is not gone; nor is one whose
// answer waits behind what it is sending.
func (s *stream) ping() {
	tick := time.NewTicker(s.h.opt.PingEvery)
	defer tick.Stop()
	for missed := 0; missed < 2; {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if s.writing.Load() {
			continue
		}
		ctx, cancel := context.WithTimeout(s.ctx, s.h.opt.PingEvery)
		before := s.heard.Load()
		err := s.conn.Ping(ctx)
		cancel()
		switch {
		case err == nil:
			missed = 0
		case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled):
			missed = 2 // the connection is broken
		case s.heard.Load() != before:
			missed = 0
		case s.reading.Load() && !s.writing.Load():
			missed++
		}
	}
	s.cancel()
}
