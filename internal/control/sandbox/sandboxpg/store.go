// Package sandboxpg keeps sandboxes, their operations and events in PostgreSQL.
package sandboxpg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

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

// Store implements sandbox.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// CreatePending implements sandbox.Store.
func (s *Store) CreatePending(ctx context.Context, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer, entry func(id.Host) audit.Entry) (sandbox.Sandbox, error) {
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			made, err := s.createPending(ctx, tx, n, lease, place)
			if err != nil {
				return nil, err
			}
			out = made
			return sandbox.Receipt{Sandbox: made.ID, Operation: n.Operation.ID}, auditpg.Append(ctx, tx, entry(made.Host.ID))
		})
	})
	return out, err
}

func (s *Store) createPending(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer) (sandbox.Sandbox, error) {
	if err := quotapg.Check(ctx, tx, n.Sandbox.TeamID, quota.Want{
		Sandboxes: 1, CPUMillis: n.Sandbox.CPUMillis, MemoryMB: n.Sandbox.MemoryMB, DiskMB: n.Sandbox.DiskMB,
	}); err != nil {
		return sandbox.Sandbox{}, err
	}
	views, addresses, err := s.candidates(ctx, tx, n.Sandbox.TeamID)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	decision, err := place(views)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	x := n.Sandbox
	metadata, err := object(x.Metadata)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	data, err := object(map[string]any{"template": x.TemplateName, "host": decision.HostID.String(), "engine": decision.Engine})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	owner, secs := leaseArgs(lease)
	row, err := s.q.InsertPending(ctx, tx, sqlcgen.InsertPendingParams{
		ID: x.ID, TeamID: x.TeamID, HostID: decision.HostID, TemplateID: x.TemplateID, TemplateName: x.TemplateName,
		ImageDigest: x.ImageDigest, Engine: decision.Engine, EngineVersion: decision.EngineVersion,
		CpuMillis: int32(x.CPUMillis), MemoryMb: int32(x.MemoryMB), DiskMb: int32(x.DiskMB), Internet: x.Internet, EnvSealed: x.EnvSealed,
		Metadata: metadata, TimeoutSec: int32(x.TimeoutSec), OnTimeout: string(x.OnTimeout), IdleTimeoutSec: narrow(x.IdleTimeoutSec),
		CreatedByType: x.CreatedByType, CreatedByID: x.CreatedByID, CreatedByName: x.CreatedByName,
		OperationID: n.Operation.ID, LeaseOwner: owner, LeaseSecs: secs, LimitSecs: sandbox.CreateLimit.Seconds(), EventData: data,
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	return fromRow(row, addresses[row.HostID], string(host.StatusOnline))
}

// candidates locks the team's hosts and reads what is reserved on them.
func (s *Store) candidates(ctx context.Context, tx pgx.Tx, team id.Team) ([]scheduler.HostView, map[id.Host]string, error) {
	rows, err := s.q.LockCandidateHosts(ctx, tx, team)
	if err != nil {
		return nil, nil, err
	}
	ids := make([]uuid.UUID, len(rows))
	for i, r := range rows {
		ids[i] = r.ID.UUID()
	}
	reserved, err := s.q.ReservedByHost(ctx, tx, sqlcgen.ReservedByHostParams{Compute: words(sandbox.ComputeStatuses()), Hosts: ids})
	if err != nil {
		return nil, nil, err
	}
	byHost := make(map[id.Host]sqlcgen.ReservedByHostRow, len(reserved))
	for _, r := range reserved {
		byHost[r.HostID] = r
	}
	views := make([]scheduler.HostView, len(rows))
	addresses := make(map[id.Host]string, len(rows))
	for i, r := range rows {
		engines, err := host.ParseEngines(r.Engines)
		if err != nil {
			return nil, nil, err
		}
		held := byHost[r.ID]
		views[i] = scheduler.HostView{
			ID: r.ID, Name: r.Name, Engines: engines, CPUCount: int64(r.CpuCount), MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes,
			ReservedCPUMillis: held.CpuMillis, ReservedMemoryMB: held.MemoryMb, ReservedDiskMB: held.DiskMb,
		}
		if r.LastPlacedAt != nil {
			views[i].LastPlacedAt = *r.LastPlacedAt
		}
		addresses[r.ID] = r.Address
	}
	return views, addresses, nil
}

// Apply implements sandbox.Store. Without an audit entry it is one statement.
func (s *Store) Apply(ctx context.Context, t sandbox.Transition) (sandbox.Sandbox, error) {
	if !t.From.May(t.To) {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox: the table has no transition from %s to %s", t.From, t.To)
	}
	if t.Audit == nil {
		return s.apply(ctx, s.pool, t)
	}
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		moved, err := s.apply(ctx, tx, t)
		if err != nil {
			return err
		}
		out = moved
		return auditpg.Append(ctx, tx, *t.Audit)
	})
	return out, err
}

