// Package transfertest has a transfer.Ledger in memory, for tests of both ends.
package transfertest

import (
	"context"
	"fmt"
	"sync"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Ledger is a transfer.Ledger in memory. Any host may have what is ready, but for
// those that were barred. The zero value is empty.
type Ledger struct {
	mu        sync.Mutex
	object    int64
	artifacts map[id.Artifact]*entry
	chunks    map[place]*chunk
	barred    map[id.Host]bool
}

type place struct {
	team   id.Team
	digest artifact.Digest
}

type chunk struct {
	key  artifact.Key
	size int64
	seen bool
}

type entry struct {
	team     id.Team
	host     id.Host
	ready    bool
	manifest artifact.Key
	claimed  map[artifact.Digest]*chunk
	done     int64
}

var _ transfer.Ledger = (*Ledger)(nil)

// Begin makes an artifact that host uploads.
func (l *Ledger) Begin(team id.Team, host id.Host) id.Artifact {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.artifacts == nil {
		l.artifacts, l.chunks = make(map[id.Artifact]*entry), make(map[place]*chunk)
	}
	a := id.NewArtifact()
	l.artifacts[a] = &entry{team: team, host: host, claimed: make(map[artifact.Digest]*chunk)}
	return a
}

// Bar takes all access from a host.
func (l *Ledger) Bar(host id.Host) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.barred == nil {
		l.barred = make(map[id.Host]bool)
	}
	l.barred[host] = true
}

// Remove forgets an artifact. Its chunks stay.
func (l *Ledger) Remove(a id.Artifact) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.artifacts, a)
}

// IsReady reports whether an artifact is complete.
func (l *Ledger) IsReady(a id.Artifact) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.artifacts[a]
	return x != nil && x.ready
}

// Done is the progress last noted of an artifact.
func (l *Ledger) Done(a id.Artifact) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.artifacts[a]; x != nil {
		return x.done
	}
	return 0
}

func (l *Ledger) uploading(a id.Artifact, host id.Host) (*entry, error) {
	x := l.artifacts[a]
	if x == nil || x.ready || x.host != host || l.barred[host] {
		return nil, errs.FailedPrecondition("upload_gone", "The artifact is not being uploaded by this host any more.")
	}
	return x, nil
}

// Upload implements transfer.Ledger.
func (l *Ledger) Upload(_ context.Context, a id.Artifact, host id.Host) (transfer.Stored, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := l.uploading(a, host)
	if err != nil {
		return transfer.Stored{}, err
	}
	return transfer.Stored{ID: a, Team: x.team}, nil
}

// Claim implements transfer.Ledger.
func (l *Ledger) Claim(_ context.Context, a id.Artifact, host id.Host, pieces []transfer.Piece) ([]artifact.Key, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := l.uploading(a, host)
	if err != nil {
		return nil, err
	}
	var missing []artifact.Key
	for _, p := range pieces {
		at := place{x.team, p.Digest}
		c := l.chunks[at]
		if c == nil {
			l.object++
			c = &chunk{key: artifact.ChunkKey(x.team, p.Digest, l.object), size: p.Size}
			l.chunks[at] = c
		}
		if c.size != p.Size {
			return nil, errs.Invalid("content_mismatch", "The chunk has another size.")
		}
		x.claimed[p.Digest] = c
		if !c.seen {
			missing = append(missing, c.key)
		}
	}
	return missing, nil
}

// Wanted implements transfer.Ledger.
func (l *Ledger) Wanted(_ context.Context, a id.Artifact, host id.Host, d artifact.Digest) (artifact.Key, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := l.uploading(a, host)
	if err != nil {
		return artifact.Key{}, 0, err
	}
	c := x.claimed[d]
	if c == nil {
		return artifact.Key{}, 0, errs.FailedPrecondition("chunk_not_claimed", "Claim the chunk before it is put.")
	}
	return c.key, c.size, nil
}

// Put implements transfer.Ledger.
func (l *Ledger) Put(_ context.Context, _ id.Artifact, keys []artifact.Key) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		if c := l.chunks[place{k.Team, k.Digest}]; c != nil && c.key == k {
			c.seen = true
		}
	}
	return nil
}

// Lost implements transfer.Ledger.
func (l *Ledger) Lost(_ context.Context, _ id.Artifact, keys []artifact.Key) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range keys {
		if c := l.chunks[place{k.Team, k.Digest}]; c != nil && c.key == k {
			c.seen = false
		}
	}
	return nil
}

// Name implements transfer.Ledger.
func (l *Ledger) Name(_ context.Context, a id.Artifact, host id.Host, digest artifact.Digest) (artifact.Key, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := l.uploading(a, host)
	if err != nil {
		return artifact.Key{}, err
	}
	if x.manifest.Digest != digest {
		l.object++
		x.manifest = artifact.ManifestKey(x.team, digest, l.object)
	}
	return x.manifest, nil
}

// Complete implements transfer.Ledger.
func (l *Ledger) Complete(_ context.Context, a id.Artifact, host id.Host, m artifact.Manifest, digest artifact.Digest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, err := l.uploading(a, host)
	if err != nil {
		return err
	}
	if x.manifest.Digest != digest {
		return errs.Internal(fmt.Errorf("transfertest: manifest %s was not named", digest))
	}
	pieces, err := m.Pieces()
	if err != nil {
		return err
	}
	for d, size := range pieces {
		if c := x.claimed[d]; c == nil || !c.seen || c.size != size {
			return errs.FailedPrecondition("chunks_missing", "A chunk of the manifest was not claimed, or not seen.").With("digest", string(d))
		}
	}
	x.ready = true
	return nil
}

// Progress implements transfer.Ledger.
func (l *Ledger) Progress(_ context.Context, a id.Artifact, done int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.artifacts[a]; x != nil {
		x.done = done
	}
	return nil
}

// Ready implements transfer.Ledger.
func (l *Ledger) Ready(_ context.Context, a id.Artifact, host id.Host) (transfer.Stored, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.artifacts[a]
	if x == nil || !x.ready || l.barred[host] {
		return transfer.Stored{}, errs.NotFound("no_such_artifact", "There is no such artifact, or not for this host.")
	}
	return transfer.Stored{ID: a, Team: x.team, Manifest: x.manifest}, nil
}

// Keys implements transfer.Ledger.
func (l *Ledger) Keys(_ context.Context, a id.Artifact, digests []artifact.Digest) (map[artifact.Digest]artifact.Key, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[artifact.Digest]artifact.Key)
	if x := l.artifacts[a]; x != nil {
		for _, d := range digests {
			if c := x.claimed[d]; c != nil {
				out[d] = c.key
			}
		}
	}
	return out, nil
}
