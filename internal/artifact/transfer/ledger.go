package transfer

import (
	"context"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/id"
)

// Ledger is what the control plane knows of artifacts: which there are, what
// they consist of, who may have them. The handler moves bytes as it says. Each
// method is one transaction, and may be repeated.
type Ledger interface {
	// Upload finds an artifact that host puts there; refused with upload_gone when
	// it is not uploading any more, is another host's, or the host may use the
	// store no more.
	Upload(ctx context.Context, a id.Artifact, host id.Host) (Stored, error)
	// Claim makes chunks part of an artifact that is uploading, before their bytes
	// are there, and prolongs its lease: from here on nobody collects them. It
	// returns those the store lacks, with the key each is to be put under.
	Claim(ctx context.Context, a id.Artifact, host id.Host, chunks []Piece) (missing []artifact.Key, err error)
	// Wanted is the key under which a claimed chunk of a is to be put.
	Wanted(ctx context.Context, a id.Artifact, host id.Host, d artifact.Digest) (artifact.Key, int64, error)
	// Put notes that chunks were seen in the store in their size.
	Put(ctx context.Context, a id.Artifact, chunks []artifact.Key) error
	// Lost takes it back that chunks of a are in the store: they are not, or are not
	// what they should be. Whoever claims one next hears that it is missing, and puts
	// it in its place.
	Lost(ctx context.Context, a id.Artifact, chunks []artifact.Key) error
	// Name says what the manifest of a will be, before it is put, and answers
	// where to put it: whatever becomes of the upload, what is there is found again
	// and removed.
	Name(ctx context.Context, a id.Artifact, host id.Host, digest artifact.Digest) (artifact.Key, error)
	// Complete makes the artifact ready, whose named manifest is in the store.
	// Every chunk of it is claimed and was seen; refused with chunks_missing
	// otherwise.
	Complete(ctx context.Context, a id.Artifact, host id.Host, m artifact.Manifest, digest artifact.Digest) error
	// Progress notes how far an upload is, and prolongs its lease.
	Progress(ctx context.Context, a id.Artifact, done int64) error

	// Ready finds an artifact that is complete and that host may have;
	// no_such_artifact otherwise.
	Ready(ctx context.Context, a id.Artifact, host id.Host) (Stored, error)
	// Keys are where the chunks of a are, by digest; those it does not consist of
	// are left out.
	Keys(ctx context.Context, a id.Artifact, chunks []artifact.Digest) (map[artifact.Digest]artifact.Key, error)
}

// Stored is an artifact in the store.
type Stored struct {
	ID   id.Artifact
	Team id.Team
	// Manifest is where its manifest is; empty of one that is uploading, see Name.
	Manifest artifact.Key
}

// Piece is a chunk that is about to be stored.
type Piece struct {
	Digest artifact.Digest `json:"digest"`
	Size   int64           `json:"size"`
}
