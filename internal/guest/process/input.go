package process

import (
	"context"
	"errors"
	"os"
	"time"
)

// errNoInput says that a process takes no input, or none any more.
var errNoInput = errors.New("the process takes no input: its standard input is closed")

// input is the writing side of a process. Writes are whole and in order: each
// waits for the one before and for the process to take it, so nothing is ever
// dropped and nothing is queued here.
type input struct {
	turn chan struct{}
	raw  *os.File // for deadlines, which need no turn
	file *os.File // nil once closed; touched only by who holds the turn
}

func newInput(f *os.File) *input { return &input{turn: make(chan struct{}, 1), raw: f, file: f} }

// write returns when the process's pipe or terminal took all of data, or ctx
// ended; then a part may have been written.
func (in *input) write(ctx context.Context, data []byte) error {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if in.file == nil {
		return errNoInput
	}
	f, fired := in.file, make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = f.SetWriteDeadline(time.Unix(1, 0))
	})
	_, err := f.Write(data)
	if !stop() {
		<-fired
		_ = f.SetWriteDeadline(time.Time{})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if ctx.Err() == nil {
			return errNoInput // cut short by abandon
		}
		return ctx.Err()
	}
	return err
}

// close ends the input after the writes before it; safe to repeat.
func (in *input) close(ctx context.Context) error {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if in.file == nil {
		return nil
	}
	err := in.file.Close()
	in.file = nil
	return err
}

// abandon closes the input of a process that is gone, cutting short a write
// that nobody will ever take.
func (in *input) abandon() {
	if in.raw == nil {
		return
	}
	for {
		_ = in.raw.SetWriteDeadline(time.Unix(1, 0))
		select {
		case in.turn <- struct{}{}:
			if in.file != nil {
				in.file.Close()
				in.file = nil
			}
			<-in.turn
			return
		case <-time.After(10 * time.Millisecond): // its own deadline was taken back meanwhile
		}
	}
}
