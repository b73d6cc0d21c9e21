package sandboxio

import (
	"math"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Stream says where output came from; the numbers are part of the API.
type Stream byte

// The streams of a command.
const (
	Stdout   Stream = 1
	Stderr   Stream = 2
	Terminal Stream = 3
)

// Event is what Session.Next gives: output, a gap, or the exit.
type Event struct {
	// Output: the bytes and the position of the first one in the command's whole
	// output, all streams counted together.
	From   Stream
	Offset uint64
	Data   []byte
	// Gap: how many bytes are lost for good at this point.
	Lost uint64
	// Exit, the last event.
	Exit *Exit
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit code, or 128 plus the signal; 137 after a timeout.
	Code     int
	Status   string // such as "exit status 1" or "signal: killed"
	Error    string // empty on success
	TimedOut bool
}

const (
	codeKilled  = 128 + int(syscall.SIGKILL)
	codeUnknown = 255 // ended, and nobody can say how; never a success
)

// exitOf reads a guest's end event.
func exitOf(end *pb.ProcessEvent_EndEvent) *Exit {
	x := &Exit{Status: clean(end.GetStatus()), Error: clean(end.GetError())}
	switch code := int(end.GetExitCode()); {
	case end.GetExited() && code >= 0 && code <= 255:
		x.Code = code
	default:
		x.Code = signalCode(end.GetStatus(), end.GetError())
	}
	if x.Code != 0 && x.Error == "" {
		x.Error = x.Status
	}
	return x
}

// signalCode finds the signal that a text like "signal: killed" names.
func signalCode(texts ...string) int {
	const highest = 64
	for _, text := range texts {
		name, ok := strings.CutPrefix(text, "signal: ")
		if !ok {
			continue
		}
		name = strings.TrimSuffix(name, " (core dumped)")
		for n := 1; n <= highest; n++ {
			if syscall.Signal(n).String() == name {
				return 128 + n
			}
		}
	}
	return codeUnknown
}

// misbehaves is a guest that breaks its own protocol.
func misbehaves(what string) *errs.Error {
	return errs.Unavailable("sandbox_misbehaves",
		"The sandbox's answer makes no sense ("+what+"): its daemon was tampered with. Restart the sandbox or create another.")
}

// ledger checks that a guest's output is told without holes and doubles.
type ledger struct {
	next  uint64 // where the next byte belongs
	loose bool   // the first event says where it begins
}

// take turns a guest's event into ours. The zero Event stands for one that says
// nothing, such as a keepalive.
func (l *ledger) take(e *pb.ProcessEvent) (Event, error) {
	switch e := e.GetEvent().(type) {
	case *pb.ProcessEvent_Data:
		return l.data(e.Data)
	case *pb.ProcessEvent_Gap:
		lost := e.Gap.GetLostBytes()
		if lost > math.MaxInt64-min(l.next, math.MaxInt64) {
			return Event{}, misbehaves("an impossible gap")
		}
		l.next += lost
		return Event{Lost: lost}, nil
	case *pb.ProcessEvent_End:
		return Event{Exit: exitOf(e.End)}, nil
	case *pb.ProcessEvent_Start:
		return Event{}, misbehaves("a second start")
	default:
		return Event{}, nil
	}
}

func (l *ledger) data(d *pb.ProcessEvent_DataEvent) (Event, error) {
	ev := Event{Offset: d.GetOffset()}
	switch o := d.GetOutput().(type) {
	case *pb.ProcessEvent_DataEvent_Stdout:
		ev.From, ev.Data = Stdout, o.Stdout
	case *pb.ProcessEvent_DataEvent_Stderr:
		ev.From, ev.Data = Stderr, o.Stderr
	case *pb.ProcessEvent_DataEvent_Pty:
		ev.From, ev.Data = Terminal, o.Pty
	}
	if len(ev.Data) == 0 {
		return Event{}, nil
	}
	if l.loose {
		l.next, l.loose = ev.Offset, false
	}
	if ev.Offset != l.next || ev.Offset > math.MaxInt64 {
		return Event{}, misbehaves("output out of order")
	}
	l.next += uint64(len(ev.Data))
	return ev, nil
}

// source is one connection's events, whichever call opened it.
type source struct {
	receive func() (*pb.ProcessEvent, bool)
	err     func() error
	close   func() error
}

func sourceOf[R any](s *connect.ServerStreamForClient[R], event func(*R) *pb.ProcessEvent) *source {
	return &source{
		receive: func() (*pb.ProcessEvent, bool) {
			if !s.Receive() {
				return nil, false
			}
			return event(s.Msg()), true
		},
		err:   s.Err,
		close: s.Close,
	}
}
