package sandbox

import (
	"context"
	"time"

	"github.com/google/uuid"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
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
	PausedReason  string
	// Timeout is how far away the deadline is from now on; zero leaves it, but a
	// sandbox that runs and has none gets its own.
	Timeout time.Duration
	// Retry is how long the sweep leaves it alone after a pause that failed.
	Retry time.Duration
	// DropStates: with its end its own saved states go.
	DropStates bool

	// Making is the state that the operation was saving. Saved completes it;
	// without, it has failed for the reason in Message. Newest makes it what the
	// sandbox lives from, in place of the one before.
	Making id.Snapshot
	Saved  *Saved
	Newest bool

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
	// Detail is for people, in the event.
	Detail string
	// Expired: only while its deadline has passed and on_timeout is kill.
	Expired bool
	// Paused: only while it is paused.
	Paused bool
	// Living: one that has ended already is left as it is.
	Living bool
	Lease  Lease
	Audit  audit.Entry
}

// Begin is the request to open an operation on a sandbox that is in a certain
// status.
type Begin struct {
	ID id.Sandbox
	// Team is whose sandbox it must be; nil is anyone's.
	Team *id.Team
	From Status
	To   Status
	// NewIncarnation: it starts on a host anew.
	NewIncarnation bool
	Operation      id.Operation
	Kind           OperationKind
	Params         Params
	// Due is what must still hold under the row's lock; else nothing is begun.
	Due     Due
	IdleRef time.Time // of DueIdle: the check that was leased
	Making  *NewSnapshot
	// Place decides which host takes it back, of those in Want; nil when it holds
	// its place already. Row is the sandbox that this was planned for.
	Place     Placer
	Want      scheduler.Request
	Row       Sandbox
	Lease     Lease
	Event     string
	EventData map[string]any
	Audit     *audit.Entry
}

// Departure is what a sandbox left on a host when it went on elsewhere: paused
// with that state in that incarnation, it is nothing any more. Whatever else the
// host has of it up to that incarnation is kept aside.
type Departure struct {
	Key
	State id.Snapshot
}

// Reach is what decides where a state can be started, beside the hosts.
type Reach struct {
	// EngineArches are the machines for which its engine's build can be fetched.
	EngineArches []string
	// Avoid are hosts that may hold another life of the sandbox.
	Avoid []id.Host
	// Later are hosts that have a later life of the sandbox than is known of it.
	Later []id.Host
	// Awaited: there are hosts that were not yet looked at since a backup was restored,
	// and may have one.
	Awaited bool
}

// Due is why the sweep begins something.
type Due int

// The reasons.
const (
	DueAlways Due = iota
	DueDeadline
	DueIdle
	DueCheckpoint
	DueDrain
)

// Fork is the request for copies of a sandbox.
type Fork struct {
	// Begin saves the parent's state; of a paused parent, whose state is there
	// already, only ID, Team, From, Row, Event and EventData count.
	Begin Begin
	// Children lack only their host, which is the same for all.
	Children []NewSandbox
	Place    Placer
	Audit    func(h id.Host) []audit.Entry
}

// Adopt is a pause that a host made, or finished, without being heard.
type Adopt struct {
	Row       Sandbox
	Held      Held
	Reason    string
	EnvSealed []byte
	// KeepDeadline: the database's deadline decides what comes next.
	KeepDeadline bool
	// Outcome closes the open operation; empty leaves it.
	Outcome Outcome
	Audit   *audit.Entry // absent when the host was told to
}

// Expired is a sandbox whose deadline has passed.
type Expired struct {
	ID        id.Sandbox
	OnTimeout OnTimeout
}

// Dropping is a copy of a state to be removed from its host.
type Dropping struct {
	ID   id.Snapshot
	Host host.Ref
}

