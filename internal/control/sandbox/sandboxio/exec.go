package sandboxio

import (
	"context"
	"encoding/base64"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// maxOutput is what Exec returns of each stream, in bytes.
	maxOutput = 1 << 20
	// killWait bounds the attempts to end what an absent caller left behind, and
	// killOnce the single one while a caller waits for the error.
	killWait = 5 * time.Second
	killOnce = time.Second
)

// Encodings of an ExecResult.
const (
	EncodingUTF8   = "utf-8"
	EncodingBase64 = "base64"
)

// ExecRequest is a command that is waited for.
type ExecRequest struct {
	Command
	// Stdin is given to the command; then its input ends. Empty is no input.
	Stdin string
}

// ExecResult is what came of it.
type ExecResult struct {
	Stdout, Stderr string // in the encoding
	Encoding       string
	ExitCode       int // 128 plus the signal for a command ended by one, 137 after a timeout
	Duration       time.Duration
	Truncated      bool // either stream was longer than 1 MiB
	TimedOut       bool
}

// Exec runs a command and waits for its end, however long that takes. A caller
// that leaves ends the command with everything it started, unlike one of a
// Session. When the sandbox ends first the error is sandbox_ended.
func (s *Service) Exec(ctx context.Context, by principal.Principal, sandbox id.Sandbox, req ExecRequest) (ExecResult, error) {
	x, err := s.Open(ctx, by, sandbox)
	if err != nil {
		return ExecResult{}, err
	}
	defer x.Close()
	res, err := x.run(ctx, req)
	switch {
	case err == nil || x.execID == "" || x.visit.ended():
	case errs.CodeOf(err) == errs.CodeCanceled:
		x.abandon(ctx, killWait)
	case errs.CodeOf(err) == errs.CodeUnavailable:
		x.abandon(ctx, killOnce)
	}
	return res, err
}

func (x *Session) run(ctx context.Context, req ExecRequest) (ExecResult, error) {
	begin := time.Now()
	if _, err := x.Start(StartRequest{Command: req.Command, Stdin: req.Stdin != ""}); err != nil {
		return ExecResult{}, err
	}
	if req.Stdin != "" {
		feeding, stop := context.WithCancel(ctx)
		fed := make(chan struct{})
		go func() {
			defer close(fed)
			// A command need not read its input; how it takes that is its exit code.
			if err := x.Input(feeding, []byte(req.Stdin)); err == nil {
				_ = x.CloseStdin(feeding)
			}
		}()
		defer func() { stop(); <-fed }()
	}
	var out, errOut capture
	for {
		ev, err := x.Next()
		if err != nil {
			return ExecResult{}, err
		}
		switch {
		case ev.Exit != nil:
			res := ExecResult{
				ExitCode: ev.Exit.Code, TimedOut: ev.Exit.TimedOut, Duration: time.Since(begin),
				Truncated: out.cut || errOut.cut,
			}
			res.Stdout, res.Stderr, res.Encoding = encode(&out, &errOut)
			return res, nil
		case ev.From == Stderr:
			errOut.add(ev.Data)
		case ev.Lost > 0: // a break so long that output was overwritten meanwhile
			out.cut = true
		default:
			out.add(ev.Data)
		}
	}
}

// abandon kills what a failed Exec may have left running. A start that is still
// on its way is waited for, within bounds.
func (x *Session) abandon(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	v := x.present()
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		// The deadline stays here: on the wire it would mean something else.
		_, err := x.s.process.SendSignal(v.within(withoutDeadline{ctx}),
			&pb.SendSignalRequest{Process: x.selector(), Signal: pb.Signal_SIGNAL_SIGKILL})
		ce := said(err)
		if err == nil || ce != nil && (ce.Code() != connect.CodeNotFound || x.started) {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-v.Ended:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			x.s.log.WarnContext(ctx, "a command may go on without its caller", "sandbox_id", v.Sandbox.String(), "exec_id", x.execID, "error", err)
			return
		}
	}
}

// capture keeps the beginning of a stream.
type capture struct {
	kept []byte
	cut  bool
}

func (c *capture) add(b []byte) {
	if room := maxOutput - len(c.kept); len(b) > room {
		b, c.cut = b[:room], true
	}
	c.kept = append(c.kept, b...)
}

// whole drops the beginning of a character that the cut split.
func (c *capture) whole() {
	if !c.cut {
		return
	}
	for i := 1; i < utf8.UTFMax && i <= len(c.kept); i++ {
		if b := c.kept[len(c.kept)-i]; utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRune(c.kept[len(c.kept)-i:]) {
				c.kept = c.kept[:len(c.kept)-i]
			}
			return
		}
	}
}

// encode gives both streams the one encoding that suits them.
func encode(out, errOut *capture) (string, string, string) {
	out.whole()
	errOut.whole()
	if utf8.Valid(out.kept) && utf8.Valid(errOut.kept) {
		return string(out.kept), string(errOut.kept), EncodingUTF8
	}
	e := base64.StdEncoding
	return e.EncodeToString(out.kept), e.EncodeToString(errOut.kept), EncodingBase64
}
