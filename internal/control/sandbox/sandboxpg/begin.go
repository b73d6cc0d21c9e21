package sandboxpg

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Begin implements sandbox.Store. A host is locked before a sandbox, as in every
// transaction that locks both.
func (s *Store) Begin(ctx context.Context, b sandbox.Begin) (sandbox.Sandbox, sandbox.Operation, bool, error) {
	var out sandbox.Sandbox
	var op sandbox.Operation
	var begun bool
	var g ground
	if b.Place != nil && b.Want.Hosts == nil || len(b.Want.Hosts) > 1 {
		var err error
		if g, err = s.survey(ctx, b.Row.TeamID); err != nil {
			return out, op, false, err
		}
	}
	begin := func() error {
		return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) (err error) {
			if out, op, begun, err = s.begin(ctx, tx, b, g); err != nil || !begun || b.Audit == nil {
				return err
			}
			return auditpg.Append(ctx, tx, *b.Audit)
		})
	}
	err := begin()
	if errors.Is(err, errCrowded) {
		g.all = true // from the start: what was locked on the way is let go first
		err = begin()
	}
	return out, op, begun && err == nil, err
}

// BeginSnapshot implements sandbox.Store.
func (s *Store) BeginSnapshot(ctx context.Context, b sandbox.Begin) (sandbox.SnapshotReceipt, sandbox.Sandbox, sandbox.Operation, error) {
	receipt := sandbox.SnapshotReceipt{Snapshot: b.Making.ID, Sandbox: b.ID, Operation: b.Operation}
	var out sandbox.Sandbox
	var op sandbox.Operation
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			// How large it will be nobody knows yet: a team at its limit makes none.
			err := quotapg.Check(ctx, tx, *b.Team, quota.Want{StoredMB: 1})
			if err != nil {
				return nil, err
			}
			if out, op, _, err = s.begin(ctx, tx, b, ground{}); err != nil {
				return nil, err
			}
			if !b.Making.Overwrite {
				// After the insert: whoever was making one of this name is done by now.
				taken, err := s.q.NameTaken(ctx, tx, sqlcgen.NameTakenParams{TeamID: out.TeamID, Name: b.Making.Name})
				if err != nil {
					return nil, err
				}
				if taken {
					return nil, sandbox.ErrNameTaken
				}
			}
			return receipt, auditpg.Append(ctx, tx, *b.Audit)
		})
	})
	return receipt, out, op, err
}

func (s *Store) begin(ctx context.Context, tx pgx.Tx, b sandbox.Begin, g ground) (sandbox.Sandbox, sandbox.Operation, bool, error) {
	var none sandbox.Operation
	var to host.Ref
	if b.Place != nil {
		var err error
		if to, err = s.reserve(ctx, tx, b, g); err != nil {
			return sandbox.Sandbox{}, none, false, err
		}
	}
	x, due, err := s.lock(ctx, tx, b)
	if err != nil || !due {
		return x, none, false, err
	}
	if b.Place != nil && (x.Host.ID != b.Row.Host.ID || x.StateID == nil || *x.StateID != b.Params.State) {
		return x, none, false, sandbox.InvalidState(x) // it is not what it was placed for
	}
	if x.Status != b.From {
		if b.Due != sandbox.DueAlways {
			return x, none, false, nil
		}
		return x, none, false, sandbox.InvalidState(x)
	}
	if b.Making != nil {
		if err := s.insertState(ctx, tx, b); err != nil {
			return x, none, false, err
		}
	}
	params, err := json.Marshal(b.Params)
	if err != nil {
		return x, none, false, err
	}
	data, err := object(b.EventData)
	if err != nil {
		return x, none, false, err
	}
	var step int64
	if b.NewIncarnation {
		step = 1
	}
	owner, secs := leaseArgs(b.Lease)
	if b.Place != nil {
		if data, err = placedAt(b.EventData, x.Host.ID, to.ID); err != nil {
			return x, none, false, err
		}
	}
	row, err := s.q.BeginOperation(ctx, tx, sqlcgen.BeginOperationParams{
		ToHost: hostUUID(to.ID), FromHost: x.Host.ID, ID: b.ID, FromStatus: string(b.From), ToStatus: string(b.To), Step: step, OperationID: b.Operation, Kind: string(b.Kind), Params: params,
		LeaseOwner: owner, LeaseSecs: secs, LimitSecs: sandbox.TransitionLimit.Seconds(), Event: b.Event, EventData: data,
	})
	if err != nil {
		return x, none, false, err
	}
	out, err := fromRow(moved(sqlcgen.TransitionRow(row)), "", "")
	out.Host, out.StateBytes, out.StateStatus, out.StateStored, out.StateCopies = x.Host, x.StateBytes, x.StateStatus, x.StateStored, x.StateCopies
	if !to.ID.IsZero() {
		out.Host = to
	}
	return out, sandbox.Operation{
		ID: b.Operation, SandboxID: x.ID, TeamID: x.TeamID, Kind: b.Kind, Params: b.Params, Incarnation: out.Incarnation, Attempts: 1,
		CreatedAt: out.UpdatedAt, DeadlineAt: out.UpdatedAt.Add(sandbox.TransitionLimit),
	}, err == nil, err
}

