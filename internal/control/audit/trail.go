package audit

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Store reads the trail and lets its oldest part go.
type Store interface {
	// ListTeam returns a team's entries, newest first; without adminToo only
	// those of scope team. The cursor is the chain's sequence.
	ListTeam(ctx context.Context, team id.Team, adminToo bool, f Filter, p page.Request) (page.Page[Record], error)
	// ListAll returns the entries of all teams, newest first.
	ListAll(ctx context.Context, f Filter, p page.Request) (page.Page[Record], error)
	// Export calls begin with the point after which a team's chain begins, and
	// add with each entry, oldest first, and returns where the chain ends, all as
	// of one moment; else the first error of either. A team that never was is
	// errs.CodeNotFound.
	Export(ctx context.Context, team id.Team, begin func(anchor audittrail.Point) error, add func(Record) error) (end audittrail.Point, err error)

	// Prunable returns teams after one, in the order of their ids, that may have
	// entries older than keep; nil is before the first.
	Prunable(ctx context.Context, keep time.Duration, after *id.Team, limit int) ([]id.Team, error)
	// Prune removes at most limit of a team's oldest entries, those older than
	// keep, and appends entry in the same transaction when any went.
	Prune(ctx context.Context, team id.Team, keep time.Duration, limit int, entry func(removed, upTo int64) Entry) (removed int64, err error)

	// Record appends one entry that belongs to no change.
	Record(ctx context.Context, e Entry) error
	// AddRefusals adds to the counts of refusals.
	AddRefusals(ctx context.Context, counts []RefusalCount) error
	// DeleteOldRefusals removes some counts older than keep; fewer than are left
	// at once, so it is repeated.
	DeleteOldRefusals(ctx context.Context, keep time.Duration) (int64, error)
}

// Filter chooses entries; an empty list takes all.
type Filter struct {
	ResourceTypes []string
	Actions       []string
}

// Bounds of a filter.
const (
	maxFilterValues = 32
	maxFilterLength = 64
)

// NewFilter reads filters as they are sent: values repeated, comma separated or
// both.
func NewFilter(resourceTypes, actions []string) (Filter, error) {
	var f Filter
	var err error
	if f.ResourceTypes, err = values("resource_type", resourceTypes); err != nil {
		return Filter{}, err
	}
	f.Actions, err = values("action", actions)
	return f, err
}

func values(name string, sent []string) ([]string, error) {
	out := []string{}
	for _, part := range sent {
		for value := range strings.SplitSeq(part, ",") {
			value = strings.TrimSpace(value)
			if value == "" || slices.Contains(out, value) {
				continue
			}
			if len(out) == maxFilterValues || len(value) > maxFilterLength {
				return nil, errs.Field(name, fmt.Sprintf("%s takes at most %d values of at most %d characters.", name, maxFilterValues, maxFilterLength))
			}
			out = append(out, value)
		}
	}
	return out, nil
}

// Signer signs the heads of exports.
type Signer interface {
	// AuditSigner returns the name of the current key and what signs with it.
	AuditSigner() (kid string, sign func(message []byte) []byte)
}

// maxExports is how many exports one server writes at once; each holds a
// connection to the database.
const maxExports = 4

// Trail reads the trail for those who may.
type Trail struct {
	store  Store
	signer Signer
	clock  clock.Clock

	mu        sync.Mutex
	exporting map[id.Team]bool
}

// NewTrail returns the trail.
func NewTrail(store Store, signer Signer, clock clock.Clock) *Trail {
	return &Trail{store: store, signer: signer, clock: clock, exporting: map[id.Team]bool{}}
}

var (
	errRole = errs.Forbidden("role_required", "Only the team's owner and admins may export its trail.")
	// ErrBusy is told while too many exports are under way.
	ErrBusy = errs.Unavailable("busy", "An export of this team, or too many others, are under way. Try again.").After(5 * time.Second)
)

// List returns the entries of the caller's team: those of scope team for
// members, all for its owner and admins.
func (t *Trail) List(ctx context.Context, by principal.Principal, f Filter, p page.Request) (page.Page[Record], error) {
	team, err := by.Team()
	if err != nil {
		return page.Page[Record]{}, err
	}
	return t.store.ListTeam(ctx, team, leads(by), f, p)
}

// leads relies on the role that was read from the database for this very
// request.
func leads(by principal.Principal) bool {
	return by.Kind == principal.KindUser && (by.Role == principal.RoleOwner || by.Role == principal.RoleAdmin)
}

// ListAll returns the entries of all teams or of one, for platform admins.
func (t *Trail) ListAll(ctx context.Context, team *id.Team, f Filter, p page.Request) (page.Page[Record], error) {
	if team != nil {
		return t.store.ListTeam(ctx, *team, true, f, p)
	}
	return t.store.ListAll(ctx, f, p)
}

// Export writes the whole trail of the caller's team. An error after the first
// byte leaves a file that does not verify.
func (t *Trail) Export(ctx context.Context, by principal.Principal, out io.Writer) error {
	team, err := by.Team()
	if err != nil {
		return err
	}
	if !leads(by) {
		return errRole
	}
	return t.ExportOf(ctx, team, out)
}

// ExportOf writes the whole trail of a team, for platform admins.
func (t *Trail) ExportOf(ctx context.Context, team id.Team, out io.Writer) error {
	if !t.enter(team) {
		return ErrBusy
	}
	defer t.leave(team)
	var file *audittrail.Writer
	end, err := t.store.Export(ctx, team, func(anchor audittrail.Point) (err error) {
		file, err = audittrail.NewWriter(out, team, anchor)
		return err
	}, func(r Record) error { return file.Add(r) })
	if err != nil {
		return err
	}
	kid, sign := t.signer.AuditSigner()
	return file.Close(end, t.clock.Now(), kid, sign)
}

func (t *Trail) enter(team id.Team) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.exporting[team] || len(t.exporting) >= maxExports {
		return false
	}
	t.exporting[team] = true
	return true
}

func (t *Trail) leave(team id.Team) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.exporting, team)
}
