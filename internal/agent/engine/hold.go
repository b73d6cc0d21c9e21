package engine

import "context"

// Holder is an Engine that can keep an instance still at almost no cost.
type Holder interface {
	// Hold stops all tasks of the guest until Thaw, and is idempotent. Unlike Freeze
	// it may be used on what matters: the engine itself goes on, is not harmed by
	// it, and uses next to no CPU while nothing runs inside.
	Hold(ctx context.Context, h Handle) error
}

// Hold asks e where it can; ErrUnsupported where not.
func Hold(ctx context.Context, e Engine, h Handle) error {
	held, ok := e.(Holder)
	if !ok {
		return ErrUnsupported
	}
	return held.Hold(ctx, h)
}
