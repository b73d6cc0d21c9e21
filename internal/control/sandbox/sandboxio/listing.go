package sandboxio

import (
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// listingLife is how old what a page shows may be.
	listingLife = 30 * time.Second
	// What listings may take together, and one of them, in bytes.
	maxListings = 64 << 20
	maxListing  = 32 << 20
	// entrySize is what an entry takes beside its strings.
	entrySize = 200
)

// listing is one reading of a directory, sorted, for whoever pages through it.
// What is in it is not changed any more.
type listing struct {
	of      directory
	entries []FileEntry
	size    int64
	read    time.Time
}

// directory is what was listed, in which incarnation and as whom.
type directory struct {
	sandbox     id.Sandbox
	incarnation int64
	user        string
	path        string
	depth       int
}

// listings keeps what is being paged through for a short time, so that a
// directory is not read anew for each of its pages: one for each sandbox, and of
// all together the last ones that have room. Whatever it does not have is read
// from the sandbox. It is safe for concurrent use.
type listings struct {
	now func() time.Time

	mu   sync.Mutex
	kept []*listing // oldest first
	size int64
}

// find returns the listing of a directory when there is one that is good.
func (l *listings) find(of directory) ([]FileEntry, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire()
	for _, x := range l.kept {
		if x.of == of {
			return x.entries, true
		}
	}
	return nil, false
}

// keep keeps a listing in the place of what there was of its sandbox.
func (l *listings) keep(of directory, entries []FileEntry) {
	x := &listing{of: of, entries: entries, read: l.now()}
	for _, e := range entries {
		x.size += entrySize + int64(len(e.Name)+len(e.Path)+len(e.Mode)+len(e.Owner)+len(e.Group))
		if e.SymlinkTarget != nil {
			x.size += int64(len(*e.SymlinkTarget))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(func(y *listing) bool { return y.of.sandbox == of.sandbox })
	l.expire()
	if x.size > maxListing {
		return
	}
	for l.size+x.size > maxListings {
		oldest := l.kept[0]
		l.drop(func(y *listing) bool { return y == oldest })
	}
	l.kept = append(l.kept, x)
	l.size += x.size
}

// forget drops what there is of a sandbox, in which something was changed.
func (l *listings) forget(sandbox id.Sandbox) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(func(x *listing) bool { return x.of.sandbox == sandbox })
}

// expire is called with mu held.
func (l *listings) expire() {
	oldest := l.now().Add(-listingLife)
	l.drop(func(x *listing) bool { return x.read.Before(oldest) })
}

// drop is called with mu held.
func (l *listings) drop(which func(*listing) bool) {
	left := l.kept[:0]
	for _, x := range l.kept {
		if which(x) {
			l.size -= x.size
		} else {
			left = append(left, x)
		}
	}
	clear(l.kept[len(left):])
	l.kept = left
}
