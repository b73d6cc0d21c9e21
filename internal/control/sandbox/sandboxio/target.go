// Package sandboxio is what goes in and out of a running sandbox: commands,
// their streams, terminals and files. It speaks to the guest daemon over the
// connection of a Target, and knows nothing of hosts, agents or the database.
package sandboxio

import (
	"context"
	"net/http"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

// Target is one incarnation of a running sandbox, as its guest daemon is
// reached.
type Target struct {
	Sandbox id.Sandbox
	// Incarnation tells one from those before and after it.
	Incarnation int64
	// Transport carries requests to the guest daemon; the host part of their URL
	// is of no account. It must not follow redirects, must bound the headers of
	// an answer (64 KiB), and keeps its connections for the next request. It stays
	// usable for as long as the incarnation runs, or fails and is asked for anew.
	Transport http.RoundTripper
	// AccessToken goes into X-Access-Token.
	AccessToken string
	DefaultUser string
	// Ended is closed when this incarnation has ended, for whatever reason.
	Ended <-chan struct{}
}

// Targets finds running sandboxes for a caller.
type Targets interface {
	// Target returns the sandbox when the caller may use it and it runs. In a
	// transition that leads to running it waits, bounded. Errors:
	// sandbox_not_found (also for another team's), invalid_state naming the
	// actual status, host_unavailable.
	Target(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (Target, error)
}
