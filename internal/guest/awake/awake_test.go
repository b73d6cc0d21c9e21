package awake

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// jumping is a clock that can be moved on, as when the sandbox stood still.
type jumping struct{ by atomic.Int64 }

func (j *jumping) now() time.Time { return time.Now().Add(time.Duration(j.by.Load())) }

func (j *jumping) jump(d time.Duration) { j.by.Add(int64(d)) }

func TestATimerGetsItsTimeAfterDaysOfStandingStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j jumping
		c := New(j.now)
		var fired atomic.Int64
		began := time.Now()
		c.AfterFunc(30*time.Second, time.Second, func() { fired.Store(int64(time.Since(began))) })
		<-time.After(10*time.Second + 300*time.Millisecond)
		j.jump(75 * time.Hour)
		<-time.After(18 * time.Second)
		if fired.Load() != 0 {
			t.Fatalf("fired after %s of 30 s", time.Duration(fired.Load()))
		}
		<-time.After(2 * time.Second)
		if at := time.Duration(fired.Load()); at < 29*time.Second || at > 31*time.Second {
			t.Errorf("fired after %s awake", at)
		}
	})
}

func TestTimersFireInTimeAndOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(time.Now)
		began := time.Now()
		var calls atomic.Int64
		for _, d := range []time.Duration{0, time.Millisecond, 700 * time.Millisecond, 90 * time.Second, 24 * time.Hour} {
			c.AfterFunc(d, 5*time.Minute, func() {
				calls.Add(1)
				if at := time.Since(began); at < d || at > d+time.Millisecond {
					t.Errorf("%s: fired after %s", d, at)
				}
			})
		}
		stopped := c.AfterFunc(time.Second, time.Second, func() { t.Error("a stopped timer fired") })
		if !stopped.Stop() || stopped.Stop() {
			t.Error("Stop said the wrong thing")
		}
		<-time.After(25 * time.Hour)
		if calls.Load() != 5 {
			t.Errorf("%d calls", calls.Load())
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.tick != nil {
			t.Error("the clock ticks for nobody")
		}
	})
}

// A machine that is always late still comes to the end.
func TestALateMachineDoesNotStopTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j jumping
		c := New(j.now)
		var fired atomic.Bool
		c.AfterFunc(10*time.Second, time.Second, func() { fired.Store(true) })
		for range 12 {
			<-time.After(time.Second)
			j.jump(3 * time.Second)
		}
		if !fired.Load() {
			t.Error("never fired")
		}
	})
}

// What begins while the clock rests does not pay for the rest.
func TestTheFirstTimerStartsFromNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(time.Now)
		c.AfterFunc(time.Second, time.Second, func() {}).Stop()
		<-time.After(time.Hour)
		began := time.Now()
		done := make(chan struct{})
		c.AfterFunc(time.Minute, time.Second, func() { close(done) })
		<-done
		if took := time.Since(began); took != time.Minute {
			t.Errorf("took %s", took)
		}
	})
}
