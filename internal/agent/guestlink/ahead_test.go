package guestlink

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// TestS1_AConnectionAheadIsTakenOnceOrClosed: whoever dials next has it, and
// nobody keeps it for longer than a moment.
func TestS1_AConnectionAheadIsTakenOnceOrClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var theirs []net.Conn
		link := New(Options{Dial: func(context.Context, int) (net.Conn, error) {
			ours, other := net.Pipe()
			theirs = append(theirs, other)
			return ours, nil
		}})
		defer link.Close()
		closed := func(c net.Conn) bool {
			_ = c.SetReadDeadline(time.Now())
			_, err := c.Read(make([]byte, 1))
			return errors.Is(err, io.EOF)
		}

		link.Ahead(t.Context())
		if _, err := link.Dial(t.Context(), 8080); err != nil || len(theirs) != 2 {
			t.Fatalf("another port took it: %d opened, %v", len(theirs), err)
		}
		if _, err := link.Dial(t.Context(), guestapi.DefaultPort); err != nil || len(theirs) != 2 {
			t.Fatalf("it was not taken: %d opened, %v", len(theirs), err)
		}
		if _, err := link.Dial(t.Context(), guestapi.DefaultPort); err != nil || len(theirs) != 3 {
			t.Fatalf("it was taken twice: %d opened, %v", len(theirs), err)
		}
		time.Sleep(aheadFor)
		synctest.Wait()
		if closed(theirs[0]) {
			t.Error("it was closed under who took it")
		}

		link.Ahead(t.Context())
		link.Ahead(t.Context())
		if !closed(theirs[4]) {
			t.Error("two are kept")
		}
		time.Sleep(aheadFor)
		synctest.Wait()
		if !closed(theirs[3]) {
			t.Error("it is kept although nobody came")
		}
		link.Ahead(t.Context())
		link.Close()
		if !closed(theirs[5]) {
			t.Error("it outlives the link")
		}
		if _, err := link.Dial(t.Context(), guestapi.DefaultPort); !errors.Is(err, ErrClosed) {
			t.Errorf("a closed link hands it out: %v", err)
		}
	})
}
