package journal

import (
	"encoding/json"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// Phase is where a sandbox stands on this host.
type Phase string

// The phases. A record exists from before the first effect of a create until
// after the last effect of a destroy.
const (
	PhaseCreating   Phase = "creating"
	PhaseRunning    Phase = "running"
	PhaseDestroying Phase = "destroying"
	PhaseExited     Phase = "exited"
	// PhasePausing: a pause is under way. Found after a crash it means that the
	// instance may be frozen, and that the sandbox runs.
	PhasePausing Phase = "pausing"
	// PhasePaused: the state named in Pause is the sandbox. Of the instance
	// there may be remains to remove.
	PhasePaused Phase = "paused"
	// PhaseWarm: an instance without a sandbox waits for one.
	PhaseWarm Phase = "warm"
)

// Image names a template's bytes and where to fetch them.
type Image struct {
	Digest    string `json:"digest"` // SHA-256, hex
	SizeBytes int64  `json:"size_bytes"`
	// From is good for a limited time, secret, and not part of what a sandbox is;
	// it is not written down.
	From artifact.Source `json:"-"`
}

// Resources bound a sandbox.
type Resources struct {
	CPUMillis    int   `json:"cpu_millis"`
	MemoryBytes  int64 `json:"memory_bytes"`
	DiskBytes    int64 `json:"disk_bytes"`
	MaxProcesses int   `json:"max_processes"`
}

// Spec is what was asked for, secrets included.
type Spec struct {
	Sandbox        id.Sandbox        `json:"sandbox"`
	Incarnation    uint64            `json:"incarnation"`
	Team           id.Team           `json:"team"`
	Template       id.Template       `json:"template"`
	Engine         string            `json:"engine"`
	Image          Image             `json:"image"`
	Resources      Resources         `json:"resources"`
	Env            map[string]string `json:"env,omitempty"`
	Hostname       string            `json:"hostname,omitempty"`
	AccessToken    string            `json:"access_token,omitempty"`
	DefaultUser    string            `json:"default_user,omitempty"`
	DefaultWorkdir string            `json:"default_workdir,omitempty"`
	Internet       bool              `json:"internet,omitempty"`
	// State is the saved state to start from; zero boots the image.
	State id.Snapshot `json:"state,omitzero"`
	// DiskOnly boots from the state's disk, whatever memory is in it.
	DiskOnly bool `json:"disk_only,omitempty"`
	// Deadline is until when it may run at the start; zero is for ever. Later
	// ones are in the record.
	Deadline time.Time `json:"deadline,omitzero"`
}

// Pause is a pause under way, or the one that made a sandbox paused.
type Pause struct {
	State  id.Snapshot `json:"state"`
	Memory bool        `json:"memory"`
	Reason string      `json:"reason,omitempty"`
	// Own: the agent decided it by itself.
	Own bool      `json:"own,omitempty"`
	At  time.Time `json:"at,omitzero"` // when it was done
}

// Record is one sandbox on this host.
type Record struct {
	Spec  Spec  `json:"spec"`
	Phase Phase `json:"phase"`
	// Step is the last step that finished, as far as the disk knows.
	Step          string            `json:"step,omitempty"`
	Instance      engine.InstanceID `json:"instance"`
	EngineVersion string            `json:"engine_version,omitempty"`
	Handle        engine.Handle     `json:"handle,omitempty"`
	// Guest is the SHA-256 of the guest daemon in its root tree, hex; empty in
	// records of releases that did not write it down.
	Guest string `json:"guest,omitempty"`
	// Slot is the network slot's index, -1 while there is none.
	Slot int `json:"slot"`
	// InitSecret proves the agent to the guest daemon.
	InitSecret string `json:"init_secret"`
	// GuestSeq is the last guest event that went to the outbox.
	GuestSeq  int64     `json:"guest_seq,omitempty"`
	BootID    string    `json:"boot_id,omitempty"` // of the machine, at the start
	CreatedAt time.Time `json:"created_at"`
	StartedAt time.Time `json:"started_at,omitzero"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	EndReason string    `json:"end_reason,omitempty"`
	// Deadline is until when it may run, changed by SetDeadlines alone.
	Deadline time.Time `json:"deadline,omitzero"`
	// Pause is set while pausing and paused.
	Pause *Pause `json:"pause,omitempty"`
	// Before is what the sandbox was, and is again when this create fails.
	Before *Record `json:"before,omitempty"`
	// DestroyReason is why it is being destroyed, DestroyIncarnation what the
	// tombstone was written for.
	DestroyReason      string `json:"destroy_reason,omitempty"`
	DestroyIncarnation uint64 `json:"destroy_incarnation,omitempty"`
}

// Deadline says until when an incarnation may run; zero is for ever.
type Deadline struct {
	Sandbox     id.Sandbox
	Incarnation uint64
	At          time.Time
}

// Tombstone says that incarnations up to this one are gone for good.
type Tombstone struct {
	Incarnation uint64    `json:"incarnation"`
	At          time.Time `json:"at"`
}

// Event is one thing the control plane shall hear of, at least once.
type Event struct {
	// Seq grows with each event, never skips and is never used twice.
	Seq         uint64          `json:"seq"`
	Kind        string          `json:"kind"`
	Sandbox     id.Sandbox      `json:"sandbox_id"`
	Incarnation uint64          `json:"incarnation"`
	At          time.Time       `json:"at"`
	Data        json.RawMessage `json:"data,omitempty"`
}
