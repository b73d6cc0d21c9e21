// Package clock is the time, as a value that tests can replace.
package clock

import "time"

// Clock tells the time. The database's clock decides between hosts; this one
// is for waits and timestamps inside one process.
type Clock interface {
	Now() time.Time
}

// System is the machine's clock, in UTC with the microseconds that the
// database keeps.
type System struct{}

// Now implements Clock.
func (System) Now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
