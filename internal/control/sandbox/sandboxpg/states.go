package sandboxpg

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// settleState makes the state of an operation that ended ready or failed, in
// the transaction of the transition.
func (s *Store) settleState(ctx context.Context, tx pgx.Tx, t sandbox.Transition) error {
	if t.From == sandbox.StatusMissing && t.To == sandbox.StatusRunning {
		// Whatever was being saved when contact was lost was not.
		return s.q.FailUnmade(ctx, tx, sqlcgen.FailUnmadeParams{SandboxID: t.ID, Error: "Contact to the host was lost before this was complete."})
	}
	if t.Making.IsZero() {
		return nil
	}
	if t.Saved == nil {
		if err := s.q.FailState(ctx, tx, sqlcgen.FailStateParams{ID: t.Making, Error: t.Message}); err != nil {
			return err
		}
		return s.q.LetGo(ctx, tx, t.Making.UUID())
	}
	if err := s.q.Supplant(ctx, tx, t.Making); err != nil {
		return err
	}
	features := t.Saved.CPUFeatures
	if features == nil {
		features = []string{}
	}
	if _, err := s.q.CompleteState(ctx, tx, sqlcgen.CompleteStateParams{
		ID: t.Making, EngineVersion: t.Saved.EngineVersion, CpuFeatures: features, Memory: t.Saved.Memory,
		SizeBytes: t.Saved.SizeBytes, Digest: t.Saved.Digest,
	}); err != nil {
		return err
	}
	return s.q.LetGo(ctx, tx, t.Making.UUID())
}

var errForeignState = errs.Conflict("foreign_state", "The host names a saved state that is not this sandbox's.")

// Adopt implements sandbox.Store.
func (s *Store) Adopt(ctx context.Context, a sandbox.Adopt) (sandbox.Sandbox, error) {
	x, held := a.Row, a.Held
	if !x.Status.May(sandbox.StatusPaused) {
		return x, sandbox.InvalidState(x)
	}
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) (err error) {
		if _, err := s.q.LockSandbox(ctx, tx, x.ID); err != nil {
			return err
		}
		if err := s.adoptState(ctx, tx, x.ID, held, a.EnvSealed); err != nil {
			return err
		}
		t := sandbox.Transition{
			ID: x.ID, From: x.Status, To: sandbox.StatusPaused, Incarnation: x.Incarnation, PausedReason: a.Reason, Outcome: a.Outcome,
			Making: held.ID, Saved: &held.Saved, Newest: true,
			Event: "paused", EventData: map[string]any{"reason": a.Reason, "seen_by": "inventory", "snapshot_id": held.ID, "size_bytes": held.SizeBytes},
		}
		if !a.KeepDeadline {
			// It was told to pause; only the answer was lost.
			t.From = sandbox.StatusPausing
		}
		if out, err = s.apply(ctx, tx, t, []sandbox.Status{x.Status}); err != nil {
			return err
		}
		if err := s.q.FailUnmade(ctx, tx, sqlcgen.FailUnmadeParams{SandboxID: x.ID, Error: "Contact to the host was lost before this was complete."}); err != nil {
			return err
		}
		if err := s.q.Supplant(ctx, tx, held.ID); err != nil || a.Audit == nil {
			return err
		}
		return auditpg.Append(ctx, tx, *a.Audit)
	})
	return out, err
}

// adoptState makes a state ready that the sandbox's host says it has.
func (s *Store) adoptState(ctx context.Context, tx pgx.Tx, x id.Sandbox, held sandbox.Held, envSealed []byte) error {
	features := held.CPUFeatures
	if features == nil {
		features = []string{}
	}
	_, err := s.q.AdoptState(ctx, tx, sqlcgen.AdoptStateParams{
		ID: held.ID, SandboxID: x, EngineVersion: held.EngineVersion, CpuFeatures: features, Memory: held.Memory,
		EnvSealed: envSealed, SizeBytes: held.SizeBytes, Digest: held.Digest, CreatedBy: "host",
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return errForeignState
	}
	return err
}

// Recover implements sandbox.Store.
func (s *Store) Recover(ctx context.Context, x sandbox.Sandbox, held sandbox.Held, envSealed []byte) (bool, error) {
	recovered := false
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		recovered = false
		locked, err := s.q.LockSandbox(ctx, tx, x.ID)
		if err != nil {
			return err
		}
		unwanted, err := s.unwanted(ctx, tx, locked.Sandbox, held.ID)
		if err != nil {
			return err
		}
		if unwanted {
			return s.q.NotLost(ctx, tx, sqlcgen.NotLostParams{ID: x.ID, EndReason: sandbox.EndDeleted})
		}
		if err := s.adoptState(ctx, tx, x.ID, held, envSealed); err != nil {
			return err
		}
		_, err = s.q.RecoverFrom(ctx, tx, sqlcgen.RecoverFromParams{ID: x.ID, StateID: held.ID.UUID()})
		if errors.Is(err, pgx.ErrNoRows) {
			return sandbox.InvalidState(x) // it was not lost after all
		}
		if err != nil {
			return err
		}
		recovered = true
		return s.q.Supplant(ctx, tx, held.ID)
	})
	return recovered, err
}

