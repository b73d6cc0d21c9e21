package guestlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

const (
	followPauseMin = 100 * time.Millisecond
	followPauseMax = 30 * time.Second
	// steady is how long a stream lasts before the next break counts as the first.
	steady = time.Minute
	maxCmd = 256 // bytes of a command line that are passed on
)

// Follow begins to forward the daemon's events, from after the last one taken,
// over every break of the stream, until Close.
func (l *Link) Follow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.wg.Go(func() { l.follow(l.ctx) })
}

func (l *Link) follow(ctx context.Context) {
	f := &follower{link: l, after: l.opts.After}
	pause := followPauseMin
	for ctx.Err() == nil {
		began := time.Now()
		err := f.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			pause = followPauseMin
		}
		l.opts.Logger.Debug("the sandbox's event stream broke", "err", err)
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, followPauseMax)
	}
}

// follower is one guest's stream over all its breaks.
type follower struct {
	link   *Link
	after  int64
	window time.Time // start of the minute counted
	taken  int
}

var errLongLine = errors.New("guestlink: an event is longer than allowed")

func (f *follower) stream(ctx context.Context) error {
	resp, err := f.link.do(ctx, http.MethodGet, guestapi.PathEvents+"?after="+strconv.FormatInt(f.after, 10), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("guestlink: %s answered %d", guestapi.PathEvents, resp.StatusCode)
	}
	lines := bufio.NewReaderSize(resp.Body, maxEventLine)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errLongLine
		}
		if err != nil {
			return err
		}
		if len(line) == 1 {
			continue // keepalive
		}
		var e guestapi.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("guestlink: event: %w", err)
		}
		if err := f.take(e); err != nil {
			return err
		}
	}
}

// take forwards one event. Those seen before, of unknown kinds, or beyond the
// rate are dropped; an error leaves it to be offered again.
func (f *follower) take(e guestapi.Event) error {
	if e.Seq <= f.after {
		return nil
	}
	switch e.Kind {
	case guestapi.EventOOMKill, guestapi.EventDiskFull, guestapi.EventProcessLimit, guestapi.EventRestart:
	default:
		f.after = e.Seq
		return nil
	}
	if now := time.Now(); now.Sub(f.window) >= time.Minute {
		f.window, f.taken = now, 0
	}
	if f.taken >= f.link.opts.EventsPerMinute {
		f.after = e.Seq
		if f.taken == f.link.opts.EventsPerMinute {
			f.taken++
			f.link.opts.Logger.Warn("the sandbox reports more events than allowed; dropping")
		}
		return nil
	}
	if len(e.Cmd) > maxCmd {
		e.Cmd = e.Cmd[:maxCmd]
	}
	e.Cmd = strings.ToValidUTF8(e.Cmd, "\uFFFD")
	if err := f.link.opts.OnEvent(e); err != nil {
		return err
	}
	f.after = e.Seq
	f.taken++
	return nil
}
