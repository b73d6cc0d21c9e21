package process

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// drain reads until the end and returns all bytes of one stream, and what was
// lost before them.
func drain(t *testing.T, s *subscriber, from stream) (data []byte, lost uint64, err error) {
	t.Helper()
	for {
		w, err := s.read(t.Context(), time.Hour)
		switch {
		case err != nil:
			return data, lost, err
		case w.end != nil:
			return data, lost, nil
		case w.piece != nil && w.piece.from == from:
			data = append(data, w.piece.data...)
		}
		lost += w.gap
	}
}

func TestSX03_ReadersGetEveryByteThroughASmallWindow(t *testing.T) {
	h := newHub(false, 64<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 4<<20)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	var wg sync.WaitGroup
	for range 5 {
		s := h.subscribe(nil)
		wg.Go(func() {
			defer s.close()
			got, lost, err := drain(t, s, stdout)
			if err != nil || lost != 0 || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, lost %d, %v", len(got), lost, err)
			}
		})
	}
	for rest := want; len(rest) > 0; {
		n := min(len(rest), 1+rng.IntN(100_000))
		h.publish(stdout, rest[:n])
		rest = rest[n:]
	}
	h.finish(&exit{})
	wg.Wait()
	if h.held != 0 || len(h.pieces) != 0 {
		t.Errorf("%d bytes are held for nobody", h.held)
	}
}

func TestSX03_SingleBytesDoNotGrowMemory(t *testing.T) {
	h := newHub(true, window)
	for i := range 400_000 {
		h.publish(stream(i%2), []byte{'x'})
	}
	if h.held > window || len(h.pieces) > window/overhead {
		t.Errorf("%d bytes in %d pieces", h.held, len(h.pieces))
	}
	after := uint64(0)
	h.finish(&exit{})
	s := h.subscribe(&after)
	a, lost, err := drain(t, s, stdout)
	if err != nil || lost == 0 || lost+2*uint64(len(a)) != 400_000 {
		t.Errorf("lost %d, got %d of one stream, %v", lost, len(a), err)
	}
}

func TestSX03_StalledReadersEndAndTheOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(false, 64<<10)
		stalled, alive := h.subscribe(nil), h.subscribe(nil)
		done := make(chan int, 1)
		go func() {
			got, _, err := drain(t, alive, stdout)
			if err != nil {
				t.Error(err)
			}
			done <- len(got)
		}()
		began := time.Now()
		h.publish(stdout, make([]byte, 1<<20))
		if took := time.Since(began); took != h.stall {
			t.Errorf("the others waited %s", took)
		}
		h.finish(&exit{})
		if n := <-done; n != 1<<20 {
			t.Errorf("the living reader got %d bytes", n)
		}
		if _, _, err := drain(t, stalled, stdout); !errors.Is(err, errLagging) {
			t.Errorf("the stalled reader got %v", err)
		}

		// Alone it holds up the process longer, but not for ever.
		h = newHub(false, 64<<10)
		alone := h.subscribe(nil)
		began = time.Now()
		h.publish(stdout, make([]byte, 1<<20))
		if took := time.Since(began); took != h.stallAlone {
			t.Errorf("the process waited %s", took)
		}
		if _, err := alone.read(context.Background(), time.Hour); !errors.Is(err, errLagging) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSX04_WithoutReplayNothingIsKeptForNobody(t *testing.T) {
	h := newHub(false, window)
	h.publish(stdout, []byte("nobody hears this"))
	s := h.subscribe(nil)
	h.publish(stderr, []byte("heard"))
	h.finish(&exit{code: 3})
	got, lost, err := drain(t, s, stderr)
	if err != nil || lost != 0 || string(got) != "heard" {
		t.Errorf("%q, lost %d, %v", got, lost, err)
	}
}

func TestExitTexts(t *testing.T) {
	for status, want := range map[uint32]exit{
		0:      {exited: true, status: "exit status 0"},
		7 << 8: {code: 7, exited: true, status: "exit status 7", err: "exit status 7"},
		9:      {code: -1, status: "signal: killed", err: "signal: killed"},
	} {
		if got := exitOf(waitStatus(status)); *got != want {
			t.Errorf("%#x: %+v", status, *got)
		}
	}
}

func waitStatus(s uint32) unix.WaitStatus { return unix.WaitStatus(s) }
