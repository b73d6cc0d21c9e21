package sandboxio

import (
	"context"
	"time"

	"connectrpc.com/connect"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/kernel/errs"
)

// maxInput is how much input travels in one call, in bytes.
const maxInput = 256 << 10

// Errors of acting on a command.
var (
	errInputClosed = errs.FailedPrecondition("input_closed", "The command takes no input, or none any more. Start it with stdin to send it some.")
	errInputLost   = errs.Unavailable("input_lost", "The connection to the sandbox broke while input was on its way: a part of it may be lost. Look at the command's state before you go on.")
	errNoTerminal  = errs.FailedPrecondition("no_terminal", "The command has no terminal to resize.")
	errTerminal    = errs.FailedPrecondition("has_terminal", "A terminal's input is not closed; send it the byte 4 instead.")
	errExecGone    = errs.NotFound("exec_not_found", "The command has ended.")
)

// Input gives data to the command, after all that was given before, and returns
// when its pipe or terminal took all of it. It waits for as long as the command
// does not read, ctx permitting. It never repeats what may have arrived.
func (x *Session) Input(ctx context.Context, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), maxInput)
		if err := x.give(ctx, data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (x *Session) give(ctx context.Context, data []byte) error {
	tty := x.IsTerminal()
	err := x.call(ctx, func(ctx context.Context) error {
		return x.sendInput(ctx, data, tty)
	})
	if refused(err) && !tty {
		// An attached session learns only now that there is a terminal.
		if err = x.call(ctx, func(ctx context.Context) error { return x.sendInput(ctx, data, true) }); err == nil {
			x.hasTerminal()
		}
	}
	switch {
	case err == nil:
		return nil
	case refused(err):
		return errInputClosed.Because(err)
	case said(err) == nil && x.visit.over(x.ctx) == nil:
		return errInputLost.Because(err)
	default:
		return x.failure(err)
	}
}

func (x *Session) sendInput(ctx context.Context, data []byte, tty bool) error {
	input := &pb.ProcessInput{Input: &pb.ProcessInput_Stdin{Stdin: data}}
	if tty {
		input.Input = &pb.ProcessInput_Pty{Pty: data}
	}
	_, err := x.s.process.SendInput(ctx, &pb.SendInputRequest{Process: x.selector(), Input: input})
	return err
}

// CloseStdin ends the input after what was given before; safe to repeat.
func (x *Session) CloseStdin(ctx context.Context) error {
	err := x.insist(ctx, func(ctx context.Context) error {
		_, err := x.s.process.CloseStdin(ctx, &pb.CloseStdinRequest{Process: x.selector()})
		return err
	})
	if refused(err) {
		return errTerminal.Because(err)
	}
	return x.failure(err)
}

// Resize changes the terminal's size.
func (x *Session) Resize(ctx context.Context, size Size) error {
	if err := size.check(); err != nil {
		return err
	}
	err := x.insist(ctx, func(ctx context.Context) error {
		_, err := x.s.process.Update(ctx, &pb.UpdateRequest{Process: x.selector(), Pty: size.pty()})
		return err
	})
	if refused(err) {
		return errNoTerminal.Because(err)
	}
	return x.failure(err)
}

// Signal reaches the command's process group, at least once: it is sent again
// when nobody can say whether it arrived. SIGKILL takes everything the command
// started. Names are those of the API; an unknown one is bad_message.
func (x *Session) Signal(ctx context.Context, name string) error {
	sig, ok := signals()[name]
	if !ok {
		return errs.Invalid("bad_message", "signal must be one of SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT and SIGSTOP.")
	}
	return x.failure(x.insist(ctx, func(ctx context.Context) error {
		_, err := x.s.process.SendSignal(ctx, &pb.SendSignalRequest{Process: x.selector(), Signal: sig})
		return err
	}))
}

func signals() map[string]pb.Signal {
	return map[string]pb.Signal{
		"SIGHUP": pb.Signal_SIGNAL_SIGHUP, "SIGINT": pb.Signal_SIGNAL_SIGINT, "SIGQUIT": pb.Signal_SIGNAL_SIGQUIT,
		"SIGKILL": pb.Signal_SIGNAL_SIGKILL, "SIGTERM": pb.Signal_SIGNAL_SIGTERM, "SIGUSR1": pb.Signal_SIGNAL_SIGUSR1,
		"SIGUSR2": pb.Signal_SIGNAL_SIGUSR2, "SIGCONT": pb.Signal_SIGNAL_SIGCONT, "SIGSTOP": pb.Signal_SIGNAL_SIGSTOP,
	}
}

// call makes one call on the present way to the guest; it ends with ctx, with
// the way, and with the sandbox.
func (x *Session) call(ctx context.Context, do func(context.Context) error) error {
	inner, cancel := context.WithCancel(x.way())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return do(inner)
}

// insist repeats a call that may be repeated while the guest cannot be reached.
func (x *Session) insist(ctx context.Context, do func(context.Context) error) error {
	give := time.Now().Add(x.s.opt.ResumeWindow)
	for pause := retryFirst; ; pause = min(2*pause, retryMost) {
		err := x.call(ctx, do)
		if err == nil || said(err) != nil || x.ctx.Err() != nil || time.Now().After(give) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-x.ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// failure is what a caller is told of an error of acting on the command.
func (x *Session) failure(err error) error {
	if err == nil {
		return nil
	}
	if over := x.visit.over(x.ctx); over != nil {
		return over
	}
	if ce := said(err); ce != nil && ce.Code() == connect.CodeNotFound {
		return errExecGone.Because(err)
	}
	return outage(err)
}

func refused(err error) bool {
	ce := said(err)
	return ce != nil && ce.Code() == connect.CodeFailedPrecondition
}

// IsTerminal reports whether the command is known to have a terminal.
func (x *Session) IsTerminal() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.tty
}

func (x *Session) hasTerminal() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tty = true
}
