// Package host owns the machines that run sandboxes: how they join, how they
// prove who they are from then on, whether they can be reached, and the monitor
// that compares what they hold with what the database says.
package host

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Ref is a host as it is called.
type Ref struct {
	ID id.Host
	// Address is host:port of its agent.
	Address string
	// Generation is which start of its agent was heard last; 0 says nothing.
	Generation int64
	// Online: it can be reached.
	Online bool
}

// Standing is what whoever keeps connections to a host has to know of it.
type Standing struct {
	ID id.Host
	// RegisteredAt is when it joined last; zero for never.
	RegisteredAt time.Time
	// Revoked: its credentials are void.
	Revoked bool
	Deleted bool
}

// Type says who owns a host.
type Type string

// The types: the platform's own, and a customer's.
const (
	TypeRegular Type = "regular"
	TypeBYOC    Type = "byoc"
)

// Status is whether a host can be used.
type Status string

// The statuses.
const (
	StatusPending     Status = "pending"
	StatusOnline      Status = "online"
	StatusUnreachable Status = "unreachable"
	StatusDraining    Status = "draining"
	StatusDeleted     Status = "deleted"
)

// Reachable: its agent is heard and can be called. A host that is draining is;
// only nothing new is placed there.
func (s Status) Reachable() bool { return s == StatusOnline || s == StatusDraining }

// Amounts are what a host has, or what is reserved of it.
type Amounts struct {
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
}

// Host is one row.
type Host struct {
	ID               id.Host
	TeamID           id.Team
	TeamName         string
	Type             Type
	Name             string
	Provider         string
	AvailabilityZone string
	Labels           map[string]string
	Status           Status
	StatusReason     string
	Facts            Facts
	Generation       int64
	Load             Load
	// Sandboxes are those that live there, Active those of them that are not
	// paused, Reserved what all of them hold.
	Sandboxes int64
	Active    int64
	Reserved  Amounts
	// NeedsRegistration: it has joined before and its credentials are void.
	NeedsRegistration bool
	DrainRequestedAt  *time.Time
	DrainDeadlineAt   *time.Time
	// DrainError is why the pause of a sandbox that still runs failed last.
	DrainError string
	// OnlyHere is how many saved states are in no other place, of one that is to be
	// emptied.
	OnlyHere        int64
	LastHeartbeatAt *time.Time
	CreatedAt       time.Time
}

// Drained: it is to be emptied, and nothing runs there any more.
func (h Host) Drained() bool { return h.DrainRequestedAt != nil && h.Active == 0 }

// Why is what people are told of the status, with the remedy.
func (h Host) Why() string {
	if h.NeedsRegistration && h.StatusReason != reusedReason {
		return voidReason
	}
	return h.StatusReason
}

// Capacity is what the machine has; how much more than that is placed on it is
// the scheduler's affair.
func (h Host) Capacity() Amounts {
	return Amounts{CPUMillis: h.Facts.CPUs * 1000, MemoryMB: h.Facts.MemoryBytes >> 20, DiskMB: h.Facts.DiskBytes >> 20}
}

// Facts are what a host says of itself.
type Facts struct {
	Hostname    string
	Arch        string
	CPUs        int64
	MemoryBytes int64
	DiskBytes   int64
	Kernel      string
	Version     string
	Address     string
	Engines     []scheduler.Engine
}

// Validate checks what an agent sent.
func (f Facts) Validate() error {
	switch {
	case f.CPUs < 1 || f.CPUs > 1<<16:
		return errs.Field("facts.cpus", "cpus must be between 1 and 65536.")
	case f.MemoryBytes < 1 || f.MemoryBytes > 1<<50:
		return errs.Field("facts.memory_bytes", "memory_bytes must be positive.")
	case f.DiskBytes < 1 || f.DiskBytes > 1<<60:
		return errs.Field("facts.disk_bytes", "disk_bytes must be positive.")
	}
	for _, s := range []string{f.Hostname, f.Arch, f.Kernel, f.Version} {
		if !text(s, 256) {
			return errs.Field("facts", "Facts must be text of at most 256 bytes.")
		}
	}
	return ValidateAddress(f.Address)
}

// ValidateAddress checks host:port.
func ValidateAddress(address string) error {
	h, port, err := net.SplitHostPort(address)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 || h == "" || !text(address, 300) || strings.ContainsAny(h, "/@ \t") {
		return errs.Field("address", "address must be host:port, where the control plane reaches the agent.")
	}
	return nil
}

func text(s string, most int) bool {
	if len(s) > most || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' {
			return false
		}
	}
	return true
}