// unwanted says that nobody wants a state of the sandbox any more. It locks the
// state, so that whoever gives it up comes before or after.
func (s *Store) unwanted(ctx context.Context, tx pgx.Tx, x sqlcgen.Sandbox, state id.Snapshot) (bool, error) {
	row, err := s.q.LockState(ctx, tx, state)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return false, err
	}
	given := row.Status == string(sandbox.StateDeleting) || row.Status == string(sandbox.StateDeleted)
	if err == nil && row.SandboxID == x.ID && given {
		return true, nil
	}
	return s.q.TeamDeleted(ctx, tx, x.TeamID)
}

// SetDeadline implements sandbox.Store.
func (s *Store) SetDeadline(ctx context.Context, team id.Team, x id.Sandbox, in time.Duration, laterOnly bool) (bool, error) {
	_, err := s.q.SetDeadline(ctx, s.pool, sqlcgen.SetDeadlineParams{ID: x, TeamID: team, Secs: in.Seconds(), LaterOnly: laterOnly})
	return some(err)
}

// Ping implements sandbox.Store.
func (s *Store) Ping(ctx context.Context, team id.Team, x id.Sandbox) (bool, error) {
	_, err := s.q.Ping(ctx, s.pool, sqlcgen.PingParams{ID: x, TeamID: team})
	return some(err)
}

// some tells whether a statement found its row.
func some(err error) (bool, error) {
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, pg.Map(err)
}

// Finished implements sandbox.Store.
func (s *Store) Finished(ctx context.Context, op id.Operation) (sandbox.Finished, error) {
	row, err := s.q.GetOperation(ctx, s.pool, op)
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Finished{}, sandbox.ErrNotFound
	}
	if err != nil {
		return sandbox.Finished{}, pg.Map(err)
	}
	out := sandbox.Finished{ID: row.ID, Kind: sandbox.OperationKind(row.Kind), Reason: row.Reason, Message: row.Message}
	if row.Status != "open" {
		out.Outcome = sandbox.Outcome(row.Status)
	}
	return out, nil
}

// OpenOperation implements sandbox.Store.
func (s *Store) OpenOperation(ctx context.Context, x id.Sandbox) (id.Operation, error) {
	op, err := s.q.OpenOperation(ctx, s.pool, x)
	if errors.Is(err, pgx.ErrNoRows) {
		return id.Operation{}, nil
	}
	return op, pg.Map(err)
}

// State implements sandbox.Store.
func (s *Store) State(ctx context.Context, state id.Snapshot) (sandbox.Snapshot, error) {
	row, err := s.q.GetState(ctx, s.pool, state)
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Snapshot{}, sandbox.ErrStateNotFound
	}
	if err != nil {
		return sandbox.Snapshot{}, pg.Map(err)
	}
	return placedState(row), nil
}

// NamedState implements sandbox.Store.
func (s *Store) NamedState(ctx context.Context, team id.Team, name string) (sandbox.Snapshot, error) {
	row, err := s.q.NamedState(ctx, s.pool, sqlcgen.NamedStateParams{TeamID: team, Name: name})
	if errors.Is(err, pgx.ErrNoRows) {
		return sandbox.Snapshot{}, sandbox.ErrStateNotFound
	}
	if err != nil {
		return sandbox.Snapshot{}, pg.Map(err)
	}
	return placedState(sqlcgen.GetStateRow(row)), nil
}

