package sandboxiohttp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/errs"
)

// The protocol of a stream, as api/openapi/sandbox.yaml describes it.
const (
	subprotocol = "skerry.exec.v1"
	inputByte   = 0
	headerBytes = 1 + 8
)

// opening is the first message of a client: a command, or what to attach to.
type opening struct {
	Attach *string `json:"attach"`
	After  *uint64 `json:"after"`

	Cmd        *string           `json:"cmd"`
	Args       []string          `json:"args"`
	Env        map[string]string `json:"env"`
	Cwd        *string           `json:"cwd"`
	User       *string           `json:"user"`
	TimeoutSec *float64          `json:"timeout_sec"`
	Stdin      *bool             `json:"stdin"`
	TTY        *ttySize          `json:"tty"`
}

type ttySize struct {
	Cols uint32 `json:"cols"`
	Rows uint32 `json:"rows"`
}

// control is a later text message of a client.
type control struct {
	Type   string  `json:"type"`
	Cols   *uint32 `json:"cols"`
	Rows   *uint32 `json:"rows"`
	Signal *string `json:"signal"`
}

func badMessage(format string, args ...any) *errs.Error {
	return errs.Invalid("bad_message", fmt.Sprintf(format, args...))
}

// strict reads one JSON object and nothing else: what is not understood is
// refused, never ignored.
func strict(raw []byte, into any) error {
	if !utf8.Valid(raw) {
		return badMessage("A text message must be UTF-8.")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return badMessage("The message is not what this protocol knows: %s.", reason(err)).Because(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badMessage("A message is one JSON object.")
	}
	return nil
}

// reason says in a few words what is wrong with a client's JSON.
func reason(err error) string {
	const most = 120
	text := err.Error()
	if len(text) > most {
		text = text[:most]
	}
	return text
}

// start reads the opening as a command to start; terminal tells the route of
// terminals with its defaults.
func (o opening) start(terminal bool) (sandboxio.StartRequest, error) {
	req := sandboxio.StartRequest{Command: sandboxio.Command{Args: o.Args, Env: o.Env, Cwd: deref(o.Cwd), User: deref(o.User)}, Stdin: deref(o.Stdin)}
	if o.After != nil {
		return req, badMessage("after goes with attach.")
	}
	if o.TTY != nil {
		req.TTY = &sandboxio.Size{Cols: o.TTY.Cols, Rows: o.TTY.Rows}
	}
	if o.TimeoutSec != nil {
		d, err := sandboxio.Seconds(*o.TimeoutSec)
		if err != nil {
			return req, err
		}
		req.Timeout = d
	}
	if terminal {
		if req.TTY == nil {
			req.TTY = &sandboxio.Size{Cols: 80, Rows: 24}
		}
		req.Env = map[string]string{"TERM": "xterm-256color", "LANG": "C.UTF-8"}
		for k, v := range o.Env {
			req.Env[k] = v
		}
	}
	switch {
	case o.Cmd != nil:
		req.Cmd = *o.Cmd
	case !terminal:
		return req, errs.Field("cmd", "The first message needs cmd, or attach.")
	case o.Args != nil:
		return req, errs.Field("args", "args go with cmd.")
	default:
		req.Cmd, req.Args = "/bin/bash", []string{"-i", "-l"}
	}
	return req, nil
}

// attach reads the opening as one that names a command.
func (o opening) attach() (execID string, after uint64, err error) {
	if o.Cmd != nil || o.Args != nil || o.Env != nil || o.Cwd != nil || o.User != nil || o.TimeoutSec != nil || o.Stdin != nil || o.TTY != nil {
		return "", 0, badMessage("attach goes with after and nothing else: the command runs already.")
	}
	return deref(o.Attach), deref(o.After), nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// Messages of the server.

func startMessage(s sandboxio.Started) []byte {
	return message(struct {
		Type   string `json:"type"`
		ExecID string `json:"exec_id"`
		PID    uint32 `json:"pid"`
	}{"start", s.ExecID, s.PID})
}

func gapMessage(lost uint64) []byte {
	return message(struct {
		Type string `json:"type"`
		Lost uint64 `json:"lost_bytes"`
	}{"gap", lost})
}

func exitMessage(x sandboxio.Exit) []byte {
	text := x.Error
	if x.TimedOut {
		text = "The time limit was reached."
	}
	return message(struct {
		Type   string `json:"type"`
		Code   int    `json:"exit_code"`
		Status string `json:"status"`
		Error  string `json:"error"`
	}{"exit", x.Code, x.Status, text})
}

func errorMessage(err error, requestID string) []byte {
	type body struct {
		Code      string         `json:"code"`
		Message   string         `json:"message"`
		Details   map[string]any `json:"details,omitempty"`
		RequestID string         `json:"request_id"`
	}
	e := errs.As(err)
	return message(struct {
		Type  string `json:"type"`
		Error body   `json:"error"`
	}{"error", body{e.Reason, e.Message, e.Details, requestID}})
}

// message encodes one of the above; their fields cannot fail to encode.
func message(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		return []byte(`{"type":"error","error":{"code":"internal","message":"A message could not be written."}}`)
	}
	return raw
}

// appendOutput appends the binary message of a piece of output to buf.
func appendOutput(buf []byte, ev sandboxio.Event) []byte {
	buf = append(buf, byte(ev.From))
	buf = binary.BigEndian.AppendUint64(buf, ev.Offset)
	return append(buf, ev.Data...)
}
