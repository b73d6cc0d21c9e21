package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
)

// Calls of the sentry's control socket. A runsc client does no more for these
// than to send them, and its start costs more than a small checkpoint's pause.
// The words are those of the runsc this release ships and of those before it,
// whose instances go on; a release whose runsc has others must know both.
const (
	callPause      = "containerManager.Pause"
	callResume     = "containerManager.Resume"
	callCheckpoint = "containerManager.Checkpoint"
	callSaveDisk   = "containerManager.FSSave"
	callStacks     = "debug.Stacks"
)

// saveOptions are the argument of callCheckpoint; the files for state, page
// list and pages travel beside it.
type saveOptions struct {
	Metadata      map[string]string `json:"metadata"`
	HavePagesFile bool              `json:"have_pages_file"`
	Resume        bool              `json:"Resume"`
}

// saveDiskOptions are the argument of callSaveDisk.
type saveDiskOptions struct {
	ExitAfterSaving bool `json:"exit_after_saving"`
}

// call makes one call and waits for its answer: until ctx ends, while the
// sentry goes on with it, or the sentry itself does.
func (e *Engine) call(ctx context.Context, id engine.InstanceID, method string, arg any, files []*os.File, result any) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", filepath.Join(e.runscRoot(), fmt.Sprintf("runsc-%s.sock", id)))
	if err != nil {
		return fmt.Errorf("gvisor: %s: %w", method, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	fail := func(err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("gvisor: %s: %w", method, err)
	}
	request, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return fail(err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd()) //nolint:gosec // a descriptor
		}
		rights = unix.UnixRights(fds...)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return fail(fmt.Errorf("not a unix connection: %T", c))
	}
	// The descriptors go with the first bytes; what did not fit follows.
	n, _, err := u.WriteMsgUnix(request, rights, nil)
	if err == nil && n < len(request) {
		_, err = u.Write(request[n:])
	}
	if err != nil {
		return fail(err)
	}
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return fail(err)
	}
	switch {
	case answer.Success:
		return nil
	case strings.Contains(answer.Err, unix.ENOSPC.Error()):
		return fmt.Errorf("gvisor: %s: %w: %.1000s", method, unix.ENOSPC, answer.Err)
	default:
		return fmt.Errorf("gvisor: %s: %.1000s", method, answer.Err)
	}
}

// Whether the sentry holds all tasks still on our behalf. To resume one that is
// not paused would end it, so that the record is written around each call and a
// crash in between leaves pausing, which settle resolves by looking.
const (
	pauseNone  = ""
	pausing    = "pausing" // or resuming
	pauseDone  = "paused"
	controlFor = 30 * time.Second // bounds a pause, a resume and a look
)

// pause stops the guest's tasks inside the sentry.
func (e *Engine) pause(ctx context.Context, r *record) error {
	return e.setPaused(ctx, r, callPause, pauseNone, pauseDone)
}

// unpause lets them go on, if it was us who stopped them.
func (e *Engine) unpause(ctx context.Context, r *record) error {
	return e.setPaused(ctx, r, callResume, pauseDone, pauseNone)
}

// setPaused makes the call in its way. What was sent takes effect whether its
// caller waits or not, and then against what is decided meanwhile: so its end,
// some milliseconds away, is awaited also when the caller gives up.
func (e *Engine) setPaused(ctx context.Context, r *record, method, from, to string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("gvisor: %s: %w", method, err)
	}
	ctx, cancel := patience(ctx, controlFor)
	defer cancel()
	if err := e.settle(ctx, r); err != nil {
		return err
	}
	if r.Pause != from {
		return nil
	}
	if err := e.note(r, pausing); err != nil {
		return err
	}
	if err := e.call(ctx, r.ID, method, nil, nil, nil); err != nil {
		return err
	}
	return e.note(r, to)
}

func (e *Engine) note(r *record, pause string) error {
	r.Pause = pause
	return e.save(r)
}

// settle finds out what became of a pause or resume nobody saw the end of.
func (e *Engine) settle(ctx context.Context, r *record) error {
	if r.Pause != pausing {
		return nil
	}
	var stopped bool
	err := poll(ctx, controlFor, func() error {
		var dump string
		err := e.call(ctx, r.ID, callStacks, nil, nil, &dump)
		if err == nil && inFlight(dump) {
			err = fmt.Errorf("gvisor: another call at the sentry of %s has not ended", r.ID)
		}
		if err == nil {
			stopped, err = tasksStopped(dump)
		}
		return err
	})
	if err != nil {
		return err
	}
	if stopped {
		return e.note(r, pauseDone)
	}
	return e.note(r, pauseNone)
}

// inFlight tells whether the sentry has another call than the one for this dump.
// One whose caller has gone counts from before it was read: the sentry accepts
// connections in their order and starts a goroutine for each, so that those
// before ours are in the dump until they end. What they do is not asked: one
// that was not read yet looks like any other.
func inFlight(dump string) bool {
	return strings.Count(dump, "\ncreated by gvisor.dev/gvisor/pkg/urpc.(*Server).StartHandling") > 1
}

// tasksStopped reads in the sentry's goroutines whether all tasks of the guest
// are held. A guest cannot look like that by itself: its PID 1 takes no stop
// signal. It is an error to ask while they come to a stop or leave it.
func tasksStopped(dump string) (bool, error) {
	tasks, held, waiting := 0, 0, 0
	for block := range strings.SplitSeq(dump, "\n\n") {
		if !strings.Contains(block, "kernel.(*Task).run(") {
			continue
		}
		tasks++
		if strings.Contains(block, "kernel.(*Task).doStop(") {
			held++
			if head, _, _ := strings.Cut(block, "\n"); strings.Contains(head, "[sync.Cond.Wait") {
				waiting++
			}
		}
	}
	if tasks == 0 {
		return false, errors.New("gvisor: the sentry names no task of its guest")
	}
	if held == tasks && waiting < held {
		return false, errors.New("gvisor: the guest's tasks are coming to a stop or leaving it")
	}
	return held == tasks, nil
}
