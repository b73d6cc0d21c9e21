package testkit

import (
	"testing"
	"time"
)

// recorder is a test that goes on after an error.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Failed() bool          { return r.failed }
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestPromise_OneLullIsForgivenAndAHabitIsNot(t *testing.T) {
	for name, c := range map[string]struct {
		took   []time.Duration
		runs   int
		failed bool
	}{
		"in time":           {[]time.Duration{10}, 1, false},
		"held up once":      {[]time.Duration{11, 1, 1, 1, 1}, 5, false},
		"held up twice":     {[]time.Duration{11, 1, 50, 10, 1}, 5, false},
		"late mostly":       {[]time.Duration{11, 1, 11, 1, 11}, 5, true},
		"late at all times": {[]time.Duration{11, 11, 11, 11, 11}, 5, true},
	} {
		t.Run(name, func(t *testing.T) {
			r, runs := &recorder{TB: t}, 0
			Promise(r, 10, "it", func() time.Duration { runs++; return c.took[runs-1] })
			if r.failed != c.failed || runs != c.runs {
				t.Errorf("failed %v after %d runs, want %v after %d", r.failed, runs, c.failed, c.runs)
			}
		})
	}
}