func (s *Store) apply(ctx context.Context, db sqlcgen.DBTX, t sandbox.Transition) (sandbox.Sandbox, error) {
	data, err := object(t.EventData)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	row, err := s.q.Transition(ctx, db, sqlcgen.TransitionParams{
		ID: t.ID, FromStatus: string(t.From), ToStatus: string(t.To), Incarnation: t.Incarnation, Ended: !t.To.Live(),
		EngineVersion: t.EngineVersion, EndReason: t.EndReason, Error: t.Error,
		Outcome: string(t.Outcome), Reason: t.Reason, Message: t.Message, Event: t.Event, EventData: data,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		actual, err := s.get(ctx, db, t.ID)
		if err != nil {
			return sandbox.Sandbox{}, err
		}
		return sandbox.Sandbox{}, sandbox.InvalidState(actual)
	}
	if err != nil {
		return sandbox.Sandbox{}, pg.Map(err)
	}
	// Address and reachability of the host are not part of the row; whoever
	// needs them reads the sandbox again.
	return fromRow(moved(row), "", "")
}

// BeginDelete implements sandbox.Store.
func (s *Store) BeginDelete(ctx context.Context, d sandbox.Delete) (sandbox.Sandbox, sandbox.Operation, error) {
	var out sandbox.Sandbox
	var op sandbox.Operation
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		op = sandbox.Operation{}
		locked, err := s.q.LockSandbox(ctx, tx, d.ID)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && d.Team != nil && locked.Sandbox.TeamID != *d.Team {
			return sandbox.ErrNotFound
		}
		if err != nil {
			return err
		}
		if out, err = fromRow(locked.Sandbox, locked.Address, locked.HostStatus); err != nil {
			return err
		}
		switch {
		case d.Expired && (out.Status != sandbox.StatusRunning || !locked.Expired):
			return nil // it ended, or its deadline was moved
		case out.Status == sandbox.StatusError:
			return s.endFailed(ctx, tx, &out, d)
		case !out.Status.May(sandbox.StatusStopping):
			return nil
		}
		if op, err = s.beginDelete(ctx, tx, &out, d); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, d.Audit)
	})
	return out, op, err
}

// endFailed makes error stopped; nothing of it is left to be ended.
func (s *Store) endFailed(ctx context.Context, tx pgx.Tx, x *sandbox.Sandbox, d sandbox.Delete) error {
	row, err := s.apply(ctx, tx, sandbox.Transition{
		ID: x.ID, From: sandbox.StatusError, To: sandbox.StatusStopped, Incarnation: x.Incarnation, Event: "stopped",
	})
	if err != nil {
		return err
	}
	row.Host = x.Host
	*x = row
	return auditpg.Append(ctx, tx, d.Audit)
}

func (s *Store) beginDelete(ctx context.Context, tx pgx.Tx, x *sandbox.Sandbox, d sandbox.Delete) (sandbox.Operation, error) {
	data, err := object(map[string]any{"reason": d.EndReason})
	if err != nil {
		return sandbox.Operation{}, err
	}
	owner, secs := leaseArgs(d.Lease)
	row, err := s.q.BeginDelete(ctx, tx, sqlcgen.BeginDeleteParams{
		ID: d.ID, FromStatuses: words(sandbox.LiveStatuses()), EndReason: d.EndReason, OperationID: d.Operation,
		LeaseOwner: owner, LeaseSecs: secs, LimitSecs: sandbox.DeleteLimit.Seconds(), EventData: data,
	})
	if err != nil {
		return sandbox.Operation{}, err
	}
	stopping, err := fromRow(moved(sqlcgen.TransitionRow(row)), x.Host.Address, "")
	if err != nil {
		return sandbox.Operation{}, err
	}
	stopping.Host = x.Host
	*x = stopping
	return sandbox.Operation{
		ID: d.Operation, SandboxID: x.ID, TeamID: x.TeamID, Kind: sandbox.KindDelete, Incarnation: x.Incarnation, Attempts: 1,
		CreatedAt: x.UpdatedAt, DeadlineAt: x.UpdatedAt.Add(sandbox.DeleteLimit),
	}, nil
}

// Get implements sandbox.Store.
func (s *Store) Get(ctx context.Context, x id.Sandbox) (sandbox.Sandbox, error) {
	return s.get(ctx, s.pool, x)
}

func (s *Store) get(ctx context.Context, db sqlcgen.DBTX, x id.Sandbox) (sandbox.Sandbox, error) {
	row, err := s.q.GetSandbox(ctx, db, x)
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	}
	if err != nil {
		return sandbox.Sandbox{}, pg.Map(err)
	}
	return fromRow(row.Sandbox, row.Address, row.HostStatus)
}

// WithUser implements sandbox.Store.
func (s *Store) WithUser(ctx context.Context, x id.Sandbox) (sandbox.Sandbox, string, error) {
	row, err := s.q.GetSandboxWithUser(ctx, s.pool, x)
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Sandbox{}, "", sandbox.ErrNotFound
	}
	if err != nil {
		return sandbox.Sandbox{}, "", pg.Map(err)
	}
	out, err := fromRow(row.Sandbox, row.Address, row.HostStatus)
	return out, row.DefaultUser, err
}

func leaseArgs(l sandbox.Lease) (*uuid.UUID, *float64) {
	if l.Owner == uuid.Nil {
		return nil, nil
	}
	secs := l.For.Seconds()
	return &l.Owner, &secs
}

func narrow(v *int64) *int32 {
	if v == nil {
		return nil
	}
	n := int32(*v)
	return &n
}

func words(statuses []sandbox.Status) []string {
	out := make([]string, len(statuses))
	for i, s := range statuses {
		out[i] = string(s)
	}
	return out
}

// object renders a map as a JSON object, nil as {}.
func object[V any](m map[string]V) (json.RawMessage, error) {
	if len(m) == 0 {
		return json.RawMessage("{}"), nil
	}
	return json.Marshal(m)
}
