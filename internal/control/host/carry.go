package host

import (
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// Cargo is what a host brings to the store or fetches from there: a StateCargo,
// an ImageCargo or an EngineCargo.
type Cargo interface{ cargo() }

// StateCargo is a saved state.
type StateCargo struct {
	ID id.Snapshot
	// Digest is over the state's own manifest, hex. A fetch refuses all else; an
	// upload does not need it, nor the size.
	Digest    string
	SizeBytes int64
}

// ImageCargo is what sandboxes are booted from. It is only fetched.
type ImageCargo struct {
	Digest    string // SHA-256 of the whole file, hex
	SizeBytes int64
}

// EngineCargo is the program of an engine, by its exact version.
type EngineCargo struct {
	Engine  string
	Version string
	Digest  string // SHA-256 of the program, hex
}

func (StateCargo) cargo()  {}
func (ImageCargo) cargo()  {}
func (EngineCargo) cargo() {}

// Progress is told how far a transfer is, several times a second at most. It is
// called by the one who waits for the transfer, never by two at once, and may be
// nil.
type Progress func(done, total int64)

// Uploaded is what became of an upload.
type Uploaded struct {
	ManifestDigest artifact.Digest
	SizeBytes      int64 // of the content
	SentBytes      int64 // of it, what the store lacked
}

// WarmTarget is what a host is to keep ready for sandboxes that come.
type WarmTarget struct {
	Key       []byte // by which the host tells what it keeps
	Template  id.Template
	Engine    string
	Image     ImageCargo
	ImageFrom artifact.Source
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	// MaxProcesses is what each guest may have.
	MaxProcesses int
	Internet     bool
	Count        int
	// State is what they are restored from instead of being booted, where it is
	// not the zero one; it is on the host.
	State id.Snapshot
}

// Warm is what a host keeps ready.
type Warm struct {
	Key    []byte
	Ready  int
	Reason string // why there are fewer than asked for
}
