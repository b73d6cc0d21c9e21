package sandboxio

import (
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// What is kept of listings is little, and not for long.
func TestS9_KeptListingsAreBoundedAndShortLived(t *testing.T) {
	now := time.Unix(1000, 0)
	l := listings{now: func() time.Time { return now }}
	at := func(path string) directory { return directory{sandbox: id.NewSandbox(), path: path, depth: 1} }
	entries := func(n, size int) []FileEntry {
		out := make([]FileEntry, n)
		for i := range out {
			out[i].Path = strings.Repeat("x", size)
		}
		return out
	}
	has := func(of directory) bool { _, found := l.find(of); return found }

	first := at("/a")
	l.keep(first, entries(1, 1))
	other := first
	other.path = "/b"
	l.keep(other, entries(1, 1))
	if has(first) || !has(other) {
		t.Error("a sandbox has more than one listing, or not the last one")
	}
	another := other
	another.incarnation++
	if has(another) {
		t.Error("another incarnation's listing is found")
	}
	now = now.Add(listingLife + time.Second)
	if has(other) || l.size != 0 {
		t.Errorf("an old one is found; %d bytes are kept", l.size)
	}
	large := at("/large")
	l.keep(large, entries(10, maxListing/10))
	if has(large) {
		t.Error("one that is too large is kept")
	}
	var kept []directory
	for range 20 {
		of := at("/many")
		l.keep(of, entries(8, 1<<20))
		kept = append(kept, of)
		if l.size > maxListings {
			t.Fatalf("%d bytes are kept", l.size)
		}
	}
	if has(kept[0]) || !has(kept[19]) || !has(kept[14]) {
		t.Error("not the last ones are kept")
	}
	l.forget(kept[19].sandbox)
	if has(kept[19]) || !has(kept[18]) {
		t.Error("not that of one sandbox was forgotten")
	}
}
