// Package sandboxpg keeps sandboxes, their operations and events in PostgreSQL.
package sandboxpg

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

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
	pool  *pgxpool.Pool
	q     *sqlcgen.Queries
	pools *pools
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New(), pools: newPools()} }

// CreatePending implements sandbox.Store.
func (s *Store) CreatePending(ctx context.Context, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer, entry func(id.Host) audit.Entry) (sandbox.Sandbox, error) {
	g, err := s.survey(ctx, n.Sandbox.TeamID)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	out, err := s.create(ctx, n, lease, place, entry, g)
	if errors.Is(err, errCrowded) {
		// From the start: what was locked on the way is let go first.
		g.all = true
		return s.create(ctx, n, lease, place, entry, g)
	}
	return out, err
}

func (s *Store) create(ctx context.Context, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer, entry func(id.Host) audit.Entry, g ground) (sandbox.Sandbox, error) {
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			made, err := s.createPending(ctx, tx, n, lease, place, g)
			if err != nil {
				return nil, err
			}
			out = made
			return sandbox.Receipt{Sandbox: made.ID, Operation: n.Operation.ID}, auditpg.Append(ctx, tx, entry(made.Host.ID))
		})
	})
	return out, err
}

func (s *Store) createPending(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, lease sandbox.Lease, place sandbox.Placer, g ground) (sandbox.Sandbox, error) {
	if err := checkQuota(ctx, tx, n); err != nil {
		return sandbox.Sandbox{}, err
	}
	decision, address, err := s.placed(ctx, tx, n, place, g, false)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	if n.Sandbox.FromState != nil {
		state, err := s.q.ShareState(ctx, tx, *n.Sandbox.FromState)
		if errors.Is(err, pgx.ErrNoRows) {
			return sandbox.Sandbox{}, sandbox.ErrStateNotFound
		}
		if err != nil {
			return sandbox.Sandbox{}, err
		}
		if state.Status != string(sandbox.StateReady) {
			return sandbox.Sandbox{}, sandbox.StateGone(stateOf(state))
		}
	}
	return s.insertPending(ctx, tx, n, lease, decision, address)
}

// checkQuota asks whether the team may have these too, before anything else is
// locked.
func checkQuota(ctx context.Context, tx pgx.Tx, made ...sandbox.NewSandbox) error {
	var want quota.Want
	for _, n := range made {
		want.Sandboxes++
		want.CPUMillis += n.Sandbox.CPUMillis
		want.MemoryMB += n.Sandbox.MemoryMB
		want.DiskMB += n.Sandbox.DiskMB
	}
	return quotapg.Check(ctx, tx, made[0].Sandbox.TeamID, want)
}

func (s *Store) insertPending(ctx context.Context, tx pgx.Tx, n sandbox.NewSandbox, lease sandbox.Lease, decision scheduler.Decision, address string) (sandbox.Sandbox, error) {
	x := n.Sandbox
	metadata, err := object(x.Metadata)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	fresh, err := s.q.NoteImage(ctx, tx, sqlcgen.NoteImageParams{HostID: decision.HostID, ImageDigest: x.ImageDigest})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	n.Operation.Params.ImageNew = len(fresh) > 0 && fresh[0]
	params, err := json.Marshal(n.Operation.Params)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	why := map[string]any{"template": x.TemplateName, "host": decision.HostID.String(), "engine": decision.Engine}
	if x.FromState != nil {
		why["snapshot_id"] = x.FromState.String()
	}
	data, err := object(why)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	owner, secs := leaseArgs(lease)
	row, err := s.q.InsertPending(ctx, tx, sqlcgen.InsertPendingParams{
		ID: x.ID, TeamID: x.TeamID, HostID: decision.HostID, TemplateID: x.TemplateID, TemplateName: x.TemplateName,
		ImageDigest: x.ImageDigest, Engine: decision.Engine, EngineVersion: decision.EngineVersion,
		CpuMillis: int32(x.CPUMillis), MemoryMb: int32(x.MemoryMB), DiskMb: int32(x.DiskMB), Internet: x.Internet, EnvSealed: x.EnvSealed,
		Metadata: metadata, TimeoutSec: int32(x.TimeoutSec), OnTimeout: string(x.OnTimeout), IdleTimeoutSec: narrow(x.IdleTimeoutSec),
		CheckpointIntervalSec: narrow(x.CheckpointIntervalSec), PausedTtlSec: narrow(x.PausedTTLSec), AutoResume: x.AutoResume, FromSnapshotID: x.FromState, BuildID: x.BuildID, Params: params,
		CreatedByType: x.CreatedByType, CreatedByID: x.CreatedByID, CreatedByName: x.CreatedByName,
		OperationID: n.Operation.ID, LeaseOwner: owner, LeaseSecs: secs, LimitSecs: sandbox.CreateLimit.Seconds(), EventData: data,
	})
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	out, err := fromRow(row, address, string(host.StatusOnline))
	out.ImageNew = n.Operation.Params.ImageNew
	return out, err
}

// Apply implements sandbox.Store. Without an audit entry and a state it is one
// statement. A resume that failed leaves the sandbox on the host that has its
// state.
func (s *Store) Apply(ctx context.Context, t sandbox.Transition) (sandbox.Sandbox, error) {
	if !t.From.May(t.To) {
		return sandbox.Sandbox{}, fmt.Errorf("sandbox: the table has no transition from %s to %s", t.From, t.To)
	}
	returns := t.From == sandbox.StatusResuming && t.To == sandbox.StatusPaused
	if t.Audit == nil && t.Making.IsZero() && t.From != sandbox.StatusMissing && !returns {
		return s.apply(ctx, s.pool, t, []sandbox.Status{t.From})
	}
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		moved, err := s.apply(ctx, tx, t, []sandbox.Status{t.From})
		if err != nil {
			return err
		}
		out = moved
		if returns {
			if err := s.q.GoHome(ctx, tx, t.ID); err != nil {
				return err
			}
		}
		if err := s.settleState(ctx, tx, t); err != nil || t.Audit == nil {
			return err
		}
		return auditpg.Append(ctx, tx, *t.Audit)
	})
	return out, err
}

