package sdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// Command is what to run.
type Command struct {
	Cmd     string   // a program; without Args, a line for the shell
	Args    []string // without the program's own name
	Env     map[string]string
	Dir     string
	User    string
	Timeout time.Duration // when it is killed; zero: never
	// Stdin is given to the command, then its input ends. Start leaves the
	// input open when KeepStdin is set, for Process.Write.
	Stdin     io.Reader
	KeepStdin bool
	// TTY gives the command a terminal of this size; its output is then all in
	// Stdout. Cmd may be empty: the user's login shell.
	TTY *Size

	// Stdout and Stderr take the output as it comes, for Start. Nil discards. A
	// slow writer slows the command.
	Stdout, Stderr io.Writer
}

// Size of a terminal, in characters.
type Size struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// Exit is how a command ended.
type Exit struct {
	Code   int    // 128 plus the signal for a command ended by one
	Status string // in words
	Error  string // why it could not be run to its end; mostly empty
	// Lost counts output bytes that nobody can have any more, because the
	// connection was away for longer than the replay reaches back (1 MiB).
	Lost int64
}

// ErrDetached is returned by Wait when the connection was given up. The command
// runs on; Attach finds it again.
var ErrDetached = errors.New("the connection to the command was lost; it runs on")

const (
	subprotocol = "skerry.exec.v1"
	maxMessage  = 4 << 20
	reattachFor = 30 * time.Second
	writeWithin = 30 * time.Second

	endOfTransmission = 4

	frameInput = 0
	frameErr   = 2
	frameHead  = 9 // one byte of kind, eight of offset
)

// Process is a running command. Its output flows until Wait returns, also over
// a lost connection: it attaches again and goes on where it was.
type Process struct {
	c       *Client
	path    string
	cmd     Command
	execID  string
	started chan struct{}
	once    sync.Once

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}
	exit   Exit
	err    error
	offset uint64 // of the next output byte

	mu   sync.Mutex // guards conn and orders writes to it
	conn *websocket.Conn
}

// Start runs a command and returns when it runs. The process, and all that
// waits for it, ends when ctx does; the command then runs on.
func (c *Client) Start(ctx context.Context, id string, cmd Command) (*Process, error) {
	kind := "/exec/stream"
	if cmd.TTY != nil {
		kind = "/pty"
	}
	first := map[string]any{}
	set := func(name string, value any, given bool) {
		if given {
			first[name] = value
		}
	}
	set("cmd", cmd.Cmd, cmd.Cmd != "")
	set("args", cmd.Args, cmd.Args != nil)
	set("env", cmd.Env, len(cmd.Env) > 0)
	set("cwd", cmd.Dir, cmd.Dir != "")
	set("user", cmd.User, cmd.User != "")
	set("timeout_sec", cmd.Timeout.Seconds(), cmd.Timeout != 0)
	set("stdin", true, cmd.KeepStdin || cmd.Stdin != nil)
	set("tty", cmd.TTY, cmd.TTY != nil)
	p := c.newProcess(ctx, id, kind, cmd)
	return p, p.begin(first)
}

// Attach finds a command again by the id that Process.ID gave, and delivers its
// output from the offset on, as far as it is kept.
func (c *Client) Attach(ctx context.Context, id, execID string, after uint64, cmd Command) (*Process, error) {
	p := c.newProcess(ctx, id, "/exec/stream", cmd)
	p.execID, p.offset = execID, after
	return p, p.begin(p.attach())
}

