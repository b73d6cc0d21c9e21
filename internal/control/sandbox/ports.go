package sandbox

import (
	"context"
	"time"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Transition is one conditional change: it happens only while the sandbox is in
// From with Incarnation, and does everything it names in one transaction.
type Transition struct {
	ID          id.Sandbox
	From        Status
	To          Status
	Incarnation int64

	EngineVersion string // set when not empty
	EndReason     string
	Error         string

	// Outcome closes the open operation; empty leaves it.
	Outcome Outcome
	Reason  string
	Message string

	Event     string
	EventData map[string]any
	Audit     *audit.Entry
}

// Outcome is how an operation ended.
type Outcome string

// The outcomes.
const (
	OutcomeSucceeded  Outcome = "succeeded"
	OutcomeFailed     Outcome = "failed"
	OutcomeSuperseded Outcome = "superseded"
)

// Delete is the request to end a sandbox.
type Delete struct {
	ID id.Sandbox
	// Team is whose sandbox it must be; nil is anyone's.
	Team      *id.Team
	Operation id.Operation
	Deadline  time.Duration
	EndReason string
	// Expired: only while its deadline has passed and on_timeout is kill.
	Expired bool
	Lease   Lease
	Audit   audit.Entry
}

// Lease says who drives an operation and for how long. The zero Lease leaves
// the operation to whoever looks first.
type Lease struct {
	Owner uuid.UUID // of one run of one server
	For   time.Duration
}

// Placer decides on a host while the candidates' rows are locked.
type Placer func(hosts []scheduler.HostView) (scheduler.Decision, error)

// Store keeps sandboxes, operations and events. Each verb is one transaction.
type Store interface {
	// CreatePending locks the candidate hosts of the team in the order of their
	// ids, asks place, and writes sandbox, operation, audit entry, event and the
	// caller's idempotency row, or nothing.
	CreatePending(ctx context.Context, n NewSandbox, lease Lease, place Placer, entry func(id.Host) audit.Entry) (Sandbox, error)
	// Apply makes one transition. A sandbox that is elsewhere by now is
	// invalid_state with the actual status; one that is gone is ErrNotFound.
	Apply(ctx context.Context, t Transition) (Sandbox, error)
	// BeginDelete closes the open operation as superseded, takes a new
	// incarnation, goes to stopping and opens a delete operation. An ended
	// sandbox is returned as it is (error becomes stopped), one that is stopping
	// too; the operation is then the zero one.
	BeginDelete(ctx context.Context, d Delete) (Sandbox, Operation, error)

	// Get reads a sandbox of any team.
	Get(ctx context.Context, sandbox id.Sandbox) (Sandbox, error)
	// WithUser is Get with the user of the template.
	WithUser(ctx context.Context, sandbox id.Sandbox) (Sandbox, string, error)
	// Seen reads many at once, for those who wait: of the given ones those whose
	// UpdatedAt is not the given one.
	Seen(ctx context.Context, seen map[id.Sandbox]time.Time) ([]Sandbox, error)
	List(ctx context.Context, f Filter, p page.Request) (page.Page[Sandbox], error)
	Events(ctx context.Context, sandbox id.Sandbox, p page.Request) (page.Page[Event], error)

	// TakeDue leases up to limit open operations that nobody drives.
	TakeDue(ctx context.Context, lease Lease, limit int) ([]Operation, error)
	// Renew prolongs leases and returns those still held by the owner.
	Renew(ctx context.Context, lease Lease, held []id.Operation) ([]id.Operation, error)
	// Yield gives a lease back; nobody takes the operation before the pause.
	Yield(ctx context.Context, lease Lease, op id.Operation, pause time.Duration) error
	// Expired are running sandboxes past their deadline that are to be killed.
	Expired(ctx context.Context, limit int) ([]id.Sandbox, error)
	// Prune removes up to limit rows that ended before the retention.
	Prune(ctx context.Context, retention time.Duration, limit int) (int, error)

	// Report stores what an agent tells, each (host, generation, seq) once, and
	// ends the sandboxes it says have exited. It returns those that ended.
	Report(ctx context.Context, from id.Host, generation int64, reports []Report) ([]Sandbox, error)
	// OnHost reads all rows that an inventory of the host is compared with: the
	// live ones of the host, and those of any host among the named ids.
	OnHost(ctx context.Context, h id.Host, named []id.Sandbox) ([]Sandbox, error)
	// Note adds an event by itself.
	Note(ctx context.Context, sandbox id.Sandbox, kind string, data map[string]any) error
}

// Launch is everything an agent needs to start a sandbox.
type Launch struct {
	Sandbox     Sandbox
	Template    template.Template
	Env         map[string]string
	AccessToken string
	ManifestURL string
	// MaxProcesses is what the guest may have.
	MaxProcesses int
}

// Launched is what an agent says of a sandbox it started.
type Launched struct{ EngineVersion string }

// Agents are the hosts' agents. Each call may be repeated with the same
// arguments. A host out of reach is unavailable host_unavailable.
type Agents interface {
	CreateSandbox(ctx context.Context, h host.Ref, l Launch) (Launched, error)
	DestroySandbox(ctx context.Context, h host.Ref, sandbox id.Sandbox, incarnation int64, reason string) error
	Inventory(ctx context.Context, h host.Ref) (Inventory, error)
	// Forget closes idle connections to a sandbox that has ended.
	Forget(h host.Ref, sandbox id.Sandbox, incarnation int64)
}

// Templates finds what a sandbox is made from.
type Templates interface {
	// Resolve finds a ready template by name or id; the team's own shadows the
	// platform's.
	Resolve(ctx context.Context, team id.Team, nameOrID string) (template.Template, error)
	// ByID reads one that a sandbox refers to, also after it was replaced.
	ByID(ctx context.Context, tpl id.Template) (template.Template, error)
	// ManifestURL lets a host fetch its bytes for a limited time.
	ManifestURL(t template.Template) string
}