// Load is what an agent says of its host now.
type Load struct {
	Sandboxes     int64 `json:"sandboxes"`
	CPUMillis     int64 `json:"cpu_millis"`
	MemoryBytes   int64 `json:"memory_bytes"`
	DiskFreeBytes int64 `json:"disk_free_bytes"`
}

// CreateRequest announces a host.
type CreateRequest struct {
	Type             Type
	Name             string
	Provider         string
	AvailabilityZone string
	Labels           map[string]string
}

// Validate checks the request.
func (r CreateRequest) Validate() error {
	if r.Type != TypeRegular && r.Type != TypeBYOC {
		return errs.Field("type", "type must be regular or byoc.")
	}
	if !text(r.Name, maxName) {
		return errs.Field("name", fmt.Sprintf("name must be at most %d bytes of printable characters.", maxName))
	}
	if !text(r.Provider, 100) {
		return errs.Field("provider", "provider must be at most 100 printable characters.")
	}
	if !text(r.AvailabilityZone, 100) {
		return errs.Field("availability_zone", "availability_zone must be at most 100 printable characters.")
	}
	if len(r.Labels) > 64 {
		return errs.Field("labels", "labels may have at most 64 entries.")
	}
	for k, v := range r.Labels {
		if k == "" || !text(k, 64) || !text(v, 256) {
			return errs.Field("labels", "A label must be a name of 1 to 64 characters and a value of at most 256.")
		}
	}
	return nil
}

// maxName bounds the name of a host.
const maxName = 100

// Unnamed is what a host is called until its agent says its machine's name.
const Unnamed = "(new host)"

// NameOf is what a host is called after its machine, whose name may be missing
// or longer than a host's.
func NameOf(hostname string) string {
	if name := []rune(strings.TrimSpace(hostname)); len(name) > 0 {
		return string(name[:min(len(name), maxName)])
	}
	return Unnamed
}

// Created is a host waiting for its agent, with the token it joins with. It is
// kept, sealed, to answer a repeated request.
type Created struct {
	Host      Host
	Token     string
	ExpiresAt time.Time
	CASHA256  string
	Install   string
}

// Credentials are what a host holds from joining on.
type Credentials struct {
	HostID           id.Host
	JWT              string
	JWTExpiresAt     time.Time
	RefreshToken     string
	RefreshExpiresAt time.Time
	Certificate      string // PEM
	CA               string // PEM
}

// Errors of the room.
var (
	ErrNotFound     = errs.NotFound("host_not_found", "There is no such host. List yours with GET /v1/hosts.")
	ErrToken        = errs.Unauthenticated("invalid_registration_token", "The registration token is unknown, spent or expired. Issue a new one with POST /v1/hosts/{id}/token.")
	ErrRefreshToken = errs.Unauthenticated("invalid_refresh_token", "The refresh token is not valid. Register the host again with a new token.")
	ErrHostToken    = errs.Unauthenticated("invalid_host_token", "The host's token is not valid. Refresh it.")
)

// engineLine is an engine as the row keeps it.
type engineLine struct {
	Name        string      `json:"name"`
	Version     string      `json:"version"`
	Digest      string      `json:"digest,omitempty"`
	Healthy     bool        `json:"healthy"`
	Reasons     []string    `json:"reasons"`
	CPUFeatures []string    `json:"cpu_features,omitempty"`
	Builds      []buildLine `json:"builds,omitempty"`
}

type buildLine struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// EnginesJSON is how engines are kept.
func EnginesJSON(engines []scheduler.Engine) json.RawMessage {
	lines := make([]engineLine, 0, len(engines))
	for _, e := range engines {
		l := engineLine{Name: e.Name, Version: e.Version, Digest: e.Digest, Healthy: e.Healthy, Reasons: e.Reasons, CPUFeatures: e.CPUFeatures}
		for _, b := range e.Builds {
			l.Builds = append(l.Builds, buildLine(b))
		}
		lines = append(lines, l)
	}
	raw, err := json.Marshal(lines)
	if err != nil {
		panic(fmt.Sprintf("host: strings do not marshal: %v", err)) // cannot happen
	}
	return raw
}

// ParseEngines reads what EnginesJSON wrote.
func ParseEngines(raw json.RawMessage) ([]scheduler.Engine, error) {
	var lines []engineLine
	if err := json.Unmarshal(raw, &lines); err != nil {
		return nil, fmt.Errorf("engines of a host: %w", err)
	}
	out := make([]scheduler.Engine, len(lines))
	for i, l := range lines {
		out[i] = scheduler.Engine{Name: l.Name, Version: l.Version, Digest: l.Digest, Healthy: l.Healthy, Reasons: l.Reasons, CPUFeatures: l.CPUFeatures}
		for _, b := range l.Builds {
			out[i].Builds = append(out[i].Builds, scheduler.EngineBuild(b))
		}
	}
	return out, nil
}
