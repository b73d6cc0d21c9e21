// Package warm decides which instances hosts keep ready before anybody asks for
// them, and tells the hosts. What is wanted is a pure function of the hosts, of
// what was started lately, and of a policy; it is written down, so that placement
// can count with it, and sent again and again, so that a host that missed it
// comes to keep the same.
package warm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"

	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Bounds of what is kept.
const (
	// perHost is how many instances of all kinds a host keeps at most, where the
	// policy names no number.
	perHost = 8
	// atFirst is how many of the default template each host keeps without any
	// demand, and with it.
	atFirst, inUse = 1, 2
	// MaxPool bounds the number a policy may name.
	MaxPool = 1000
	// share of what is free on a host that what waits may take, where the policy
	// names no number: a half.
	share = 2
)

// Policy says how much is kept.
type Policy struct {
	// Off keeps none.
	Off bool
	// Count is how many each host keeps, of the default template what others leave;
	// 0 goes by demand.
	Count int
}

// ParsePolicy reads auto, off or a number.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "", "auto":
		return Policy{}, nil
	case "off", "0":
		return Policy{Off: true}, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > MaxPool {
		return Policy{}, fmt.Errorf("must be auto, off or a number up to %d, not %q", MaxPool, s)
	}
	return Policy{Count: n}, nil
}

// Kind is what all instances have in common that are each as good as another.
type Kind struct {
	Template id.Template
	// Engine is a name; of the default template it may be scheduler.EngineAuto.
	Engine    string
	Image     string // digest, hex
	Arch      string // of the image; empty for any
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	Internet  bool
	// State is what they are restored from; the zero one boots the image.
	State id.Snapshot
}

// Key is by which a host tells what it keeps.
func (k Kind) Key() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%s|%d|%d|%d|%t|%s", k.Template, k.Engine, k.Image, k.CPUMillis, k.MemoryMB, k.DiskMB, k.Internet, k.State))
	return sum[:]
}

// Demand is how often sandboxes of a kind were started lately, on the hosts of a
// pool.
type Demand struct {
	Kind
	Pool  id.Team // whose hosts: a team's own, or the platform's
	Count int     // within Window
}

// Host is what is known of one that can be called.
type Host struct {
	ID   id.Host
	Pool id.Team
	// Takes is false while it is emptied: it keeps nothing then.
	Takes   bool
	Arch    string
	Engines []scheduler.Engine
	// Free is what sandboxes leave of what may be promised, in all that counts.
	FreeCPUMillis, FreeMemoryMB, FreeDiskMB int64
	// States are those it has of the ones that are started from.
	States []id.Snapshot
}

// World is what a decision is made from.
type World struct {
	Hosts []Host
	// Base is the default template in its default size; nil while there is none.
	Base    *Kind
	Demands []Demand
}

// Entry is what one host keeps of one kind.
type Entry struct {
	Host id.Host
	Kind
	Wanted int
}

// Plan decides. It is pure, and the same world gives the same entries in the same
// order. What was asked for more often comes first, and no host keeps more than
// there is room for.
func Plan(w World, p Policy) []Entry {
	if p.Off {
		return nil
	}
	rooms := make([]*room, 0, len(w.Hosts))
	pools := map[id.Team][]*room{}
	for _, h := range w.Hosts {
		if !h.Takes {
			continue
		}
		r := &room{Host: h, left: cmp.Or(p.Count, perHost), of: map[Kind]int{}}
		if p.Count == 0 {
			r.FreeCPUMillis, r.FreeMemoryMB, r.FreeDiskMB = h.FreeCPUMillis/share, h.FreeMemoryMB/share, h.FreeDiskMB/share
		}
		rooms = append(rooms, r)
		pools[h.Pool] = append(pools[h.Pool], r)
	}
	// The default first: the first start of a new installation is a warm one too.
	if w.Base != nil {
		for _, r := range rooms {
			r.take(*w.Base, atFirst)
		}
	}
	demands := slices.Clone(w.Demands)
	slices.SortFunc(demands, func(a, b Demand) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), bytes.Compare(a.Key(), b.Key()))
	})
	for _, d := range demands {
		spread(pools[d.Pool], d, w.Base)
	}
	if w.Base != nil && p.Count > 0 {
		for _, r := range rooms {
			r.take(*w.Base, p.Count)
		}
	}
	var out []Entry
	for _, r := range rooms {
		for kind, n := range r.of {
			out = append(out, Entry{Host: r.ID, Kind: kind, Wanted: n})
		}
	}
	slices.SortFunc(out, func(a, b Entry) int {
		ha, hb := a.Host.UUID(), b.Host.UUID()
		return cmp.Or(bytes.Compare(ha[:], hb[:]), cmp.Compare(b.Wanted, a.Wanted), bytes.Compare(a.Key(), b.Key()))
	})
	return out
}

// room is what a host can keep yet.
type room struct {
	Host
	left int
	of   map[Kind]int
}

// spread keeps as many of a kind as are started in a minute, and one more, shared
// by the hosts of the pool. What was started once is not taken for a habit.
func spread(hosts []*room, d Demand, base *Kind) {
	if d.Count < 2 {
		return
	}
	want := (d.Count+windowMinutes-1)/windowMinutes + 1
	if base != nil && sameKind(d.Kind, *base) {
		want = max(want, inUse)
	}
	able := slices.DeleteFunc(slices.Clone(hosts), func(r *room) bool { _, ok := r.engine(d.Kind); return !ok })
	if len(able) == 0 {
		return
	}
	each := (want + len(able) - 1) / len(able)
	slices.SortStableFunc(able, func(a, b *room) int { return cmp.Compare(b.FreeMemoryMB, a.FreeMemoryMB) })
	for _, r := range able {
		n := min(each, want)
		had := r.has(d.Kind)
		r.take(d.Kind, n-had)
		want -= r.has(d.Kind)
		if want <= 0 {
			return
		}
	}
}

// sameKind compares but for the engine, which the default leaves open.
func sameKind(a, b Kind) bool {
	a.Engine, b.Engine, a.Arch, b.Arch = "", "", "", ""
	return a == b
}

func (r *room) has(k Kind) int {
	e, ok := r.engine(k)
	if !ok {
		return 0
	}
	k.Engine = e
	return r.of[k]
}

// engine is what would isolate an instance of the kind there.
func (r *room) engine(k Kind) (string, bool) {
	if k.Arch != "" && k.Arch != r.Arch || !k.State.IsZero() && !slices.Contains(r.States, k.State) {
		return "", false
	}
	e, ok := scheduler.Offered(k.Engine, r.Engines)
	return e.Name, ok
}

// take adds so many of a kind as there is room for.
func (r *room) take(k Kind, n int) {
	e, ok := r.engine(k)
	if !ok {
		return
	}
	k.Engine = e
	for range n {
		if r.left == 0 || k.CPUMillis > r.FreeCPUMillis || k.MemoryMB > r.FreeMemoryMB || k.DiskMB > r.FreeDiskMB {
			return
		}
		r.left--
		r.FreeCPUMillis -= k.CPUMillis
		r.FreeMemoryMB -= k.MemoryMB
		r.FreeDiskMB -= k.DiskMB
		r.of[k]++
	}
}

// errNotOurs is an answer about something that was never asked for.
var errNotOurs = errs.Internal(fmt.Errorf("warm: a host told of what it was not asked to keep"))
