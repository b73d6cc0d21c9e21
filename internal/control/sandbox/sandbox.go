package sandbox

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// OnTimeout is what happens at the deadline.
type OnTimeout string

// What may happen.
const (
	OnTimeoutPause OnTimeout = "pause"
	OnTimeoutKill  OnTimeout = "kill"
)

// Reasons for the end of a sandbox that are this package's own; agents report
// others.
const (
	EndDeleted      = "deleted"
	EndTimeout      = "timeout"
	EndCreateFailed = "create_failed"
	EndForkFailed   = "fork_failed" // another copy of the same fork could not be started
	EndLost         = "lost"
	EndPausedLong   = "paused_too_long"
)

// Sandbox is one row.
type Sandbox struct {
	ID           id.Sandbox
	TeamID       id.Team
	Host         host.Ref
	TemplateID   id.Template
	TemplateName string
	ImageDigest  string
	// ImageNew is its creation's, see Params.
	ImageNew bool
	// HostDeleted: its host is no more; what is saved of it is elsewhere.
	HostDeleted bool
	Status      Status
	// Incarnation grows whenever it starts on a host or is told to end; whatever
	// names an older one is refused.
	Incarnation    int64
	Engine         string
	EngineVersion  string
	CPUMillis      int64
	MemoryMB       int64
	DiskMB         int64
	Internet       bool
	EnvSealed      []byte
	Metadata       map[string]string
	TimeoutSec     int64
	OnTimeout      OnTimeout
	IdleTimeoutSec *int64
	DeadlineAt     *time.Time
	// IdleCheckAt: before then it cannot have been idle for long enough.
	IdleCheckAt           *time.Time
	CheckpointIntervalSec *int64
	// FromState is what it was or is being started from, where that was a saved
	// state.
	FromState *id.Snapshot
	// BuildID is the build whose steps run in it; it is no sandbox of the team's
	// to see.
	BuildID *id.Build
	// StateID is its newest complete saved state.
	StateID     *id.Snapshot
	StateAt     *time.Time
	StateBytes  int64
	StateStatus StateStatus
	// StateStored: it is in the store. StateCopies are the hosts that have it.
	StateStored  bool
	StateCopies  []id.Host
	PausedAt     *time.Time
	PausedReason string
	// PausedTTLSec is how long it is kept once it is paused; nil is PausedLimit.
	PausedTTLSec *int64
	// AutoResume: whoever one of its open ports lets in resumes it.
	AutoResume bool
	EndReason  string
	Error      string
	// Progress is how far its operation is that moves bytes; nil when none does.
	Progress      *Progress
	CreatedByType string
	CreatedByID   string
	CreatedByName string
	CreatedAt     time.Time
	StartedAt     *time.Time
	EndedAt       *time.Time
	UpdatedAt     time.Time
}

// ExpiresAt is when a paused sandbox goes; nil for all others.
func (x Sandbox) ExpiresAt() *time.Time {
	if x.Status != StatusPaused || x.PausedAt == nil {
		return nil
	}
	limit := PausedLimit
	if x.PausedTTLSec != nil {
		limit = time.Duration(*x.PausedTTLSec) * time.Second
	}
	at := x.PausedAt.Add(limit)
	return &at
}

// KeptBeside reports whether its saved state is elsewhere than on a host.
func (x Sandbox) KeptBeside(h id.Host) bool {
	return x.StateStored || slices.ContainsFunc(x.StateCopies, func(o id.Host) bool { return o != h })
}

// Progress is how far something is on its way to a host.
type Progress struct {
	What  string `json:"what"` // state, image, engine
	Done  int64  `json:"done_bytes"`
	Total int64  `json:"total_bytes"`
}

// OperationKind is what an operation does.
type OperationKind string

// The kinds.
const (
	KindCreate     OperationKind = "create"
	KindDelete     OperationKind = "delete"
	KindPause      OperationKind = "pause"
	KindResume     OperationKind = "resume"
	KindSnapshot   OperationKind = "snapshot"
	KindFork       OperationKind = "fork"
	KindCheckpoint OperationKind = "checkpoint"
)