// lock locks the sandbox and says whether what the sweep saw still holds.
func (s *Store) lock(ctx context.Context, tx pgx.Tx, b sandbox.Begin) (sandbox.Sandbox, bool, error) {
	locked, err := s.q.LockSandbox(ctx, tx, b.ID)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && b.Team != nil && locked.Sandbox.TeamID != *b.Team {
		return sandbox.Sandbox{}, false, sandbox.ErrNotFound
	}
	if err != nil {
		return sandbox.Sandbox{}, false, err
	}
	x, err := lockedRow(locked)
	if err != nil {
		return x, false, err
	}
	switch b.Due {
	case sandbox.DueDeadline:
		return x, locked.Expired, nil
	case sandbox.DueIdle:
		return x, x.IdleCheckAt != nil && x.IdleCheckAt.Equal(b.IdleRef), nil
	case sandbox.DueCheckpoint:
		return x, locked.CheckpointDue, nil
	case sandbox.DueDrain:
		return x, locked.Draining, nil
	default:
		return x, true, nil
	}
}

// reserve finds the host on which a sandbox goes on: its own before all where
// that has its state, else another one that may. The host is locked when it
// returns.
func (s *Store) reserve(ctx context.Context, tx pgx.Tx, b sandbox.Begin, g ground) (host.Ref, error) {
	own := b.Row.Host
	// Its disk is reserved on its own host all the time; it is not asked for twice.
	place := func(views []scheduler.HostView) (scheduler.Decision, error) {
		views = slices.Clone(views)
		for i := range views {
			if views[i].ID == own.ID {
				views[i].ReservedDiskMB -= b.Row.DiskMB
			}
		}
		return b.Place(views)
	}
	n := sandbox.NewSandbox{Sandbox: b.Row, Want: b.Want}
	d, address, err := s.homeOr(ctx, tx, n, own, 1, place, g)
	return host.Ref{ID: d.HostID, Address: address, Online: true}, err
}

// homeOr places so many like n together: at home where that holds their state and
// has room, else wherever they may be.
func (s *Store) homeOr(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, home host.Ref, count int64, place sandbox.Placer, g ground) (scheduler.Decision, string, error) {
	only := len(n.Want.Hosts) == 1 && n.Want.Hosts[0] == home.ID
	held := false
	if !g.all && (only || slices.Contains(n.Want.Holders, home.ID)) {
		views, addresses, err := s.own(ctx, tx, home.ID)
		if err != nil {
			return scheduler.Decision{}, "", err
		}
		held = len(views) > 0
		if !held && home.Online && only {
			return scheduler.Decision{}, "", sandbox.ErrDraining
		}
		d, err := place(views)
		if err == nil || only {
			return d, addresses[d.HostID], err
		}
	}
	d, address, err := s.placed(ctx, tx, n, place, g, held)
	if err == nil {
		for range count - 1 { // the first was counted
			s.pools.took(g.pool, d.HostID, n)
		}
	}
	return d, address, err
}

// placedAt is what is told of where a sandbox goes on.
func placedAt(told map[string]any, from, to id.Host) (json.RawMessage, error) {
	data := maps.Clone(told)
	if data == nil {
		data = map[string]any{}
	}
	data["host"] = to.String()
	if from != to {
		data["from_host"] = from.String()
	}
	return object(data)
}

func hostUUID(h id.Host) *uuid.UUID {
	if h.IsZero() {
		return nil
	}
	u := h.UUID()
	return &u
}