// Finished is how an operation ended; Status is empty while it is open.
type Finished struct {
	ID      id.Operation
	Kind    OperationKind
	Outcome Outcome
	Reason  string
	Message string
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
	// Begin opens an operation. begun is false when it is no longer due. A sandbox
	// elsewhere is invalid_state. One that goes on on another host has left the one
	// before: what that holds of it is written down as departed.
	Begin(ctx context.Context, b Begin) (x Sandbox, op Operation, begun bool, err error)
	// BeginSnapshot is Begin for a named one, with the caller's idempotency row.
	BeginSnapshot(ctx context.Context, b Begin) (SnapshotReceipt, Sandbox, Operation, error)
	// Fork writes all children pending or none, and opens the parent's operation
	// when it has to be saved first.
	Fork(ctx context.Context, f Fork) (ForkReceipt, Sandbox, error)
	// Adopt makes a sandbox paused that its host holds paused.
	Adopt(ctx context.Context, a Adopt) (Sandbox, error)
	// Died ends a sandbox whose instance is gone, in whatever status it had one.
	Died(ctx context.Context, sandbox id.Sandbox, incarnation int64, reason string, data map[string]any) (Sandbox, error)
	// SetDeadline moves the deadline of a running sandbox; false when it is not
	// running. With laterOnly it leaves one that is further away.
	SetDeadline(ctx context.Context, team id.Team, sandbox id.Sandbox, in time.Duration, laterOnly bool) (bool, error)
	// Ping counts as activity of a running sandbox; false when it is not running.
	Ping(ctx context.Context, team id.Team, sandbox id.Sandbox) (bool, error)
	// Finished tells how an operation stands; OpenOperation which one is open, the
	// zero id for none.
	Finished(ctx context.Context, op id.Operation) (Finished, error)
	OpenOperation(ctx context.Context, sandbox id.Sandbox) (id.Operation, error)
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
	// Expired are sandboxes past their deadline, the longest first.
	Expired(ctx context.Context, limit int) ([]Expired, error)
	// TakeIdle leases sandboxes that may have been idle for long enough; nobody
	// else gets them before the lease ends. PostponeIdle sets the next check,
	// unless it was set meanwhile.
	TakeIdle(ctx context.Context, lease time.Duration, limit int) ([]Sandbox, error)
	PostponeIdle(ctx context.Context, sandbox id.Sandbox, leased time.Time, in time.Duration) error
	// TakeDraining leases sandboxes that run on hosts to be emptied, of each host
	// so many that no more than atOnce are being paused there.
	TakeDraining(ctx context.Context, lease time.Duration, atOnce, limit int) ([]Draining, error)
	// CheckpointsDue, PausedTooLong and MissingTooLong are what the sweep acts on.
	CheckpointsDue(ctx context.Context, limit int) ([]id.Sandbox, error)
	PausedTooLong(ctx context.Context, limit int) ([]id.Sandbox, error)
	MissingTooLong(ctx context.Context, limit int) ([]Key, error)
	// Prune removes up to limit rows that ended before the retention.
	Prune(ctx context.Context, retention time.Duration, limit int) (int, error)

	// Report stores what an agent tells, each (host, generation, seq) once, and
	// ends the sandboxes it says have exited. It returns those that ended.
	Report(ctx context.Context, from id.Host, generation int64, reports []Report) ([]Sandbox, error)
	// OnHost reads all rows that an inventory of the host is compared with: the
	// live ones of the host, and those of any host among the named ids.
	OnHost(ctx context.Context, h id.Host, named []id.Sandbox) ([]Sandbox, error)
	// MarksOnHost are the live rows of a host, as far as to tell whether they
	// changed since.
	MarksOnHost(ctx context.Context, h id.Host) ([]Mark, error)
	// Reconciled ends a look at a host: of its strays those are forgotten that it
	// holds no more. settled says that all it holds and should not is written down;
	// since a restore nobody waits for the host from then on.
	Reconciled(ctx context.Context, h id.Host, held []id.Sandbox, settled bool) error
	// MarkMissing makes missing, up to limit, what runs on hosts out of service
	// that have been silent for so long.
	MarkMissing(ctx context.Context, silence time.Duration, limit int) ([]Sandbox, error)
	// BringForward gives a living row the later incarnation that its host knows,
	// closes its operation and makes it missing, to be judged by that. It is no
	// transition of a life: the row was older than the truth. One that changed
	// meanwhile is invalid_state.
	BringForward(ctx context.Context, row Sandbox, incarnation int64) (Sandbox, error)
	// Recover makes a state what is left to recover from of a row that ended as
	// lost; one that is not so is invalid_state. What was given up since, by itself
	// or with its team, is not recovered: the row is lost no more, and what the host
	// holds of it is an orphan.
	Recover(ctx context.Context, row Sandbox, held Held, envSealed []byte) (recovered bool, err error)
	// NoteStrays keeps note of strays, up to a bound a host, records new ones and
	// foreign claims once a day, and returns them as they are then.
	NoteStrays(ctx context.Context, h id.Host, strays []Stray) ([]Stray, error)
	// DueStrays are those whose time is over.
	DueStrays(ctx context.Context, h id.Host, limit int) ([]Stray, error)
	ListStrays(ctx context.Context, h id.Host, p page.Request) (page.Page[Stray], error)
	// AskStrayGone makes one due. StrayPaused and DropStray note what was done;
	// repeats change nothing.
	AskStrayGone(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error
	StrayPaused(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error
	DropStray(ctx context.Context, h id.Host, x id.Sandbox, entry func(id.Team) audit.Entry) error
	// UnnamedStates are those of the given ones that no row places on the host.
	UnnamedStates(ctx context.Context, h id.Host, states []id.Snapshot) ([]id.Snapshot, error)
	// PruneHosts removes what is old of what was noted of hosts, and credentials that
	// are void for long.
	PruneHosts(ctx context.Context, limit int) (int, error)
	// Note adds an event by itself.
	Note(ctx context.Context, sandbox id.Sandbox, kind string, data map[string]any) error

	// TakeUpload leases a state that is due to be brought to the store, by a host in
	// reach that has it and is not one of the busy, and makes its artifact; the
	// zero one when none is. after is how old states of pauses and checkpoints are;
	// nil is never. Of hosts to be emptied all is due, and comes first.
	TakeUpload(ctx context.Context, lease time.Duration, busy []id.Host, after *time.Duration) (Upload, error)
	// RenewUpload prolongs the lease; false when nobody wants it in the store any
	// more. Uploaded ends it; false when it is not there. UploadFailed lets it be
	// tried again after the pause.
	RenewUpload(ctx context.Context, u Upload, lease time.Duration) (bool, error)
	Uploaded(ctx context.Context, u Upload) (bool, error)
	UploadFailed(ctx context.Context, u Upload, why string, pause time.Duration) error
	// Needs says what a host lacks to start from a state; refused with
	// state_not_here when it cannot be fetched either.
	Needs(ctx context.Context, h id.Host, state id.Snapshot) (Needs, error)
	// BringCopy writes down a copy before its bytes are there, CopyMade that they
	// are, and CopyLost that they are not.
	BringCopy(ctx context.Context, state id.Snapshot, h id.Host) error
	CopyMade(ctx context.Context, state id.Snapshot, h id.Host) error
	CopyLost(ctx context.Context, state id.Snapshot, h id.Host) error
	// BringBack makes a missing sandbox, or one that ended by itself, paused with its
	// newest state, where that is in the store or on a host in reach; NoState else.
	BringBack(ctx context.Context, b BringBack) (Sandbox, error)
	// FullHosts are those with less than a share of their disk free that are not
	// making room already, SpareCopies what can go there, the longest unused first,
	// and GiveUpCopy has one go if it still can.
	FullHosts(ctx context.Context, share float64, limit int) ([]FullHost, error)
	SpareCopies(ctx context.Context, h id.Host, limit int) ([]SpareCopy, error)
	GiveUpCopy(ctx context.Context, h id.Host, state id.Snapshot) (bool, error)
	// WarnExpiring tells of paused sandboxes that go within a day, each once.
	WarnExpiring(ctx context.Context, limit int) (int, error)
	// Progress notes how far an open operation is, and gives it so much time more.
	Progress(ctx context.Context, op id.Operation, p Progress, more time.Duration) error
	// Departures are what may be left on a host of sandboxes that went on elsewhere;
	// Departed forgets one.
	Departures(ctx context.Context, h id.Host) ([]Departure, error)
	Departed(ctx context.Context, h id.Host, d Departure) error
	// Reach is what a state with this engine needs to be started on hosts of a
	// team; x is the sandbox that goes on from it, or the zero one.
	Reach(ctx context.Context, state Snapshot, team id.Team, x id.Sandbox) (Reach, error)
	// State reads a saved state of any team, NamedState one of a team by name.
	State(ctx context.Context, state id.Snapshot) (Snapshot, error)
	NamedState(ctx context.Context, team id.Team, name string) (Snapshot, error)
	ListStates(ctx context.Context, f StateFilter, p page.Request) (page.Page[Snapshot], error)
	// DeleteState marks one for removal. What a living sandbox has nothing else
	// than is refused.
	DeleteState(ctx context.Context, team id.Team, state id.Snapshot, entry audit.Entry) error
	// LeftStates are saved states of deleted teams that no sandbox goes on from;
	// those of forks go with their copies.
	LeftStates(ctx context.Context, limit int) ([]LeftState, error)
	// DropForks marks the states of forks whose copies have all begun. TakeDropping
	// leases copies that hosts in reach are to remove, and Dropped says that one
	// has. SettleDropped takes what is not wanted out of the store, makes deleted
	// what no host has any more, and gives up copies that were never completed.
	DropForks(ctx context.Context) error
	TakeDropping(ctx context.Context, lease time.Duration, limit int) ([]Dropping, error)
	Dropped(ctx context.Context, state id.Snapshot, h id.Host) error
	SettleDropped(ctx context.Context, limit int) error
	// Redrop takes note of what a host has: what was removed is removed again, and
	// a copy that nobody wrote down is one.
	Redrop(ctx context.Context, h id.Host, held []Held) error
	// CopiesOnHost are those that a host is said to have for longer than that, and
	// LostCopies says which of them it has not: those are forgotten of which the
	// state is elsewhere too.
	CopiesOnHost(ctx context.Context, h id.Host, older time.Duration) ([]id.Snapshot, error)
	LostCopies(ctx context.Context, h id.Host, states []id.Snapshot) error
	// StrayStates are those of the given ones that no row ever named, of sandboxes
	// of that host that have ended.
	StrayStates(ctx context.Context, h id.Host, held []Held) ([]id.Snapshot, error)

	// InsertSamples keeps figures of the host's own sandboxes; repeats change
	// nothing. Samples are the newest up to limit, oldest first.
	InsertSamples(ctx context.Context, from id.Host, samples []Sample) error
	Samples(ctx context.Context, sandbox id.Sandbox, since time.Time, limit int) ([]Figures, error)
	PruneSamples(ctx context.Context, limit int) (int, error)
	PruneStates(ctx context.Context, retention time.Duration, limit int) (int, error)
}

// Launch is everything an agent needs to start a sandbox.
type Launch struct {
	Sandbox     Sandbox
	Template    template.Template
	Env         map[string]string
	AccessToken string
	ImageFrom   content.Source
	// MaxProcesses is what the guest may have.
	MaxProcesses int
	// State is what it starts from instead of the template's image.
	State *id.Snapshot
	// DiskOnly boots from the state's disk, whatever memory was saved with it.
	DiskOnly bool
	// Deadline is when the host is to pause it if nobody can be heard by then.
	Deadline time.Time
}

// Pause is what an agent is told when it is to pause.
type Pause struct {
	Sandbox     id.Sandbox
	Incarnation int64
	State       id.Snapshot
	Memory      bool
	IfIdleFor   time.Duration // zero: in any case
	Reason      string
}

// Deadline is until when an incarnation may run.
type Deadline struct {
	Key
	At time.Time
}

// Launched is what an agent says of a sandbox it started.
type Launched struct{ EngineVersion string }

// Agents are the hosts' agents. Each call may be repeated with the same
// arguments. A host out of reach is unavailable host_unavailable.
type Agents interface {
	CreateSandbox(ctx context.Context, h host.Ref, l Launch) (Launched, error)
	DestroySandbox(ctx context.Context, h host.Ref, sandbox id.Sandbox, incarnation int64, reason string) error
	// PauseSandbox returns when the state is complete and the instance gone; after
	// any error of the agent's own the sandbox runs as before. not_idle is its
	// refusal of IfIdleFor.
	PauseSandbox(ctx context.Context, h host.Ref, p Pause) (Saved, error)
	// CheckpointSandbox saves and lets it run.
	CheckpointSandbox(ctx context.Context, h host.Ref, p Pause) (Saved, error)
	// DeleteState succeeds on nothing.
	DeleteState(ctx context.Context, h host.Ref, state id.Snapshot) error
	SetDeadlines(ctx context.Context, h host.Ref, deadlines []Deadline) error
	Stats(ctx context.Context, h host.Ref, sandbox id.Sandbox, incarnation int64) (Stats, error)
	Logs(ctx context.Context, h host.Ref, sandbox id.Sandbox, incarnation int64) (Logs, error)
	Inventory(ctx context.Context, h host.Ref) (Inventory, error)
	// Upload has a host bring something to the store, Fetch from there. Both may be
	// repeated, and do nothing twice.
	Upload(ctx context.Context, h host.Ref, what host.Cargo, to content.Source, progress host.Progress) (host.Uploaded, error)
	Fetch(ctx context.Context, h host.Ref, what host.Cargo, from content.Source, progress host.Progress) error
	// Forget closes idle connections to a sandbox that has ended.
	Forget(h host.Ref, sandbox id.Sandbox, incarnation int64)
}

// Artifacts gives hosts access to what the store has.
type Artifacts interface {
	// Source is where a host finds an artifact, or puts it.
	Source(ctx context.Context, a id.Artifact, h id.Host, op artifact.Op) (content.Source, error)
	// Progress notes how far an upload is.
	Progress(ctx context.Context, a id.Artifact, done int64) error
}

// Templates finds what a sandbox is made from.
type Templates interface {
	// Resolve finds a ready template by name or id; the team's own shadows the
	// platform's.
	Resolve(ctx context.Context, team id.Team, nameOrID string) (template.Template, error)
	// ByID reads one that a sandbox refers to, also after it was replaced.
	ByID(ctx context.Context, tpl id.Template) (template.Template, error)
	// ImageSource lets a host fetch its image for a limited time.
	ImageSource(ctx context.Context, t template.Template, h id.Host) (content.Source, error)
}