func (c *Client) newProcess(ctx context.Context, id, kind string, cmd Command) *Process {
	if cmd.Stdout == nil {
		cmd.Stdout = io.Discard
	}
	if cmd.Stderr == nil {
		cmd.Stderr = io.Discard
	}
	p := &Process{c: c, path: "/v1/sandboxes/" + url.PathEscape(id) + kind, cmd: cmd, started: make(chan struct{}), done: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	return p
}

func (p *Process) attach() map[string]any {
	return map[string]any{"attach": p.execID, "after": p.offset}
}

func (p *Process) begin(first map[string]any) error {
	if err := p.dial(first); err != nil {
		p.cancel(nil)
		close(p.done)
		p.err = err
		return err
	}
	go p.run()
	select {
	case <-p.started:
	case <-p.done:
		if p.execID == "" {
			return p.err
		}
	}
	if p.cmd.Stdin != nil {
		go p.feed()
	}
	return nil
}

// dial opens the connection and says what is wanted.
func (p *Process) dial(first map[string]any) error {
	u := *p.c.base.JoinPath(p.path)
	header := http.Header{}
	if err := p.c.authorize(p.ctx, header); err != nil {
		return err
	}
	//nolint:bodyclose // the connection owns the body; of a refusal it is a buffer in memory
	conn, answer, err := websocket.Dial(p.ctx, u.String(), &websocket.DialOptions{
		HTTPClient: p.c.http, HTTPHeader: header, Subprotocols: []string{subprotocol},
	})
	if err != nil {
		if answer != nil && answer.StatusCode >= 400 {
			return readError(answer)
		}
		if p.ctx.Err() != nil {
			return p.ctx.Err()
		}
		return &UnreachableError{URL: p.c.URL(), cause: err}
	}
	conn.SetReadLimit(maxMessage)
	p.mu.Lock()
	p.conn = conn
	p.mu.Unlock()
	return p.send(first)
}

// ID names the command for Attach.
func (p *Process) ID() string { return p.execID }

// Wait returns when the command has ended and all its output was delivered.
func (p *Process) Wait() (Exit, error) {
	<-p.done
	return p.exit, p.err
}

// Close gives the connection up. The command runs on.
func (p *Process) Close() {
	p.cancel(nil)
	<-p.done
}

// run reads until the command's exit, attaching again when the connection is
// lost.
func (p *Process) run() {
	defer close(p.done)
	defer p.cancel(nil)
	for {
		err := p.read()
		if err == nil {
			_ = p.conn.Close(websocket.StatusNormalClosure, "")
			return
		}
		_ = p.conn.CloseNow()
		var refused *Error
		var broken *deliveryError
		switch {
		case errors.As(err, &refused), errors.As(err, &broken), p.execID == "", p.ctx.Err() != nil:
			p.err = err
			if p.ctx.Err() != nil {
				p.err = errors.Join(ErrDetached, context.Cause(p.ctx))
			}
			return
		}
		if p.err = p.reattach(); p.err != nil {
			return
		}
	}
}

// reattach dials until it succeeds, the server refuses, or time is up.
func (p *Process) reattach() error {
	deadline := time.Now().Add(reattachFor)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := p.dial(p.attach())
		if err == nil {
			return nil
		}
		var refused *Error
		if errors.As(err, &refused) && refused.Status < 500 && refused.Status != http.StatusTooManyRequests {
			return err
		}
		if p.ctx.Err() != nil || time.Now().After(deadline) {
			return errors.Join(ErrDetached, err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
		}
	}
}

// deliveryError is our own side refusing the output.
type deliveryError struct{ err error }

func (e *deliveryError) Error() string { return "writing the command's output: " + e.err.Error() }
func (e *deliveryError) Unwrap() error { return e.err }

// read delivers messages until the exit (nil) or a fault.
func (p *Process) read() error {
	for {
		kind, raw, err := p.conn.Read(p.ctx)
		if err != nil {
			return &UnreachableError{URL: p.c.URL(), cause: err}
		}
		if kind == websocket.MessageBinary {
			if err := p.output(raw); err != nil {
				return err
			}
			continue
		}
		ended, err := p.control(raw)
		if ended || err != nil {
			return err
		}
	}
}

func (p *Process) output(raw []byte) error {
	if len(raw) < frameHead {
		return &Error{Code: "unexpected_answer", Message: "The server sent a message that is too short to be output."}
	}
	at, data := binary.BigEndian.Uint64(raw[1:frameHead]), raw[frameHead:]
	if at < p.offset { // delivered before the connection was lost
		data = data[min(uint64(len(data)), p.offset-at):]
	}
	to := p.cmd.Stdout
	if raw[0] == frameErr {
		to = p.cmd.Stderr
	}
	if _, err := to.Write(data); err != nil {
		return &deliveryError{err}
	}
	p.offset = max(p.offset, at+uint64(len(raw)-frameHead))
	return nil
}

func (p *Process) control(raw []byte) (ended bool, err error) {
	var m struct {
		Type      string          `json:"type"`
		ExecID    string          `json:"exec_id"`
		LostBytes int64           `json:"lost_bytes"`
		ExitCode  int             `json:"exit_code"`
		Status    string          `json:"status"`
		Error     json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&m); err != nil {
		return false, &Error{Code: "unexpected_answer", Message: "The server sent a message that is not understood."}
	}
	switch m.Type {
	case "start":
		p.once.Do(func() {
			p.execID = m.ExecID
			close(p.started)
		})
	case "gap":
		p.exit.Lost += m.LostBytes
	case "exit":
		p.exit.Code, p.exit.Status = m.ExitCode, m.Status
		if len(m.Error) > 0 {
			_ = json.Unmarshal(m.Error, &p.exit.Error)
		}
		return true, nil
	case "error":
		var w wireError
		if json.Unmarshal(m.Error, &w.Error) != nil || w.Error.Code == "" {
			w.Error.Code, w.Error.Message = "unexpected_answer", "The server reported an error without saying which."
		}
		return false, w.typed(0)
	}
	return false, nil
}

// Write sends input. What is on its way when the connection is lost may be
// lost with it.
func (p *Process) Write(b []byte) (int, error) {
	const chunk = 16 << 10 // well below what servers take in one message
	for n := 0; n < len(b); {
		part := b[n:min(len(b), n+chunk)]
		if err := p.write(websocket.MessageBinary, append([]byte{frameInput}, part...)); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(b), nil
}

// CloseStdin ends the command's input.
func (p *Process) CloseStdin() error { return p.send(map[string]any{"type": "close_stdin"}) }

// Signal sends a signal, "SIGTERM", to the command's process group.
func (p *Process) Signal(name string) error {
	return p.send(map[string]any{"type": "signal", "signal": name})
}

// Resize tells the command's terminal its new size.
func (p *Process) Resize(s Size) error {
	return p.send(map[string]any{"type": "resize", "cols": s.Cols, "rows": s.Rows})
}

func (p *Process) send(m map[string]any) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return p.write(websocket.MessageText, raw)
}

func (p *Process) write(kind websocket.MessageType, raw []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, writeWithin)
	defer cancel()
	if err := p.conn.Write(ctx, kind, raw); err != nil {
		return &UnreachableError{URL: p.c.URL(), cause: err}
	}
	return nil
}

// feed copies Stdin to the command. It may stay in a read of the caller's
// Stdin after the command's end; nothing waits for it.
func (p *Process) feed() {
	_, err := io.Copy(struct{ io.Writer }{p}, p.cmd.Stdin)
	if err == nil && p.cmd.TTY != nil {
		_, err = p.Write([]byte{endOfTransmission}) // what ends the input of a terminal
	} else if err == nil {
		err = p.CloseStdin()
	}
	// Nobody can say how much of the input arrived: a command that is given half
	// of it must not be taken for one that was given all.
	if err != nil && p.ctx.Err() == nil {
		p.cancel(fmt.Errorf("the command's input was cut off: %w", err))
	}
}