func (s *Store) insertState(ctx context.Context, tx pgx.Tx, b sandbox.Begin) error {
	n := b.Making
	var name *string
	if n.Name != "" {
		name = &n.Name
	}
	err := s.q.InsertState(ctx, tx, sqlcgen.InsertStateParams{
		ID: n.ID, Kind: string(n.Kind), Name: name, Memory: n.Memory, EnvSealed: n.EnvSealed, SandboxID: b.ID,
		CreatedByType: n.CreatedByType, CreatedByID: n.CreatedByID, CreatedByName: n.CreatedByName,
	})
	if pg.Violates(err) == "snapshots_name_next" {
		return sandbox.ErrNameTaken
	}
	return err
}

// holdBack is when a copy looks again by itself whether it can start; the end
// of its parent's operation tells it at once.
const holdBack = 10 * time.Second

// Fork implements sandbox.Store.
func (s *Store) Fork(ctx context.Context, f sandbox.Fork) (sandbox.ForkReceipt, sandbox.Sandbox, error) {
	var receipt sandbox.ForkReceipt
	for _, c := range f.Children {
		receipt.Children = append(receipt.Children, c.Sandbox.ID)
	}
	var out sandbox.Sandbox
	var g ground
	var err error
	if f.Begin.From == sandbox.StatusPaused {
		if g, err = s.survey(ctx, f.Begin.Row.TeamID); err != nil {
			return receipt, out, err
		}
	}
	fork := func() error {
		return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
			return idempotencypg.Once(ctx, tx, func() (any, error) {
				var entries []audit.Entry
				err := checkQuota(ctx, tx, f.Children...)
				if err != nil {
					return nil, err
				}
				if out, entries, err = s.fork(ctx, tx, f, g); err != nil {
					return nil, err
				}
				return receipt, auditpg.Append(ctx, tx, entries...)
			})
		})
	}
	if err = fork(); errors.Is(err, errCrowded) {
		g.all = true
		err = fork()
	}
	return receipt, out, err
}

func (s *Store) fork(ctx context.Context, tx pgx.Tx, f sandbox.Fork, g ground) (sandbox.Sandbox, []audit.Entry, error) {
	x := f.Begin.Row
	// There is room for all copies on one host, or for none.
	decision, address, err := s.homeOr(ctx, tx, f.Children[0], x.Host, int64(len(f.Children)), f.Place, g)
	if err != nil {
		return x, nil, err
	}
	if f.Begin.From == sandbox.StatusPaused {
		x, err = s.forkPaused(ctx, tx, f)
	} else {
		x, _, _, err = s.begin(ctx, tx, f.Begin, ground{})
	}
	if err != nil {
		return x, nil, err
	}
	if f.Begin.From != sandbox.StatusPaused && x.Host.ID != decision.HostID {
		return x, nil, sandbox.InvalidState(x)
	}
	ids := make([]uuid.UUID, len(f.Children))
	for i, c := range f.Children {
		ids[i] = c.Sandbox.ID.UUID()
		if _, err := s.insertPending(ctx, tx, c, sandbox.Lease{}, decision, address); err != nil {
			return x, nil, err
		}
	}
	if f.Begin.From != sandbox.StatusPaused {
		if err := s.q.HoldBack(ctx, tx, sqlcgen.HoldBackParams{Secs: holdBack.Seconds(), Ids: ids}); err != nil {
			return x, nil, err
		}
	}
	return x, f.Audit(decision.HostID), nil
}

// forkPaused copies from the state that is there; the parent stays as it is.
func (s *Store) forkPaused(ctx context.Context, tx pgx.Tx, f sandbox.Fork) (sandbox.Sandbox, error) {
	x, _, err := s.lock(ctx, tx, f.Begin)
	if err != nil {
		return x, err
	}
	from := f.Children[0].Sandbox.FromState
	if x.Status != sandbox.StatusPaused || x.StateID == nil || *x.StateID != *from {
		return x, sandbox.InvalidState(x)
	}
	state, err := s.q.ShareState(ctx, tx, *from)
	if err != nil {
		return x, err
	}
	if state.Status != string(sandbox.StateReady) {
		return x, sandbox.StateGone(stateOf(state))
	}
	data, err := object(f.Begin.EventData)
	if err != nil {
		return x, err
	}
	return x, s.q.InsertEvent(ctx, tx, sqlcgen.InsertEventParams{SandboxID: x.ID, Kind: f.Begin.Event, Data: data})
}
