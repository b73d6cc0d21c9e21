package e2b

import (
	"fmt"
	"net/http"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
)

// pause saves a sandbox, with its memory unless that is not wanted. One that is
// paused already is a conflict.
func (f *Facade) pause(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Memory *bool `json:"memory"`
	}
	if err := read(r, &body); err != nil {
		return err
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	memory := body.Memory == nil || *body.Memory
	if _, err := f.Sandboxes.Pause(r.Context(), principal.From(r.Context()), x.ID, memory, true); err != nil {
		return gone(r, err)
	}
	return done(w)
}

// resume lets a paused sandbox go on. One that runs is a conflict.
func (f *Facade) resume(w http.ResponseWriter, r *http.Request) error {
	var body waking
	if err := read(r, &body); err != nil {
		return err
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	timeout, err := body.timeout(timeoutResume)
	if err != nil {
		return err
	}
	x, err = f.Sandboxes.Resume(r.Context(), principal.From(r.Context()), x.ID, &timeout, body.disk(), true)
	if err != nil {
		return gone(r, err)
	}
	return answered(w, http.StatusCreated, f.connectionTo(x))
}

// waking is the body of what makes a sandbox run.
type waking struct {
	Timeout *int64 `json:"timeout"`
	Memory  *bool  `json:"memory"`
}

// timeout is what the body says, or otherwise, where that is not zero.
func (b waking) timeout(otherwise int64) (int64, error) {
	n := otherwise
	if b.Timeout != nil {
		n = *b.Timeout
	}
	if n < 1 {
		return n, errs.Field("timeout", "timeout must be given, and at least 1 second.")
	}
	return n, nil
}

// disk: it is to boot from its disk.
func (b waking) disk() bool { return b.Memory != nil && !*b.Memory }

// mostTurns bounds how often a sandbox may be paused and resumed by others while
// somebody connects.
const mostTurns = 5

// connect makes a sandbox run and its deadline be no nearer than was asked for:
// 200 when it ran, 201 when it had to be resumed. Without a timeout in the body
// it is the given one; zero demands it.
func (f *Facade) connect(otherwise int64) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		var body waking
		if err := read(r, &body); err != nil {
			return err
		}
		timeout, err := body.timeout(otherwise)
		if err != nil {
			return err
		}
		ctx, by := r.Context(), principal.From(r.Context())
		status := http.StatusOK
		for range mostTurns {
			var x sandbox.Sandbox
			if x, err = f.living(r); err != nil {
				return err
			}
			if x.Status == sandbox.StatusPaused || x.Status == sandbox.StatusResuming {
				if _, err = f.Sandboxes.Resume(ctx, by, x.ID, &timeout, body.disk(), true); err == nil {
					status = http.StatusCreated
				}
			}
			if err == nil { // of a resume that was joined the deadline is another's
				if x, err = f.Sandboxes.ExtendTimeout(ctx, by, x.ID, timeout); err == nil {
					return answered(w, status, f.connectionTo(x))
				}
			}
			if !errs.Is(err, "invalid_state") || !present(statusIn(err)) {
				return gone(r, err)
			}
		}
		return err
	}
}

// forked is one copy, as its place in the list says.
type forked struct {
	Sandbox connection `json:"sandbox"`
}

// fork makes copies of a sandbox. All of them are there, or none.
func (f *Facade) fork(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Timeout *int64 `json:"timeout"`
		Count   *int64 `json:"count"`
	}
	if err := read(r, &body); err != nil {
		return err
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	if x.Status == sandbox.StatusPaused {
		return errs.Conflict("invalid_state", fmt.Sprintf("sandbox %q is paused; resume it first", r.PathValue("id")))
	}
	timeout, count := int64(timeoutV1), int64(1)
	if body.Timeout != nil {
		timeout = *body.Timeout
	}
	if body.Count != nil {
		count = *body.Count
	}
	receipt, err := f.Sandboxes.Fork(r.Context(), principal.From(r.Context()), x.ID, sandbox.ForkRequest{Count: count, TimeoutSec: &timeout})
	if err != nil {
		return gone(r, err)
	}
	made, err := f.Sandboxes.AwaitFork(r.Context(), receipt)
	if err != nil {
		return err
	}
	out := make([]forked, len(made))
	for i, x := range made {
		out[i].Sandbox = f.connectionTo(x)
	}
	return answered(w, http.StatusCreated, out)
}
