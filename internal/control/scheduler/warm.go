package scheduler

import "skerry.dev/skerry/internal/kernel/id"

// Warm is what a host keeps ready for sandboxes of just this kind.
type Warm struct {
	Template  id.Template
	Engine    string
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	Internet  bool
	State     id.Snapshot // what they start from; zero boots the image
	// Ready is how many there are, as far as is known.
	Ready int64
}

// Fits tells whether the sandbox would be just that, on a host that isolates it
// by this engine.
func (w Warm) Fits(req Request, engine string) bool {
	return w.Ready > 0 && w.Template == req.Template && w.Engine == engine && w.CPUMillis == req.CPUMillis && w.MemoryMB == req.MemoryMB &&
		w.DiskMB == req.DiskMB && w.Internet == req.Internet && w.State == req.State
}

// Offered is the engine that would isolate what wants one, or any; false when
// none does that is healthy.
func Offered(want string, engines []Engine) (Engine, bool) {
	e, why := choose(want, engines)
	return e, why == ""
}

// warmFirst orders hosts that have the sandbox ready before others.
func warmFirst(a, b candidate) int {
	switch {
	case a.warm == b.warm:
		return 0
	case a.warm:
		return -1
	}
	return 1
}
