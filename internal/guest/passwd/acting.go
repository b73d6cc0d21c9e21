package passwd

import "context"

type actingKey struct{}

// WithActing notes in ctx which user the caller wants to act as.
func WithActing(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, actingKey{}, name)
}

// Acting returns the user the caller named, or fallback.
func Acting(ctx context.Context, fallback string) string {
	if name, ok := ctx.Value(actingKey{}).(string); ok && name != "" {
		return name
	}
	return fallback
}
