package together_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/id"
)

// wire is the way to the agent, which loses answers when it is told to.
type wire struct {
	*hostlink.Agents
	pool *hostlink.HostClientPool

	mu    sync.Mutex
	lose  map[string]int // answers still to be lost, by call
	calls map[string]int
	end   context.CancelFunc // of the calls in flight
	alive context.Context
}

func newWire(t *testing.T, ca *identitytest.CA) *wire {
	w := &wire{pool: hostlink.NewHostClientPool(controlIdentity(ca)), lose: map[string]int{}, calls: map[string]int{}}
	w.Agents = hostlink.NewAgents(w.pool)
	w.alive, w.end = context.WithCancel(context.Background())
	t.Cleanup(func() { w.end(); w.pool.Close() })
	return w
}

// losing has the next n answers to a call lost.
func (w *wire) losing(call string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose[call] = n
}

func (w *wire) count(call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[call]
}

// cut ends the calls in flight, as the death of the host does.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end()
	w.alive, w.end = context.WithCancel(context.Background())
}

var errCut = errors.New("the wire is cut")

func send[T any](ctx context.Context, w *wire, call string, do func(context.Context) (T, error)) (T, error) {
	w.mu.Lock()
	alive := w.alive
	w.calls[call]++
	w.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(alive, func() { cancel(errCut) })
	defer stop()
	out, err := do(ctx)
	var none T
	if context.Cause(ctx) == errCut {
		return none, hostlink.Unavailable(errCut)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.lose[call] > 0 {
		w.lose[call]--
		return none, hostlink.Unavailable(errors.New("the answer is lost"))
	}
	return out, err
}

func (w *wire) CreateSandbox(ctx context.Context, h host.Ref, l sandbox.Launch) (sandbox.Launched, error) {
	return send(ctx, w, "create", func(ctx context.Context) (sandbox.Launched, error) { return w.Agents.CreateSandbox(ctx, h, l) })
}

func (w *wire) PauseSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	return send(ctx, w, "pause", func(ctx context.Context) (sandbox.Saved, error) { return w.Agents.PauseSandbox(ctx, h, p) })
}

func (w *wire) CheckpointSandbox(ctx context.Context, h host.Ref, p sandbox.Pause) (sandbox.Saved, error) {
	return send(ctx, w, "checkpoint", func(ctx context.Context) (sandbox.Saved, error) { return w.Agents.CheckpointSandbox(ctx, h, p) })
}

func (w *wire) DestroySandbox(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64, reason string) error {
	_, err := send(ctx, w, "destroy", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, w.Agents.DestroySandbox(ctx, h, x, incarnation, reason)
	})
	return err
}

func (w *wire) DeleteState(ctx context.Context, h host.Ref, state id.Snapshot) error {
	_, err := send(ctx, w, "delete_state", func(ctx context.Context) (struct{}, error) {
		return struct{}{}, w.Agents.DeleteState(ctx, h, state)
	})
	return err
}
