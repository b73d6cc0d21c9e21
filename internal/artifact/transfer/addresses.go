package transfer

import (
	"context"
	"fmt"
	"sync"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// aheadURLs is how many chunks' addresses are asked for at once: few enough that
// they do not expire unused.
const aheadURLs = 64

// position is a chunk in a manifest.
type position struct{ file, chunk int }

// addresses knows where chunks are: below the address of the manifest, or where
// the control plane says when asked.
type addresses struct {
	f      *fetch
	files  []artifact.File
	direct bool

	mu    sync.Mutex
	known map[artifact.Digest]string
}

func newAddresses(f *fetch, m artifact.Manifest, direct bool) *addresses {
	return &addresses{f: f, files: m.Files, direct: direct, known: make(map[artifact.Digest]string)}
}

// of finds a chunk's address, and asks for those of the next ones with it.
func (a *addresses) of(ctx context.Context, pos position, d artifact.Digest) (string, error) {
	if !a.direct {
		return "chunks/" + string(d), nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if ref, ok := a.known[d]; ok {
		return ref, nil
	}
	_, to, _, err := a.f.clients.reach(a.f.from.URL, "urls")
	if err != nil {
		return "", err
	}
	var answer urlsAnswer
	if err := ask(ctx, a.f.clients.Control, to, urlsQuestion{Digests: a.next(pos)}, &answer, maxTargets); err != nil {
		return "", fmt.Errorf("asking where chunks are: %w", err)
	}
	clear(a.known) // those before were used, or are about to be asked for again
	for digest, ref := range answer.URLs {
		a.known[digest] = ref
	}
	ref, ok := a.known[d]
	if !ok {
		return "", errs.NotFound("chunk_missing", "A chunk of the artifact is not in the store.")
	}
	return ref, nil
}

// next lists chunks from pos on.
func (a *addresses) next(pos position) []artifact.Digest {
	var out []artifact.Digest
	seen := make(map[artifact.Digest]bool)
	for ; pos.file < len(a.files); pos = (position{pos.file + 1, 0}) {
		for _, c := range a.files[pos.file].Chunks[pos.chunk:] {
			if len(out) == aheadURLs {
				return out
			}
			if !seen[c.Digest] {
				seen[c.Digest] = true
				out = append(out, c.Digest)
			}
		}
	}
	return out
}

// forget makes the next question for d a new one.
func (a *addresses) forget(d artifact.Digest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.known, d)
}
