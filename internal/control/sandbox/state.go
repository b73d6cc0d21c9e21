package sandbox

import (
	"fmt"
	"regexp"
	"time"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// StateKind is what a saved state is for.
type StateKind string

// The kinds. Named ones are the team's snapshots; a sandbox lives from its own
// pauses and checkpoints, and copies from the state of their fork.
const (
	StateSnapshot   StateKind = "snapshot"
	StatePause      StateKind = "pause"
	StateCheckpoint StateKind = "checkpoint"
	StateFork       StateKind = "fork"
	StateLayer      StateKind = "layer"    // what a step of a build left of the disk
	StateTemplate   StateKind = "template" // what sandboxes of a template start from
)

// internal states are of builds and templates, which alone use them.
func (k StateKind) internal() bool { return k == StateLayer || k == StateTemplate }

// StateStatus is where a saved state is in its life.
type StateStatus string

// The statuses. What failed is removed from its host like what was deleted.
const (
	StateCreating StateStatus = "creating"
	StateReady    StateStatus = "ready"
	StateFailed   StateStatus = "failed"
	StateDeleting StateStatus = "deleting"
	StateDeleted  StateStatus = "deleted"
)

// Snapshot is a saved state of a sandbox, named or not: one row, and bytes on
// hosts, in the store, or both.
type Snapshot struct {
	ID          id.Snapshot
	TeamID      id.Team
	Kind        StateKind
	Name        string // of a snapshot
	Status      StateStatus
	Error       string
	SandboxID   id.Sandbox // where it was taken; may be gone
	Incarnation int64
	// Host is where it was made, Arch what that is. Copies are the hosts that have
	// it now.
	Host   host.Ref
	Arch   string
	Copies []id.Host
	// Stored: it is in the store. Until then Uploading says that it is to be, with
	// SentBytes there so far and UploadError of the last try.
	Stored       bool
	StoredBytes  int64
	Uploading    bool
	SentBytes    int64
	UploadError  string
	TemplateID   id.Template
	TemplateName string
	ImageDigest  string
	Engine       string
	// EngineVersion and CPUFeatures are what its memory can be restored under.
	EngineVersion string
	CPUFeatures   []string
	Memory        bool
	CPUMillis     int64
	MemoryMB      int64
	DiskMB        int64
	Internet      bool
	EnvSealed     []byte
	SizeBytes     int64
	Digest        string
	CreatedByName string
	CreatedAt     time.Time
	ReadyAt       *time.Time
}

// NewSnapshot is a state about to be made; the rest is as its sandbox is.
type NewSnapshot struct {
	ID        id.Snapshot
	Kind      StateKind
	Name      string
	Memory    bool
	EnvSealed []byte
	// Overwrite: a ready one of the same name is replaced once this is complete.
	Overwrite     bool
	CreatedByType string
	CreatedByID   string
	CreatedByName string
}

// Saved is what an agent says of a state that is complete.
type Saved struct {
	EngineVersion string
	CPUFeatures   []string
	Memory        bool
	SizeBytes     int64
	Digest        string
}

// Held is a complete state as an inventory names it.
type Held struct {
	ID      id.Snapshot
	Sandbox id.Sandbox
	Saved
}

// StateFilter of a list; the empty Kind is all.
type StateFilter struct {
	TeamID id.Team
	Kind   StateKind
}

// SnapshotRequest is what a caller asks for.
type SnapshotRequest struct {
	Sandbox   id.Sandbox
	Name      string
	Memory    bool
	Overwrite bool
}

// Validate checks the name.
func (r SnapshotRequest) Validate() error {
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`).MatchString(r.Name) {
		return errs.Field("name", "name must be a letter or digit, then up to 63 of letters, digits, dot, underscore and dash.")
	}
	return nil
}

// ErrStateNotFound is a snapshot that does not exist or is another team's.
var ErrStateNotFound = errs.NotFound("snapshot_not_found", "There is no such snapshot in your team. List yours with GET /v1/snapshots.")

// ErrNameTaken is a snapshot whose name is in use.
var ErrNameTaken = errs.Conflict("name_taken", "There is a snapshot of this name. Choose another, delete it, or say overwrite.")

// StateGone is what a caller gets who wants to start from what cannot be.
func StateGone(s Snapshot) *errs.Error {
	remedy := "Start from another one."
	if s.Status == StateCreating {
		remedy = "Wait until it is ready."
	}
	return errs.FailedPrecondition("snapshot_not_ready", fmt.Sprintf("The snapshot is %s. %s", s.Status, remedy)).With("status", string(s.Status))
}

// Figures are what a sandbox uses at a time.
type Figures struct {
	At          time.Time
	CPUMillis   int64 // used on average since the sample before
	MemoryBytes int64
	DiskBytes   int64
	Processes   int64
}

// Stats are live figures of one sandbox.
type Stats struct {
	CPUTime          time.Duration
	MemoryBytes      int64
	MemoryLimitBytes int64
	DiskBytes        int64
	DiskLimitBytes   int64
	Processes        int64
	// Idle is how long nothing has gone on.
	Idle time.Duration
}

// Sample is one line of a host's report.
type Sample struct {
	Sandbox id.Sandbox
	Figures
}

// Metrics are the live figures, nil when there are none, and the samples,
// oldest first.
type Metrics struct {
	Sandbox Sandbox
	Live    *Figures
	Idle    *time.Duration
	Samples []Figures
}

// Logs are the end of what a sandbox's console has said.
type Logs struct {
	Text      string
	Truncated bool
}
