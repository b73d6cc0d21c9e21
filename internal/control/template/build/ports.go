package build

import (
	"context"
	"io"
	"time"

	"github.com/google/uuid"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Lease says who drives builds, and for how long without a word.
type Lease struct {
	Owner uuid.UUID // of one run of one server
	For   time.Duration
}

// Held is a build whose lease was renewed.
type Held struct {
	ID       id.Build
	Canceled bool // somebody wants it ended
}

// Layer is what steps left of a disk, by what they were made of.
type Layer struct {
	Key   [32]byte
	State id.Snapshot
}

// Left is a state that nothing names any more.
type Left struct {
	Team  id.Team
	State id.Snapshot
}

// Outcome is how a build ends.
type Outcome struct {
	Status Status
	Reason string
	Error  string
	Audit  audit.Entry
	// Template is what it made, hidden until now; nil unless it is ready. State,
	// Start and Ready are what its sandboxes begin with.
	Template     *id.Template
	State        *id.Snapshot
	Start, Ready string
}

// Store keeps builds. Each verb is one transaction. Those with an owner do
// nothing and return ErrOvertaken when that one does not drive the build any
// more.
type Store interface {
	// Create queues a build, with the caller's idempotency row.
	Create(ctx context.Context, b Build, entry audit.Entry) (Receipt, error)
	Get(ctx context.Context, b id.Build) (Build, error)
	List(ctx context.Context, team id.Team, name string, p page.Request) (page.Page[Build], error)
	// AskCancel notes that somebody wants it ended; one that nobody drives ends at
	// once, one that has ended stays as it is.
	AskCancel(ctx context.Context, team id.Team, b id.Build, entry audit.Entry) (Build, error)

	// TakeDue leases up to limit builds that nobody drives.
	TakeDue(ctx context.Context, lease Lease, limit int) ([]Build, error)
	// Renew prolongs leases and returns those still held.
	Renew(ctx context.Context, lease Lease, held []id.Build) ([]Held, error)
	// Yield gives a lease back; nobody takes the build before the pause. counts
	// says whether the attempt was one that failed.
	Yield(ctx context.Context, lease Lease, b id.Build, pause time.Duration, counts bool) error
	SetStep(ctx context.Context, lease Lease, b id.Build, step, steps int) error
	SetBase(ctx context.Context, lease Lease, b id.Build, base *id.Template) error
	SetSandbox(ctx context.Context, lease Lease, b id.Build, x *id.Sandbox) error
	// BeginImage makes the row of an image that is about to be uploaded, and
	// AddImage the template of one that is there, hidden until it is published.
	BeginImage(ctx context.Context, lease Lease, b id.Build, n artifact.New) error
	AddImage(ctx context.Context, lease Lease, b id.Build, t template.Template) (template.Template, error)
	// Finish ends a build. A ready one makes its template visible, in place of the
	// one of the same name.
	Finish(ctx context.Context, lease Lease, b id.Build, o Outcome) error

	// Running are the sandboxes of a build that have not ended.
	Running(ctx context.Context, b id.Build) ([]id.Sandbox, error)
	// Builders are hosts that the team's builds may run on, some of them.
	Builders(ctx context.Context, team id.Team) ([]host.Ref, error)

	// LastLine is where a log ends, and how many bytes it has.
	LastLine(ctx context.Context, b id.Build) (seq int, bytes int64, err error)
	AddLines(ctx context.Context, lease Lease, b id.Build, lines []Line) error
	Lines(ctx context.Context, b id.Build, after, limit int) ([]Line, error)
	Heads(ctx context.Context, builds []id.Build) (map[id.Build]Head, error)

	// Layers are those of the given keys that can be started from now; with since,
	// those made from then on.
	Layers(ctx context.Context, team id.Team, keys [][32]byte, since *time.Time) ([]Layer, error)
	PutLayer(ctx context.Context, lease Lease, b id.Build, l Layer) error

	BeginContext(ctx context.Context, c Context, n artifact.New, life time.Duration, most int) error
	CompleteContext(ctx context.Context, c Context, life time.Duration) (Context, error)
	DropContext(ctx context.Context, c id.BuildContext) error
	Context(ctx context.Context, c id.BuildContext) (Context, error)

	// What follows is of the sweep: each does a bounded part and says how much, or
	// names what is to be done.
	LeftSandboxes(ctx context.Context, limit int) ([]id.Sandbox, error)
	LeftStates(ctx context.Context, age time.Duration, limit int) ([]Left, error)
	ForgetLayers(ctx context.Context, share int, age time.Duration) (int, error)
	Prune(ctx context.Context, age time.Duration, limit int) (int, error)
}

// Import is an image that is to be brought in.
type Import struct {
	// One of them.
	Reference string
	Tarball   content.Source

	Login *Login
	To    content.Source
}

// Agents are the hosts' agents, as far as they build. log is called for each
// line, in order; an error from it ends the call.
type Agents interface {
	ImportImage(ctx context.Context, h host.Ref, i Import, log func(line string) error) (Image, error)
	ExportImage(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64, to content.Source, log func(line string) error) (Image, error)
}

// Sandboxes is what the sandbox room does for builds.
type Sandboxes interface {
	StartForBuild(ctx context.Context, s sandbox.BuildStart) (sandbox.Sandbox, error)
	SaveForBuild(ctx context.Context, x id.Sandbox, kind sandbox.StateKind, memory bool) (sandbox.Snapshot, error)
	EndForBuild(ctx context.Context, x id.Sandbox) error
	DropForBuild(ctx context.Context, team id.Team, state id.Snapshot) error
	// StateForBuild reads a state.
	StateForBuild(ctx context.Context, state id.Snapshot) (sandbox.Snapshot, error)
}

// Command is what runs in a build's sandbox.
type Command struct {
	Cmd  string
	Args []string
	Env  map[string]string
	Cwd  string
	User string
}

// Guests is the way into a build's sandbox.
type Guests interface {
	// Run runs a command to its end and returns its exit code. input, when it is not
	// nil, writes what the command reads. When ctx ends the command is left alone.
	Run(ctx context.Context, team id.Team, x id.Sandbox, c Command, input func(ctx context.Context, w io.Writer) error, out func(stream string, data []byte)) (int, error)
	// Read returns a file's content, at most limit bytes of it.
	Read(ctx context.Context, team id.Team, x id.Sandbox, path string, limit int64) ([]byte, error)
}

// Templates is what the template room does for builds.
type Templates interface {
	Resolve(ctx context.Context, team id.Team, nameOrID string) (template.Template, error)
	ByID(ctx context.Context, tpl id.Template) (template.Template, error)
}

// Artifacts is the store.
type Artifacts interface {
	Source(ctx context.Context, a id.Artifact, h id.Host, op artifact.Op) (content.Source, error)
	// PutContext brings an archive to the store, and FetchContext one from there to
	// a new file, checked against its SHA-256.
	PutContext(ctx context.Context, to content.Source, file string) error
	FetchContext(ctx context.Context, from content.Source, digest content.Digest, file string, maxBytes int64) error
}