// Params are what an operation works on; the row keeps them as JSON.
type Params struct {
	// State is what is being saved, or started from.
	State  id.Snapshot `json:"snapshot_id,omitzero"`
	Memory bool        `json:"memory,omitempty"`
	// IfIdleSec: the host refuses unless nothing has gone on for so long.
	IfIdleSec int64  `json:"if_idle_sec,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Failed is how often this was tried in vain before.
	Failed int64 `json:"failed,omitempty"`
	// TimeoutSec is how far away the deadline will be.
	TimeoutSec int64 `json:"timeout_sec,omitempty"`
	// Together are the copies of one fork, this one included: all or none.
	Together []id.Sandbox `json:"together,omitempty"`
	// ImageNew: nothing was started from its image on its host lately.
	ImageNew bool `json:"image_new,omitempty"`
}

// Operation is a journaled step of a sandbox's life. At most one is open per
// sandbox, and whoever holds its lease drives it.
type Operation struct {
	ID          id.Operation
	SandboxID   id.Sandbox
	TeamID      id.Team
	Kind        OperationKind
	Params      Params
	Incarnation int64
	Attempts    int64
	DeadlineAt  time.Time
	CreatedAt   time.Time

	row *Sandbox // as whoever opened it here left it; nil where it was taken up
}

// Event is a line of a sandbox's history.
type Event struct {
	ID   int64
	Kind string
	At   time.Time
	Data map[string]any
}

// CreateRequest is what a caller asks for; absent values take the template's.
type CreateRequest struct {
	// Template or Snapshot, never both.
	Template       string
	Snapshot       string
	VCPUs          *float64
	MemoryMB       *int64
	DiskMB         *int64
	TimeoutSec     *int64
	OnTimeout      OnTimeout
	IdleTimeoutSec *int64
	// CheckpointIntervalSec has its state saved so often while it runs.
	CheckpointIntervalSec *int64
	// PausedTTLSec is how long it is kept once it is paused.
	PausedTTLSec *int64
	// AutoResume has traffic to its open ports resume it.
	AutoResume bool
	Metadata   map[string]string
	Env        map[string]string
	Engine     string
	Internet   *bool
	// HostLabels are what a host must carry to come into question.
	HostLabels map[string]string
}

// Bounds of a create.
const (
	minMemoryMB       = 64
	maxMemoryMB       = 1 << 20
	minDiskMB         = 64
	maxDiskMB         = 16 << 20
	maxVCPUs          = 512.0
	minVCPUs          = 0.1
	defaultTimeoutSec = 300
	maxTimeoutSec     = int64(MaxTimeout / time.Second)
	maxMetadata       = 64
	maxMetadataKey    = 64
	maxMetadataValue  = 512
	maxEnv            = 256
	maxEnvBytes       = 128 << 10
	minCheckpointSec  = 60
	maxCheckpointSec  = 86400
	minPausedSec      = 3600
	maxPausedSec      = 365 * 86400
	maxFork           = 64
	maxHostLabels     = 16
	maxLabelName      = 64
	maxLabelValue     = 256
)

// Validate checks what can be checked without looking at anything else.
func (r CreateRequest) Validate() error {
	if (r.Template == "") == (r.Snapshot == "") {
		return errs.Field("template", "Name either a template (`base` comes with Skerry) or a snapshot to start from.")
	}
	if len(r.Snapshot) > 100 {
		return errs.Field("snapshot", "snapshot must be the name or id of a snapshot.")
	}
	if len(r.Template) > 100 {
		return errs.Field("template", "template must be the name or id of a template; `base` comes with Skerry.")
	}
	if r.VCPUs != nil && !(*r.VCPUs >= minVCPUs && *r.VCPUs <= maxVCPUs) { // NaN fails too
		return errs.Field("vcpus", fmt.Sprintf("vcpus must be between %g and %g.", minVCPUs, maxVCPUs))
	}
	if err := within("memory_mb", r.MemoryMB, minMemoryMB, maxMemoryMB); err != nil {
		return err
	}
	if err := within("disk_mb", r.DiskMB, minDiskMB, maxDiskMB); err != nil {
		return err
	}
	if err := within("timeout_sec", r.TimeoutSec, 1, maxTimeoutSec); err != nil {
		return err
	}
	if err := within("idle_timeout_sec", r.IdleTimeoutSec, 1, maxTimeoutSec); err != nil {
		return err
	}
	if err := within("checkpoint_interval_sec", r.CheckpointIntervalSec, minCheckpointSec, maxCheckpointSec); err != nil {
		return err
	}
	if err := within("paused_ttl_sec", r.PausedTTLSec, minPausedSec, maxPausedSec); err != nil {
		return err
	}
	switch r.OnTimeout {
	case "", OnTimeoutPause, OnTimeoutKill:
	default:
		return errs.Field("on_timeout", "on_timeout must be pause or kill.")
	}
	if err := validateMetadata(r.Metadata); err != nil {
		return err
	}
	if len(r.HostLabels) > maxHostLabels {
		return errs.Field("host_labels", fmt.Sprintf("host_labels may have at most %d entries.", maxHostLabels))
	}
	for k, v := range r.HostLabels {
		if k == "" || len(k) > maxLabelName || len(v) > maxLabelValue || !storable(k) || !storable(v) {
			return errs.Field("host_labels", fmt.Sprintf("A host label must be a name of 1 to %d bytes and a value of at most %d.", maxLabelName, maxLabelValue))
		}
	}
	return validateEnv(r.Env)
}

func within(field string, v *int64, low, high int64) error {
	if v != nil && (*v < low || *v > high) {
		return errs.Field(field, fmt.Sprintf("%s must be between %d and %d.", field, low, high))
	}
	return nil
}

func validateMetadata(metadata map[string]string) error {
	if len(metadata) > maxMetadata {
		return errs.Field("metadata", fmt.Sprintf("metadata may have at most %d entries.", maxMetadata))
	}
	for k, v := range metadata {
		if k == "" || len(k) > maxMetadataKey || !storable(k) {
			return errs.Field("metadata", fmt.Sprintf("A key of metadata must be 1 to %d bytes of text.", maxMetadataKey))
		}
		if len(v) > maxMetadataValue || !storable(v) {
			return errs.Field("metadata", fmt.Sprintf("A value of metadata must be at most %d bytes of text.", maxMetadataValue)).With("key", k)
		}
	}
	return nil
}

// storable reports whether the database can keep s as text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

func validateEnv(env map[string]string) error {
	if len(env) > maxEnv {
		return errs.Field("env", fmt.Sprintf("env may have at most %d entries.", maxEnv))
	}
	total := 0
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return errs.Field("env", "A name in env must not be empty or contain = or a zero byte.")
		}
		if strings.ContainsRune(v, 0) {
			return errs.Field("env", "A value in env must not contain a zero byte.").With("name", k)
		}
		total += len(k) + len(v)
	}
	if total > maxEnvBytes {
		return errs.Field("env", fmt.Sprintf("env may have at most %d bytes.", maxEnvBytes))
	}
	return nil
}

// NewSandbox is a create that was checked and only lacks a host.
type NewSandbox struct {
	Sandbox   Sandbox // without Host, EngineVersion and times
	Operation Operation
	Want      scheduler.Request
	// DiskOnly: what it starts from has no memory.
	DiskOnly bool
}

// wants are what it needs, best first.
func (n NewSandbox) wants() []scheduler.Request { return started(n.Want, !n.DiskOnly) }

// Filter of a list; empty Statuses are all that have not ended.
type Filter struct {
	TeamID   id.Team
	Statuses []Status
	// Template is a name or an id in its wire form.
	Template string
	Metadata map[string]string
	// Since: only those created then or later; zero is all.
	Since time.Time
	// OldestFirst turns the order around.
	OldestFirst bool
}

// ParseStatuses reads a comma-separated list.
func ParseStatuses(s string) ([]Status, error) {
	if s == "" {
		return nil, nil
	}
	var out []Status
	for word := range strings.SplitSeq(s, ",") {
		status := Status(strings.TrimSpace(word))
		if _, ok := status.State(); !ok {
			return nil, errs.Field("status", "status must be one or several of: "+strings.Join(plain(Statuses()), ", ")+".")
		}
		out = append(out, status)
	}
	return out, nil
}

// ParseMetadata reads `key=value` terms.
func ParseMetadata(terms []string) (map[string]string, error) {
	out := map[string]string{}
	for _, term := range terms {
		k, v, ok := strings.Cut(term, "=")
		if !ok {
			return nil, errs.Field("metadata", "metadata must be given as key=value.")
		}
		out[k] = v
	}
	return out, validateMetadata(maps.Clone(out))
}

func plain(statuses []Status) []string {
	out := make([]string, len(statuses))
	for i, s := range statuses {
		out[i] = string(s)
	}
	return out
}

// ErrNotFound is a sandbox that does not exist or is another team's.
var ErrNotFound = errs.NotFound("sandbox_not_found", "There is no such sandbox in your team. List yours with GET /v1/sandboxes.")

// InvalidState is what the loser of a race gets: the actual status and what can
// be done in it.
func InvalidState(s Sandbox) *errs.Error {
	remedy := "Wait for it to change, or delete it."
	switch {
	case !s.Status.Live():
		remedy = "It has ended; create a new one."
	case s.Status == StatusStopping:
		remedy = "It is being deleted; create a new one."
	case s.Status == StatusPaused:
		remedy = "Resume it first."
	case s.Status == StatusMissing:
		remedy = "Its host is out of reach; wait for it to come back."
	}
	e := errs.Conflict("invalid_state", fmt.Sprintf("The sandbox is %s. %s", s.Status, remedy)).With("status", string(s.Status))
	if s.EndReason != "" {
		e = e.With("end_reason", s.EndReason)
	}
	return e
}
