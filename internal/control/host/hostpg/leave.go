package hostpg

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg/sqlcgen"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

// maxLosses is how much of what would be lost a refusal names.
const maxLosses = 100

// Update implements host.Store.
func (s *Store) Update(ctx context.Context, h id.Host, u host.Update, entry audit.Entry) (host.Host, error) {
	params := sqlcgen.UpdateHostParams{ID: h, Name: u.Name, Provider: u.Provider, AvailabilityZone: u.AvailabilityZone}
	if u.Labels != nil {
		labels, err := json.Marshal(u.Labels)
		if err != nil {
			return host.Host{}, err
		}
		params.Labels = labels
	}
	return s.change(ctx, h, entry, func(ctx context.Context, tx pgx.Tx) error { return s.q.UpdateHost(ctx, tx, params) })
}

// Drain implements host.Store.
func (s *Store) Drain(ctx context.Context, h id.Host, within *time.Duration, entry audit.Entry) (host.Host, error) {
	params := sqlcgen.DrainHostParams{ID: h}
	if within != nil {
		secs := within.Seconds()
		params.DeadlineSecs = &secs
	}
	return s.change(ctx, h, entry, func(ctx context.Context, tx pgx.Tx) error { return s.q.DrainHost(ctx, tx, params) })
}

// Undrain implements host.Store.
func (s *Store) Undrain(ctx context.Context, h id.Host, entry audit.Entry) (host.Host, error) {
	return s.change(ctx, h, entry, func(ctx context.Context, tx pgx.Tx) error { return s.q.UndrainHost(ctx, tx, h) })
}

// change does one thing to a host that is there, records it, and reads the host
// as it then is.
func (s *Store) change(ctx context.Context, h id.Host, entry audit.Entry, do func(context.Context, pgx.Tx) error) (host.Host, error) {
	var out host.Host
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := s.lock(ctx, tx, h); err != nil {
			return err
		}
		if err := do(ctx, tx); err != nil {
			return err
		}
		var err error
		if out, err = s.get(ctx, tx, h); err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
	return out, err
}

// awaited is how long nothing is started after a restore for the sake of a host
// that does not come.
const awaited = 10 * time.Minute

// AwaitLooks begins the time in which hosts are waited for after a restore. It does
// nothing at other times, and is called before a server serves.
func (s *Store) AwaitLooks(ctx context.Context) error {
	return pg.Map(s.q.AwaitLooks(ctx, s.pool, awaited.Seconds()))
}

// Losses implements host.Store.
func (s *Store) Losses(ctx context.Context, h id.Host, p page.Request) (host.Losses, error) {
	out, err := sandboxpg.LostWithHost(ctx, s.pool, h, p)
	return out, pg.Map(err)
}

// Delete implements host.Store. Whoever places something on the host has locked
// it before: it is either here to be found, or finds no host.
func (s *Store) Delete(ctx context.Context, d host.Deletion) (host.Departure, error) {
	var out host.Departure
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := s.q.DeletingAlone(ctx, tx); err != nil {
			return err
		}
		h, err := s.lock(ctx, tx, d.Host)
		if err != nil {
			return err
		}
		out = host.Departure{Host: host.Ref{
			ID: h.ID, Address: h.Address, Generation: h.Generation, Online: host.Status(h.Status).Reachable(),
		}}
		if !d.Force {
			lost, err := sandboxpg.LostWithHost(ctx, tx, d.Host, page.Request{Limit: maxLosses})
			if err != nil {
				return err
			}
			if lost.Sandboxes+lost.Snapshots > 0 {
				return refused(lost)
			}
			engines, err := s.q.EnginesOnlyOn(ctx, tx, d.Host)
			if err != nil {
				return err
			}
			if len(engines) > 0 {
				return engineAlone(engines[0])
			}
		}
		var entries []audit.Entry
		if out.Ended, entries, err = sandboxpg.EndOnHost(ctx, tx, d.Host, d.By); err != nil {
			return err
		}
		for _, revoke := range []func(context.Context, sqlcgen.DBTX, id.Host) error{s.q.RevokeTokens, s.q.RevokeFamilies, s.q.DeleteHost} {
			if err := revoke(ctx, tx, d.Host); err != nil {
				return err
			}
		}
		return auditpg.Append(ctx, tx, append(entries, d.Audit(len(out.Ended)))...)
	})
	return out, err
}

// loss is how a refusal names what would be lost.
type loss struct {
	Kind   string `json:"kind"`
	ID     string `json:"id"`
	TeamID string `json:"team_id"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

func refused(lost host.Losses) error {
	items := make([]loss, len(lost.Items))
	for i, l := range lost.Items {
		items[i] = loss{Kind: l.Kind, ID: l.WireID(), TeamID: l.Team.String(), Name: l.Name, Status: l.Status}
	}
	return errs.Conflict("has_active_sandboxes", "Sandboxes or snapshots would be lost with this host. End them, or delete it with force=true; "+
		"GET /v1/hosts/{id}/delete-preview lists all of them.").
		With("items", items).With("sandboxes", lost.Sandboxes).With("snapshots", lost.Snapshots)
}

func engineAlone(b sqlcgen.EnginesOnlyOnRow) error {
	return errs.Conflict("engine_only_here", fmt.Sprintf("Saved states need %s %s, which no other host has and the store not yet. "+
		"It is brought there within minutes while the host is in reach. With force=true the host is deleted all the same, and they start from their disks alone.", b.Engine, b.Version)).
		With("engine", b.Engine).With("engine_version", b.Version)
}

// Standings says how hosts are now.
func (s *Store) Standings(ctx context.Context, hosts []id.Host) ([]host.Standing, error) {
	ids := make([]uuid.UUID, len(hosts))
	for i, h := range hosts {
		ids[i] = h.UUID()
	}
	rows, err := s.q.Standings(ctx, s.pool, ids)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]host.Standing, len(rows))
	for i, r := range rows {
		out[i] = host.Standing{ID: r.ID, Revoked: r.Revoked, Deleted: r.Deleted}
		if r.RegisteredAt != nil {
			out[i].RegisteredAt = *r.RegisteredAt
		}
	}
	return out, nil
}
