package sandboxpg

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/pg"
)

// BringBack implements sandbox.Store.
func (s *Store) BringBack(ctx context.Context, b sandbox.BringBack) (sandbox.Sandbox, error) {
	var out sandbox.Sandbox
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		// One that has ended counts again.
		ended, err := s.get(ctx, tx, b.ID)
		if err != nil {
			return err
		}
		if !ended.Status.Live() {
			want := quota.Want{Sandboxes: 1, CPUMillis: ended.CPUMillis, MemoryMB: ended.MemoryMB, DiskMB: ended.DiskMB}
			if err := quotapg.Check(ctx, tx, b.Team, want); err != nil {
				return err
			}
		}
		locked, err := s.q.LockSandbox(ctx, tx, b.ID)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && locked.Sandbox.TeamID != b.Team {
			return sandbox.ErrNotFound
		}
		if err != nil {
			return err
		}
		x, err := lockedRow(locked)
		if err != nil {
			return err
		}
		if !x.Status.May(sandbox.StatusPaused) || x.Status != sandbox.StatusMissing && x.Status != sandbox.StatusStopped || x.Status.Live() != ended.Status.Live() {
			return sandbox.InvalidState(x)
		}
		if x.StateID == nil || x.StateStatus != sandbox.StateReady {
			return sandbox.NoState(x)
		}
		if _, err := s.q.ShareState(ctx, tx, *x.StateID); err != nil {
			return err
		}
		later, err := s.q.LaterLives(ctx, tx, b.ID)
		if err != nil {
			return err
		}
		if len(later) > 0 {
			return sandbox.LaterLife(later)
		}
		awaited, err := s.q.Awaited(ctx, tx, b.ID)
		if err != nil {
			return err
		}
		if awaited {
			return sandbox.ErrJustRestored
		}
		there, err := s.q.Recoverable(ctx, tx, b.ID)
		if err != nil {
			return err
		}
		to := x.Host.ID
		switch {
		case len(there) > 0:
			to = there[0]
		case !x.StateStored:
			return sandbox.NoState(x)
		}
		data, err := object(map[string]any{"snapshot_id": x.StateID.String(), "from_host": x.Host.ID.String(), "was": string(x.Status)})
		if err != nil {
			return err
		}
		row, err := s.q.BringBack(ctx, tx, sqlcgen.BringBackParams{ID: b.ID, HostID: to, Reason: sandbox.PausedRecovered, EventData: data})
		if err != nil {
			return err
		}
		if err := s.q.FailUnmade(ctx, tx, sqlcgen.FailUnmadeParams{SandboxID: b.ID, Error: "The sandbox was recovered from an older state before this was complete."}); err != nil {
			return err
		}
		if out, err = fromRow(moved(sqlcgen.TransitionRow(row)), "", ""); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, b.Audit)
	})
	return out, err
}