// Died implements sandbox.Store.
func (s *Store) Died(ctx context.Context, x id.Sandbox, incarnation int64, reason string, data map[string]any) (sandbox.Sandbox, error) {
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) (err error) {
		out, err = s.died(ctx, tx, x, incarnation, reason, data)
		return err
	})
	return out, err
}

// died first locks the row: an operation that began while the statement waited
// for it would be invisible to the statement, and stay open.
func (s *Store) died(ctx context.Context, tx pgx.Tx, x id.Sandbox, incarnation int64, reason string, data map[string]any) (sandbox.Sandbox, error) {
	if _, err := s.q.LockSandbox(ctx, tx, x); errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Sandbox{}, sandbox.ErrNotFound
	} else if err != nil {
		return sandbox.Sandbox{}, err
	}
	event := map[string]any{"reason": reason}
	maps.Copy(event, data)
	return s.apply(ctx, tx, sandbox.Transition{
		ID: x, To: sandbox.StatusStopped, Incarnation: incarnation, EndReason: reason,
		Outcome: sandbox.OutcomeFailed, Reason: reason, Message: "The sandbox ended by itself.", Event: "stopped", EventData: event,
	}, sandbox.WithInstance())
}

func (s *Store) apply(ctx context.Context, db sqlcgen.DBTX, t sandbox.Transition, from []sandbox.Status) (sandbox.Sandbox, error) {
	data, err := object(t.EventData)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	params := sqlcgen.TransitionParams{
		ID: t.ID, FromStatuses: words(from), ToStatus: string(t.To), Incarnation: t.Incarnation, Ended: !t.To.Live(),
		EngineVersion: t.EngineVersion, EndReason: t.EndReason, Error: t.Error, PausedReason: t.PausedReason,
		NoDeadline: t.From == sandbox.StatusPausing && t.To == sandbox.StatusPaused, DeadlineSecs: seconds(t.Timeout), RetrySecs: seconds(t.Retry),
		Fresh:        t.To == sandbox.StatusRunning && (t.From == sandbox.StatusStarting || t.From == sandbox.StatusResuming || t.From == sandbox.StatusMissing),
		Checkpointed: t.From == sandbox.StatusSnapshotting && t.Newest, DropStates: t.DropStates,
		Outcome: string(t.Outcome), Reason: t.Reason, Message: t.Message, Event: t.Event, EventData: data,
	}
	if t.Newest && t.Saved != nil {
		params.NewestState = snapshotUUID(&t.Making)
	}
	row, err := s.q.Transition(ctx, db, params)
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
		if errors.Is(err, pgx.ErrNoRows) || err == nil && d.Team != nil && (locked.Sandbox.TeamID != *d.Team || locked.Sandbox.BuildID != nil) {
			return sandbox.ErrNotFound
		}
		if err != nil {
			return err
		}
		if out, err = lockedRow(locked); err != nil {
			return err
		}
		switch {
		case d.Expired && (out.Status != sandbox.StatusRunning && out.Status != sandbox.StatusPaused || !locked.Expired):
			return nil // it ended, or its deadline was moved
		case d.Paused && out.Status != sandbox.StatusPaused, d.Living && !out.Status.Live():
			return nil
		case out.Status == sandbox.StatusStopped && d.Team != nil && (out.StateStatus == sandbox.StateReady || out.EndReason == sandbox.EndLost):
			// Nobody wants what was left to recover from either, or may come back.
			if err := s.q.NotLost(ctx, tx, sqlcgen.NotLostParams{ID: out.ID, EndReason: d.EndReason}); err != nil {
				return err
			}
			if err := s.q.DropStatesOf(ctx, tx, []uuid.UUID{out.ID.UUID()}); err != nil {
				return err
			}
			return auditpg.Append(ctx, tx, d.Audit)
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
	}, []sandbox.Status{sandbox.StatusError})
	if err != nil {
		return err
	}
	row.Host = x.Host
	*x = row
	return auditpg.Append(ctx, tx, d.Audit)
}

func (s *Store) beginDelete(ctx context.Context, tx pgx.Tx, x *sandbox.Sandbox, d sandbox.Delete) (sandbox.Operation, error) {
	why := map[string]any{"reason": d.EndReason}
	if d.Detail != "" {
		why["message"] = d.Detail
	}
	data, err := object(why)
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
	return joined(row)
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
	out, err := joined(sqlcgen.GetSandboxRow{
		Sandbox: row.Sandbox, Address: row.Address, HostStatus: row.HostStatus, StateBytes: row.StateBytes, StateStatus: row.StateStatus,
		StateArtifact: row.StateArtifact, StateCopies: row.StateCopies, Progress: row.Progress,
	})
	return out, row.DefaultUser, err
}

func leaseArgs(l sandbox.Lease) (*uuid.UUID, *float64) {
	if l.Owner == uuid.Nil {
		return nil, nil
	}
	secs := l.For.Seconds()
	return &l.Owner, &secs
}

// seconds is nil for zero, which says nothing.
func seconds(d time.Duration) *float64 {
	if d == 0 {
		return nil
	}
	secs := d.Seconds()
	return &secs
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