// ListStates implements sandbox.Store.
func (s *Store) ListStates(ctx context.Context, f sandbox.StateFilter, p page.Request) (page.Page[sandbox.Snapshot], error) {
	params := sqlcgen.ListStatesParams{TeamID: f.TeamID, Kind: string(f.Kind), MaxRows: int32(p.Limit + 1)}
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[sandbox.Snapshot]{}, err
		}
		if after.At.IsZero() {
			return page.Page[sandbox.Snapshot]{}, errJunkCursor
		}
		params.AfterAt, params.AfterID = &after.At, &after.ID
	}
	var out []sandbox.Snapshot
	if f.Kind == sandbox.StateSnapshot { // most of what teams have is not named
		rows, err := s.q.ListNamedStates(ctx, s.pool, sqlcgen.ListNamedStatesParams{
			TeamID: params.TeamID, AfterAt: params.AfterAt, AfterID: params.AfterID, MaxRows: params.MaxRows,
		})
		if err != nil {
			return page.Page[sandbox.Snapshot]{}, pg.Map(err)
		}
		for _, r := range rows {
			out = append(out, placedState(sqlcgen.GetStateRow(r)))
		}
	} else {
		rows, err := s.q.ListStates(ctx, s.pool, params)
		if err != nil {
			return page.Page[sandbox.Snapshot]{}, pg.Map(err)
		}
		for _, r := range rows {
			out = append(out, placedState(sqlcgen.GetStateRow(r)))
		}
	}
	return page.Of(out, p.Limit, func(x sandbox.Snapshot) any { return position{x.CreatedAt, x.ID.UUID()} })
}

var (
	errStateInUse  = errs.Conflict("snapshot_in_use", "A living sandbox has nothing else to go on from, or a template starts from it. Delete that instead.")
	errStateMaking = errs.Conflict("snapshot_not_ready", "The snapshot is still being made. Delete it when it is ready.")
)

// DeleteState implements sandbox.Store.
func (s *Store) DeleteState(ctx context.Context, team id.Team, state id.Snapshot, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		row, err := s.q.LockState(ctx, tx, state)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && (row.TeamID != team || row.Status == string(sandbox.StateDeleted)) {
			return sandbox.ErrStateNotFound
		}
		if err != nil {
			return err
		}
		switch sandbox.StateStatus(row.Status) {
		case sandbox.StateDeleting:
			return nil // asked for before
		case sandbox.StateCreating:
			return errStateMaking
		}
		used, err := s.q.LivesFrom(ctx, tx, state.UUID())
		if err != nil {
			return err
		}
		if used {
			return errStateInUse
		}
		if err := s.q.MarkDeleting(ctx, tx, state); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// LeftStates implements sandbox.Store.
func (s *Store) LeftStates(ctx context.Context, limit int) ([]sandbox.LeftState, error) {
	rows, err := s.q.LeftStates(ctx, s.pool, int32(limit))
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.LeftState, len(rows))
	for i, r := range rows {
		out[i] = sandbox.LeftState{ID: r.ID, Team: r.TeamID}
		if r.Name != nil {
			out[i].Name = *r.Name
		}
	}
	return out, nil
}

// DropForks implements sandbox.Store.
func (s *Store) DropForks(ctx context.Context) error { return pg.Map(s.q.DropForks(ctx, s.pool)) }

// PruneStates implements sandbox.Store.
func (s *Store) PruneStates(ctx context.Context, retention time.Duration, limit int) (int, error) {
	n, err := s.q.PruneStates(ctx, s.pool, sqlcgen.PruneStatesParams{RetentionSecs: retention.Seconds(), MaxRows: int32(limit)})
	return int(n), pg.Map(err)
}

// looked is how long ago a host in reach must have been looked at for anything to
// be ended there without being asked for. It is several looks long.
const looked = 2 * time.Minute

