// Package audittrail is the audit trail as it leaves the database: an entry and
// its place in a team's chain, the file that an export is, and the check that
// nobody changed it. It needs neither server nor database.
package audittrail

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// Record is an entry with its place in its team's chain.
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
	Scope        string
	Status       string
	Metadata     []byte // JSON, byte for byte as it was written
	RequestID    string
	IP           netip.Addr // the zero one for none
	At           time.Time  // whole microseconds
}

// Hash links an entry to all before it. The zero Hash stands before the first.
type Hash [sha256.Size]byte

// String is the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler with hex.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for hex.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return errors.New("a hash has 64 hex digits")
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// After returns the hash of r as the successor of an entry with hash before:
// SHA-256 over before and each field in the order below, every one with its
// length in front, so that no byte can move from one field to another.
func (r Record) After(before Hash) Hash {
	var f fields
	f.Write(before[:])
	entry, team := r.ID.UUID(), r.TeamID.UUID()
	f.add(entry[:])
	f.add(team[:])
	f.number(r.Seq)
	for _, text := range []string{
		r.ActorType, r.ActorID, r.ActorName, r.ResourceType, r.ResourceID, r.Action, r.Scope, r.Status,
	} {
		f.add([]byte(text))
	}
	f.add(r.Metadata)
	f.add([]byte(r.RequestID))
	f.add([]byte(address(r.IP)))
	f.number(r.At.UnixMicro())
	return sha256.Sum256(f.Bytes())
}

// fields are values that cannot run into each other.
type fields struct{ bytes.Buffer }

func (f *fields) add(b []byte) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(b)))
	f.Write(n[:])
	f.Write(b)
}

func (f *fields) number(v int64) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(v))
	f.add(n[:])
}

func address(ip netip.Addr) string {
	if !ip.IsValid() {
		return ""
	}
	return ip.Unmap().String()
}

// line is a Record as the API and the file show it.
type line struct {
	ID           id.AuditEntry   `json:"id"`
	Seq          int64           `json:"seq"`
	TeamID       id.Team         `json:"team_id"`
	Actor        actor           `json:"actor"`
	ResourceType string          `json:"resource_type"`
	ResourceID   string          `json:"resource_id"`
	Action       string          `json:"action"`
	Scope        string          `json:"scope"`
	Status       string          `json:"status"`
	Metadata     json.RawMessage `json:"metadata"`
	RequestID    string          `json:"request_id"`
	IP           string          `json:"ip"`
	CreatedAt    stamp           `json:"created_at"`
	Hash         Hash            `json:"hash"`
}

type actor struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Name string `json:"name"`
}

// stamp is a time as all answers of the API show it: UTC, microseconds.
type stamp time.Time

const stampForm = "2006-01-02T15:04:05.000000Z"

func (s stamp) MarshalText() ([]byte, error) {
	return time.Time(s).UTC().AppendFormat(nil, stampForm), nil
}

func (s *stamp) UnmarshalText(text []byte) error {
	at, err := time.Parse(stampForm, string(text))
	*s = stamp(at)
	return err
}

// MarshalJSON implements json.Marshaler with the form that the API shows.
func (r Record) MarshalJSON() ([]byte, error) {
	return json.Marshal(line{
		ID: r.ID, Seq: r.Seq, TeamID: r.TeamID, Actor: actor{r.ActorType, r.ActorID, r.ActorName},
		ResourceType: r.ResourceType, ResourceID: r.ResourceID, Action: r.Action, Scope: r.Scope, Status: r.Status,
		Metadata: r.Metadata, RequestID: r.RequestID, IP: address(r.IP), CreatedAt: stamp(r.At), Hash: r.Hash,
	})
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *Record) UnmarshalJSON(raw []byte) error {
	var l line
	if err := json.Unmarshal(raw, &l); err != nil {
		return err
	}
	*r = Record{
		ID: l.ID, TeamID: l.TeamID, Seq: l.Seq, Hash: l.Hash, ActorType: l.Actor.Type, ActorID: l.Actor.ID, ActorName: l.Actor.Name,
		ResourceType: l.ResourceType, ResourceID: l.ResourceID, Action: l.Action, Scope: l.Scope, Status: l.Status,
		Metadata: l.Metadata, RequestID: l.RequestID, At: time.Time(l.CreatedAt),
	}
	if l.IP == "" {
		return nil
	}
	var err error
	r.IP, err = netip.ParseAddr(l.IP)
	return err
}
