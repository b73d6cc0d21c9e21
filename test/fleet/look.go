package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/id"
)

// Row is what the database says of a sandbox.
type Row struct {
	ID          id.Sandbox
	Host        string // as the API names it
	Status      sandbox.Status
	EndReason   string
	Incarnation int64
	State       *id.Snapshot
	CPUMillis   int64
	MemoryMB    int64
	DiskMB      int64
	Operations  int // open ones
}

// Look is what the database says and what the hosts really hold, at about the
// same time.
type Look struct {
	Rows map[id.Sandbox]Row
	Held map[*Host]sandbox.Inventory
	// Guests are the processes on each host that run guests.
	Guests map[*Host]int
	// Copies are where the database says that saved states are; Stored are those
	// that are in the store as well.
	Copies map[Copy]bool
	Stored map[id.Snapshot]bool
}

// Copy is a saved state on a host.
type Copy struct {
	State id.Snapshot
	Host  string
}

// Rows reads all sandboxes, also those that have ended.
func (f *Fleet) Rows(ctx context.Context) (map[id.Sandbox]Row, error) {
	rows, err := f.pool.Query(ctx, `
		SELECT s.id, s.host_id, s.status, s.end_reason, s.incarnation, s.state_id, s.cpu_millis, s.memory_mb, s.disk_mb,
			(SELECT count(*) FROM operations o WHERE o.sandbox_id = s.id AND o.status = 'open')
		FROM sandboxes s`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[id.Sandbox]Row{}
	for rows.Next() {
		var (
			r   Row
			hst id.Host
		)
		if err := rows.Scan(&r.ID, &hst, &r.Status, &r.EndReason, &r.Incarnation, &r.State, &r.CPUMillis, &r.MemoryMB, &r.DiskMB, &r.Operations); err != nil {
			return nil, err
		}
		r.Host = hst.String()
		all[r.ID] = r
	}
	return all, rows.Err()
}

// Inventory asks a host's agent what it holds, as a server would.
func (f *Fleet) Inventory(ctx context.Context, h *Host) (sandbox.Inventory, error) {
	who, err := id.ParseHost(h.ID)
	if err != nil {
		return sandbox.Inventory{}, err
	}
	return hostlink.NewAgents(f.links).Inventory(ctx, host.Ref{ID: who, Address: h.address()})
}

// link makes the kit's own way to the hosts.
func (f *Fleet) link() {
	f.links = hostlink.NewHostClientPool(hostlink.Identity{
		Certificate: func(context.Context) (*tls.Certificate, error) { return f.keys.IssueServer(nil, nil) },
		Roots:       f.keys.CAPool(),
	})
}

// Look looks at everything. Every host must be reachable.
func (f *Fleet) Look(ctx context.Context) (Look, error) {
	l := Look{Held: map[*Host]sandbox.Inventory{}, Guests: map[*Host]int{}, Copies: map[Copy]bool{}, Stored: map[id.Snapshot]bool{}}
	var err error
	if l.Rows, err = f.Rows(ctx); err != nil {
		return l, err
	}
	if err := f.copies(ctx, l); err != nil {
		return l, err
	}
	for _, h := range f.Hosts {
		if l.Held[h], err = f.Inventory(ctx, h); err != nil {
			return l, fmt.Errorf("%s: %w", h.Name, err)
		}
		if l.Guests[h], err = h.Guests(); err != nil {
			return l, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return l, nil
}

func (f *Fleet) copies(ctx context.Context, l Look) error {
	rows, err := f.pool.Query(ctx, `
		SELECT p.id, c.host_id, coalesce(a.status = 'ready', false)
		FROM snapshots p LEFT JOIN state_copies c ON c.snapshot_id = p.id AND c.ready_at IS NOT NULL LEFT JOIN artifacts a ON a.id = p.artifact_id
		WHERE p.status = 'ready'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			state  id.Snapshot
			hst    *id.Host
			stored bool
		)
		if err := rows.Scan(&state, &hst, &stored); err != nil {
			return err
		}
		if hst != nil {
			l.Copies[Copy{state, hst.String()}] = true
		}
		if stored {
			l.Stored[state] = true
		}
	}
	return rows.Err()
}

// Guests counts the processes that run guests on a host.
func (h *Host) Guests() (n int, err error) {
	traces, err := h.Traces()
	for _, line := range traces {
		if strings.HasPrefix(line, "process ") && strings.Contains(line, "runsc-sandbox") {
			n++
		}
	}
	return n, err
}

// Sound looks at everything and names what does not hold: nothing moves, a
// sandbox is on at most one host, what is desired is there, what is reserved is
// what rows say.
func (f *Fleet) Sound(ctx context.Context) error {
	l, err := f.Look(ctx)
	if err != nil {
		return err
	}
	if moving := l.Moving(); len(moving) > 0 {
		return fmt.Errorf("not at rest: %s", strings.Join(moving, "; "))
	}
	return errors.Join(l.OneHost(), l.Observed(), f.Reserved(ctx, l))
}

// Moving names what is not at rest: it may be anything.
func (l Look) Moving() (found []string) {
	for _, r := range l.Rows {
		switch r.Status {
		case sandbox.StatusRunning, sandbox.StatusPaused, sandbox.StatusStopped, sandbox.StatusError:
			if r.Operations == 0 {
				continue
			}
		}
		found = append(found, fmt.Sprintf("%s is %s with %d open operations", r.ID, r.Status, r.Operations))
	}
	slices.Sort(found)
	return found
}

// OneHost: a sandbox exists on no other host than its row's.
func (l Look) OneHost() error {
	var errs []error
	for h, held := range l.Held {
		for _, in := range held.Instances {
			if r, ok := l.Rows[in.Sandbox]; !ok || r.Host != h.ID {
				errs = append(errs, fmt.Errorf("%s holds %s of incarnation %d, %s, whose row says host %q", h.Name, in.Sandbox, in.Incarnation, in.Phase, r.Host))
			}
		}
	}
	return errors.Join(errs...)
}

// Observed: what is desired is there, in the incarnation that is desired, and
// nothing else; and as many guests run as rows say.
func (l Look) Observed() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	type key struct {
		host    string
		sandbox id.Sandbox
	}
	there := map[key]sandbox.Instance{}
	held := map[Copy]bool{}
	running := map[string]int{}
	for h, inventory := range l.Held {
		for _, in := range inventory.Instances {
			there[key{h.ID, in.Sandbox}] = in
		}
		for _, s := range inventory.States {
			held[Copy{s.ID, h.ID}] = true
		}
	}
	for _, r := range l.Rows {
		in, ok := there[key{r.Host, r.ID}]
		switch {
		case r.Status == sandbox.StatusRunning:
			running[r.Host]++
			if !ok || in.Phase != sandbox.PhaseRunning || in.Incarnation != r.Incarnation {
				add("%s runs in incarnation %d by its row; its host holds %+v", r.ID, r.Incarnation, in)
			}
		case r.Status == sandbox.StatusPaused:
			if r.State == nil || !held[Copy{*r.State, r.Host}] && !l.Stored[*r.State] {
				add("%s is paused by its row, and its state is neither on its host nor in the store", r.ID)
			}
			if ok && in.Phase != sandbox.PhasePaused {
				add("%s is paused by its row; its host holds %+v", r.ID, in)
			}
		case ok && !r.Status.Live():
			add("%s is %s by its row; its host holds %+v", r.ID, r.Status, in)
		}
	}
	for c := range held {
		if !l.Copies[c] {
			add("host %s keeps the state %s of which no row says so", c.Host, c.State)
		}
	}
	for c := range l.Copies {
		if !held[c] {
			add("host %s does not have the state %s that it should have by its row", c.Host, c.State)
		}
	}
	for h := range l.Held {
		if l.Guests[h] != running[h.ID] {
			add("%s runs %d guests, its rows say %d", h.Name, l.Guests[h], running[h.ID])
		}
	}
	return errors.Join(errs...)
}

// Reserved: no host is promised more than it may be, which of CPUs and memory is
// several times what there is, and what the API calls reserved is the sum over the
// live rows.
func (f *Fleet) Reserved(ctx context.Context, l Look) error {
	var errs []error
	over := scheduler.DefaultOvercommit()
	for _, h := range f.Hosts {
		var sum Resources
		for _, r := range l.Rows {
			if r.Host != h.ID || !r.Status.Live() {
				continue
			}
			if r.Status != sandbox.StatusPaused {
				sum.CPUMillis += r.CPUMillis
				sum.MemoryMB += r.MemoryMB
			}
			sum.DiskMB += r.DiskMB
		}
		now, err := h.State(ctx)
		if err != nil {
			return err
		}
		if now.Reserved != sum {
			errs = append(errs, fmt.Errorf("%s has %+v reserved, its rows sum up to %+v", h.Name, now.Reserved, sum))
		}
		c := now.Capacity
		if float64(sum.CPUMillis) > over.CPU*float64(c.CPUMillis) || float64(sum.MemoryMB) > over.Memory*float64(c.MemoryMB) || sum.DiskMB > c.DiskMB {
			errs = append(errs, fmt.Errorf("%s has room for %+v and promised %+v", h.Name, c, sum))
		}
	}
	return errors.Join(errs...)
}

// Audited: each accepted change has its entry, by sandbox and action, and the
// entries of a team are numbered without a gap.
func (f *Fleet) Audited(ctx context.Context, accepted map[string]map[string]int) error {
	rows, err := f.pool.Query(ctx, `SELECT resource_id, action, count(*) FROM audit_logs WHERE resource_type = 'sandbox' GROUP BY 1, 2`)
	if err != nil {
		return err
	}
	defer rows.Close()
	found := map[string]map[string]int{}
	for rows.Next() {
		var resource, action string
		var n int
		if err := rows.Scan(&resource, &action, &n); err != nil {
			return err
		}
		if found[resource] == nil {
			found[resource] = map[string]int{}
		}
		found[resource][action] = n
	}
	if err := rows.Err(); err != nil {
		return err
	}
	var errs []error
	for box, actions := range accepted {
		for action, n := range actions {
			if got := found[box][action]; got < n {
				errs = append(errs, fmt.Errorf("%s: %d times %s was accepted, %d entries", box, n, action, got))
			}
		}
		if n := found[box]["create"]; n != 1 {
			errs = append(errs, fmt.Errorf("%s: %d entries of its create", box, n))
		}
	}
	var gaps int
	err = f.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT max(seq) - min(seq) + 1 - count(*) AS gap FROM audit_logs GROUP BY team_id) t WHERE gap <> 0`).Scan(&gaps)
	if gaps > 0 {
		errs = append(errs, fmt.Errorf("the entries of %d teams have gaps", gaps))
	}
	return errors.Join(append(errs, err)...)
}

// AuditCount counts the entries of the audit trail that name a reason.
func (f *Fleet) AuditCount(ctx context.Context, reason string) (n int, err error) {
	err = f.pool.QueryRow(ctx, `SELECT count(*) FROM audit_logs WHERE metadata ->> 'reason' = $1`, reason).Scan(&n)
	return n, err
}

// NothingLeft: a host on which nothing lives holds nothing.
func (h *Host) NothingLeft() error {
	traces, err := h.Traces()
	if err != nil {
		return err
	}
	states, err := h.States()
	if err != nil {
		return err
	}
	if left := append(traces, states...); len(left) > 0 {
		return fmt.Errorf("left on %s:\n%s", h.Name, strings.Join(left, "\n"))
	}
	return nil
}