// Expired implements sandbox.Store.
func (s *Store) Expired(ctx context.Context, limit int) ([]sandbox.Expired, error) {
	rows, err := s.q.ExpiredSandboxes(ctx, s.pool, sqlcgen.ExpiredSandboxesParams{LookedSecs: looked.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Expired, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Expired{ID: r.ID, OnTimeout: sandbox.OnTimeout(r.OnTimeout)}
	}
	return out, nil
}

// TakeIdle implements sandbox.Store.
func (s *Store) TakeIdle(ctx context.Context, lease time.Duration, limit int) ([]sandbox.Sandbox, error) {
	rows, err := s.q.TakeIdle(ctx, s.pool, sqlcgen.TakeIdleParams{LeaseSecs: lease.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Sandbox, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Sandbox{
			ID: r.ID, TeamID: r.TeamID, Host: host.Ref{ID: r.HostID, Address: r.Address, Online: true}, Incarnation: r.Incarnation,
			IdleTimeoutSec: widen(r.IdleTimeoutSec), IdleCheckAt: r.IdleCheckAt,
		}
	}
	return out, nil
}

// PostponeIdle implements sandbox.Store.
func (s *Store) PostponeIdle(ctx context.Context, x id.Sandbox, leased time.Time, in time.Duration) error {
	return pg.Map(s.q.PostponeIdle(ctx, s.pool, sqlcgen.PostponeIdleParams{ID: x, Leased: leased, Secs: in.Seconds()}))
}

// CheckpointsDue implements sandbox.Store.
func (s *Store) CheckpointsDue(ctx context.Context, limit int) ([]id.Sandbox, error) {
	out, err := s.q.CheckpointsDue(ctx, s.pool, int32(limit))
	return out, pg.Map(err)
}

// PausedTooLong implements sandbox.Store.
func (s *Store) PausedTooLong(ctx context.Context, limit int) ([]id.Sandbox, error) {
	out, err := s.q.PausedTooLong(ctx, s.pool, sqlcgen.PausedTooLongParams{LimitSecs: int32(sandbox.PausedLimit.Seconds()), LookedSecs: looked.Seconds(), MaxRows: int32(limit)})
	return out, pg.Map(err)
}

// MissingTooLong implements sandbox.Store.
func (s *Store) MissingTooLong(ctx context.Context, limit int) ([]sandbox.Key, error) {
	rows, err := s.q.MissingTooLong(ctx, s.pool, sqlcgen.MissingTooLongParams{LimitSecs: sandbox.MissingLimit.Seconds(), MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Key, len(rows))
	for i, r := range rows {
		out[i] = sandbox.Key{Sandbox: r.ID, Incarnation: r.Incarnation}
	}
	return out, nil
}

// InsertSamples implements sandbox.Store.
func (s *Store) InsertSamples(ctx context.Context, from id.Host, samples []sandbox.Sample) error {
	p := sqlcgen.InsertSamplesParams{HostID: from, Ids: make([]uuid.UUID, 0, len(samples))}
	for _, x := range samples {
		p.Ids, p.Ats, p.Cpus = append(p.Ids, x.Sandbox.UUID()), append(p.Ats, x.At), append(p.Cpus, int32(x.CPUMillis))
		p.Memories, p.Disks, p.Processes = append(p.Memories, x.MemoryBytes), append(p.Disks, x.DiskBytes), append(p.Processes, int32(x.Processes))
	}
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.InsertSamples(ctx, tx, p); err != nil {
			return err
		}
		told := make(map[id.Sandbox]int64, len(samples))
		for _, x := range samples {
			told[x.Sandbox] = 0
		}
		return s.claimed(ctx, tx, from, told)
	})
}

// Samples implements sandbox.Store.
func (s *Store) Samples(ctx context.Context, x id.Sandbox, since time.Time, limit int) ([]sandbox.Figures, error) {
	rows, err := s.q.ListSamples(ctx, s.pool, sqlcgen.ListSamplesParams{SandboxID: x, Since: since, MaxRows: int32(limit)})
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]sandbox.Figures, len(rows))
	for i, r := range rows {
		out[len(rows)-1-i] = sandbox.Figures{
			At: r.At, CPUMillis: int64(r.CpuMillis), MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes, Processes: int64(r.Processes),
		}
	}
	return out, nil
}

// PruneSamples implements sandbox.Store.
func (s *Store) PruneSamples(ctx context.Context, limit int) (int, error) {
	n, err := s.q.PruneSamples(ctx, s.pool, int32(limit))
	return int(n), pg.Map(err)
}

// StrayStates implements sandbox.Store.
func (s *Store) StrayStates(ctx context.Context, h id.Host, held []sandbox.Held) ([]id.Snapshot, error) {
	p := sqlcgen.StrayStatesParams{HostID: h}
	for _, st := range held {
		p.States, p.Sandboxes = append(p.States, st.ID.UUID()), append(p.Sandboxes, st.Sandbox.UUID())
	}
	rows, err := s.q.StrayStates(ctx, s.pool, p)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]id.Snapshot, len(rows))
	for i, u := range rows {
		out[i] = id.Snapshot{}.FromUUID(u)
	}
	return out, nil
}
