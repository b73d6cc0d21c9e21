package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// Record is an entry as the trail keeps it: with its place in the team's chain.
type Record struct {
	ID           id.AuditEntry
	TeamID       id.Team
	Seq          int64 // from 1, without gaps
	Hash         Hash
	ActorType    string
	ActorID      string
	ActorName    string
	ResourceType string
	ResourceID   string
	Action       string
	Scope        Scope
	Status       Status
	Metadata     []byte // JSON, byte for byte as it was written
	RequestID    string
	IP           netip.Addr // the zero one for none
	At           time.Time  // whole microseconds
}

// Hash links an entry to all before it. The zero Hash stands before the first.
type Hash [sha256.Size]byte

// After returns the hash of r as the successor of an entry with hash before:
// SHA-256 over before and each field in the order below, every one with its
// length in front, so that no byte can move from one field to another.
func (r Record) After(before Hash) Hash {
	h := sha256.New()
	h.Write(before[:])
	field := func(b []byte) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	number := func(v int64) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(v))
		field(n[:])
	}
	entry, team := r.ID.UUID(), r.TeamID.UUID()
	field(entry[:])
	field(team[:])
	number(r.Seq)
	for _, text := range []string{
		r.ActorType, r.ActorID, r.ActorName, r.ResourceType, r.ResourceID, r.Action, string(r.Scope), string(r.Status),
	} {
		field([]byte(text))
	}
	field(r.Metadata)
	field([]byte(r.RequestID))
	ip := ""
	if r.IP.IsValid() {
		ip = r.IP.Unmap().String()
	}
	field([]byte(ip))
	number(r.At.UnixMicro())
	var sum Hash
	h.Sum(sum[:0])
	return sum
}
