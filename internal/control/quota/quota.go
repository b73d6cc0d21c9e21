// Package quota owns what a team may have. The rooms that make things ask it,
// in the transaction that makes them (see quotapg.Check); it never makes,
// changes or ends anything but the limits themselves.
package quota

import (
	"fmt"
	"strconv"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Amounts counts what a team has, may have, or wants. The first four are of its
// sandboxes that have not ended, paused ones included: a paused sandbox can be
// resumed at any time and needs all of it then.
type Amounts struct {
	Sandboxes int64
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	StoredMB  int64 // saved states, and images of the team's own templates
	APIKeys   int64 // those that work
	Hosts     int64 // the team's own
	Templates int64 // the team's own
}

// Want is what a create would add to a team's use.
type Want = Amounts

// Defaults are the limits of a team for which nobody set others: far more than
// one person needs, and a fraction of what one large machine holds.
func Defaults() Amounts {
	return Amounts{
		Sandboxes: 200, CPUMillis: 200_000, MemoryMB: 256 << 10, DiskMB: 1 << 20, StoredMB: 200 << 10,
		APIKeys: 100, Hosts: 20, Templates: 100,
	}
}

// Override is what a platform admin set for a team; nil is the default.
type Override struct {
	Sandboxes, CPUMillis, MemoryMB, DiskMB, StoredMB, APIKeys, Hosts, Templates *int64
}

// Bounds of what an admin may set.
const (
	maxCount  = 100_000
	maxKeys   = 10_000
	maxMillis = 1_000_000 * 1000
	maxMB     = 1 << 32 // 4 PiB
)

// setting is one line of the limits: its name on the wire, what it counts, its
// bounds, and how to get below it.
type setting struct {
	field  string
	things string
	remedy string
	max    int64
	millis bool // on the wire in units of a thousand
	of     func(*Amounts) *int64
	set    func(*Override) **int64
}

func settings() []setting {
	return []setting{
		{
			"sandboxes", "sandboxes", "End one", maxCount, false,
			func(a *Amounts) *int64 { return &a.Sandboxes }, func(o *Override) **int64 { return &o.Sandboxes },
		},
		{
			"vcpus", "vCPUs in sandboxes", "End a sandbox", maxMillis, true,
			func(a *Amounts) *int64 { return &a.CPUMillis }, func(o *Override) **int64 { return &o.CPUMillis },
		},
		{
			"memory_mb", "MB of memory in sandboxes", "End a sandbox", maxMB, false,
			func(a *Amounts) *int64 { return &a.MemoryMB }, func(o *Override) **int64 { return &o.MemoryMB },
		},
		{
			"disk_mb", "MB of disk in sandboxes", "End a sandbox", maxMB, false,
			func(a *Amounts) *int64 { return &a.DiskMB }, func(o *Override) **int64 { return &o.DiskMB },
		},
		{
			"stored_mb", "MB of snapshots and paused sandboxes", "Delete a snapshot", maxMB, false,
			func(a *Amounts) *int64 { return &a.StoredMB }, func(o *Override) **int64 { return &o.StoredMB },
		},
		{
			"api_keys", "API keys", "Revoke one", maxKeys, false,
			func(a *Amounts) *int64 { return &a.APIKeys }, func(o *Override) **int64 { return &o.APIKeys },
		},
		{
			"hosts", "hosts of its own", "Delete one", maxCount, false,
			func(a *Amounts) *int64 { return &a.Hosts }, func(o *Override) **int64 { return &o.Hosts },
		},
		{
			"templates", "templates", "Delete one", maxCount, false,
			func(a *Amounts) *int64 { return &a.Templates }, func(o *Override) **int64 { return &o.Templates },
		},
	}
}

func (s setting) wire(v int64) any {
	if s.millis {
		return float64(v) / 1000
	}
	return v
}

func (s setting) text(v int64) string {
	if s.millis {
		return strconv.FormatFloat(float64(v)/1000, 'f', -1, 64)
	}
	return strconv.FormatInt(v, 10)
}

// Limits are a team's limits and what it has.
type Limits struct {
	Limit Amounts
	Used  Amounts
}

// With returns the limits with what o overrides.
func (a Amounts) With(o Override) Amounts {
	for _, s := range settings() {
		if v := *s.set(&o); v != nil {
			*s.of(&a) = *v
		}
	}
	return a
}

// Allow refuses what would take the team over a limit, naming the first one,
// its value, the use, and where it is set. What is not wanted is not looked at:
// a team that is over a limit can still make other things.
func (l Limits) Allow(team id.Team, want Want) error {
	for _, s := range settings() {
		wanted, used, limit := *s.of(&want), *s.of(&l.Used), *s.of(&l.Limit)
		if wanted <= 0 || used+wanted <= limit {
			continue
		}
		return errs.Exhausted("quota_exceeded", fmt.Sprintf(
			"Your team may have %s %s and has %s; this asks for %s more. %s, or ask a platform admin to raise %s (PUT /v1/admin/teams/%s/limits).",
			s.text(limit), s.things, s.text(used), s.text(wanted), s.remedy, s.field, team)).
			With("limit", s.field).With("value", s.wire(limit)).With("used", s.wire(used)).With("wanted", s.wire(wanted)).
			With("setting", fmt.Sprintf("PUT /v1/admin/teams/%s/limits %s", team, s.field))
	}
	return nil
}

// Validate checks what an admin asks for.
func (o Override) Validate() error {
	for _, s := range settings() {
		if v := *s.set(&o); v != nil && (*v < 0 || *v > s.max) {
			return errs.Field(s.field, fmt.Sprintf("%s must be between 0 and %s; leave it out for the default.", s.field, s.text(s.max)))
		}
	}
	return nil
}

// facts are what was set, as the audit trail shows it.
func (o Override) facts() map[string]any {
	out := map[string]any{}
	for _, s := range settings() {
		if v := *s.set(&o); v != nil {
			out[s.field] = s.wire(*v)
		}
	}
	return out
}

// Equal reports whether both set the same.
func (o Override) Equal(other Override) bool {
	for _, s := range settings() {
		a, b := *s.set(&o), *s.set(&other)
		if (a == nil) != (b == nil) || a != nil && *a != *b {
			return false
		}
	}
	return true
}
