// Package artifact owns the rows that say what the store keeps: which artifacts
// there are, whose, what they consist of, and which host may have them. It makes
// the addresses and keys that hosts are given, and removes what nothing points
// at any more. Bytes it never touches: they pass between the hosts and the
// store, see internal/artifact/transfer.
package artifact

import (
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Kind is what an artifact is.
type Kind string

// The kinds.
const (
	KindState   Kind = "state"
	KindImage   Kind = "image"
	KindEngine  Kind = "engine"
	KindContext Kind = "context"
)

// Status is how far it is.
type Status string

// The statuses.
const (
	StatusUploading Status = "uploading"
	StatusReady     Status = "ready"
	StatusDeleting  Status = "deleting"
)

// Lease is how long an upload lives without a word, unless it is asked
// otherwise: each answer of the store prolongs it.
const Lease = 10 * time.Minute

// New is an artifact that is about to be uploaded.
type New struct {
	ID   id.Artifact
	Team id.Team
	Kind Kind
	// Host is who puts it there; the zero one is the control plane itself.
	Host id.Host
	// Lease is how long the upload may take to begin; 0 is the usual one.
	Lease time.Duration
}

// Artifact is one row.
type Artifact struct {
	ID     id.Artifact
	Team   id.Team
	Kind   Kind
	Status Status
	// Host is who put it there, or does; zero for the control plane itself.
	Host id.Host
	// FromBYOC: that is a team's own machine.
	FromBYOC bool
	// ManifestDigest and ManifestObject name its manifest; empty before it has one.
	ManifestDigest artifact.Digest
	ManifestObject int64
	// SizeBytes is of the files, StoredBytes of its chunks as they are stored,
	// SentBytes how much of the files an upload has brought so far.
	SizeBytes   int64
	StoredBytes int64
	SentBytes   int64
	CreatedAt   time.Time
}

// Manifest is where its manifest is.
func (a Artifact) Manifest() artifact.Key {
	return artifact.ManifestKey(a.Team, a.ManifestDigest, a.ManifestObject)
}

// Asker is who wants to have an artifact, or to put it there.
type Asker struct {
	// Host is zero for the control plane itself.
	Host id.Host
	// BYOC: it is a team's own machine, Team's.
	BYOC bool
	Team id.Team
	// Trusted: it is there, and its credentials are not void.
	Trusted bool
}

// Errors of the room.
var (
	ErrNotFound = errs.NotFound("no_such_artifact", "There is no such artifact in the store, or it is not for this host.")
	ErrGone     = errs.FailedPrecondition("upload_gone", "This upload is over, or another host's. Begin it anew.")
)

// MayRead says whether who asks may have it. All refusals are alike: nobody
// learns what exists.
func MayRead(a Artifact, by Asker) error {
	if a.Status != StatusReady || !mayHave(a, by) {
		return ErrNotFound
	}
	return nil
}

func mayHave(a Artifact, by Asker) bool {
	switch {
	case by.Host.IsZero():
		return true
	case !by.Trusted:
		return false
	case by.BYOC:
		return a.Team == by.Team || a.Team == id.PlatformTeamID
	}
	// What runs as a program, or is mounted, is not taken from a machine that is
	// not ours.
	return !a.FromBYOC || a.Kind == KindState || a.Kind == KindContext
}

// MayWrite says whether who asks may go on putting it there.
func MayWrite(a Artifact, by Asker) error {
	if a.Status != StatusUploading || a.Host != by.Host || !by.Host.IsZero() && !by.Trusted || by.BYOC && a.Team != by.Team {
		return ErrGone
	}
	return nil
}
