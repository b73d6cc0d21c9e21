// Package hostpg keeps hosts and their credentials in PostgreSQL.
package hostpg

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg/sqlcgen"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/control/quota/quotapg"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg"
)

const (
	// maxHosts bounds a pass over all hosts.
	maxHosts = 10_000
	// maxBuilders bounds the choice of who builds.
	maxBuilders = 100
)

// Store implements host.Store.
type Store struct {
	pool *pgxpool.Pool
	q    *sqlcgen.Queries
}

// New uses the pool.
func New(pool *pgxpool.Pool) *Store { return &Store{pool: pool, q: sqlcgen.New()} }

// Create implements host.Store.
func (s *Store) Create(ctx context.Context, h host.Host, by *id.User, token host.NewToken, entry audit.Entry, receipt func(host.Host, time.Time) host.Created) (host.Created, error) {
	var out host.Created
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if h.Type == host.TypeBYOC {
				if _, err := s.q.ByocTeam(ctx, tx, h.TeamID); errors.Is(err, pgx.ErrNoRows) {
					return nil, errs.Forbidden("not_byoc", "This team may not bring its own hosts. Ask a platform admin to switch that on.")
				} else if err != nil {
					return nil, err
				}
				if err := quotapg.Check(ctx, tx, h.TeamID, quota.Want{Hosts: 1}); err != nil {
					return nil, err
				}
			}
			labels, err := json.Marshal(h.Labels)
			if err != nil {
				return nil, err
			}
			if h.Labels == nil {
				labels = []byte("{}")
			}
			row, err := s.q.InsertHost(ctx, tx, sqlcgen.InsertHostParams{
				ID: h.ID, TeamID: h.TeamID, Type: string(h.Type), Name: h.Name, Provider: h.Provider, AvailabilityZone: h.AvailabilityZone,
				Labels: labels, CreatedBy: by,
			})
			if err != nil {
				return nil, err
			}
			made, err := fromRow(row)
			if err != nil {
				return nil, err
			}
			out, err = s.issue(ctx, tx, made, token, entry, receipt)
			return out, err
		})
	})
	return out, err
}

// NewToken implements host.Store.
func (s *Store) NewToken(ctx context.Context, h id.Host, token host.NewToken, entry audit.Entry, receipt func(host.Host, time.Time) host.Created) (host.Created, error) {
	var out host.Created
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (any, error) {
			if _, err := s.lock(ctx, tx, h); err != nil {
				return nil, err
			}
			known, err := s.get(ctx, tx, h)
			if err != nil {
				return nil, err
			}
			if err := s.q.RevokeTokens(ctx, tx, h); err != nil {
				return nil, err
			}
			out, err = s.issue(ctx, tx, known, token, entry, receipt)
			return out, err
		})
	})
	return out, err
}

func (s *Store) issue(ctx context.Context, tx pgx.Tx, h host.Host, token host.NewToken, entry audit.Entry, receipt func(host.Host, time.Time) host.Created) (host.Created, error) {
	expires, err := s.q.InsertToken(ctx, tx, sqlcgen.InsertTokenParams{
		ID: token.ID, HostID: h.ID, TokenHash: token.Hash, LifetimeSecs: host.RegistrationLifetime.Seconds(),
	})
	if err != nil {
		return host.Created{}, err
	}
	return receipt(h, expires), auditpg.Append(ctx, tx, entry)
}

// Register implements host.Store.
func (s *Store) Register(ctx context.Context, r host.Registration) (host.Joined, error) {
	var out host.Joined
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		owner, err := s.q.HostOfToken(ctx, tx, r.TokenHash)
		if errors.Is(err, pgx.ErrNoRows) {
			return host.ErrToken
		}
		if err != nil {
			return err
		}
		if _, err := s.lockOwn(ctx, tx, owner); err != nil {
			return err
		}
		t, err := s.q.LockToken(ctx, tx, sqlcgen.LockTokenParams{TokenHash: r.TokenHash, RepeatSecs: host.RepeatWindow.Seconds()})
		if errors.Is(err, pgx.ErrNoRows) || err == nil && !t.Valid {
			return host.ErrToken
		}
		if err != nil {
			return err
		}
		token := t.HostRegistrationToken
		if token.UsedAt != nil {
			if out, err = s.repeat(ctx, tx, t, r); err != nil {
				return err
			}
			return nil
		}
		if err := s.q.UseToken(ctx, tx, sqlcgen.UseTokenParams{ID: token.ID, UsedBy: r.KeyHash}); err != nil {
			return err
		}
		out, err = s.join(ctx, tx, token.HostID, r)
		return err
	})
	return out, err
}

// repeat answers the key that spent the token, for a while.
func (s *Store) repeat(ctx context.Context, tx pgx.Tx, t sqlcgen.LockTokenRow, r host.Registration) (host.Joined, error) {
	if !t.Repeatable || !bytes.Equal(t.HostRegistrationToken.UsedBy, r.KeyHash) {
		return host.Joined{}, host.ErrToken
	}
	f, err := s.q.FamilyOfKey(ctx, tx, sqlcgen.FamilyOfKeyParams{HostID: t.HostRegistrationToken.HostID, PublicKey: r.PublicKey})
	if errors.Is(err, pgx.ErrNoRows) {
		return host.Joined{}, host.ErrToken
	}
	if err != nil {
		return host.Joined{}, err
	}
	return host.Joined{Host: f.HostID, Family: f.ID, Counter: f.Counter, Expires: f.ExpiresAt}, nil
}

func (s *Store) join(ctx context.Context, tx pgx.Tx, h id.Host, r host.Registration) (host.Joined, error) {
	f := r.Facts
	row, err := s.q.RegisterHost(ctx, tx, sqlcgen.RegisterHostParams{
		ID: h, Placeholder: host.Unnamed, Name: host.NameOf(f.Hostname), Arch: f.Arch, CpuCount: int32(f.CPUs), MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		Kernel: f.Kernel, AgentVersion: f.Version, Engines: host.EnginesJSON(f.Engines), Address: f.Address,
	})
	if err != nil {
		return host.Joined{}, err
	}
	if err := s.q.RevokeFamilies(ctx, tx, h); err != nil {
		return host.Joined{}, err
	}
	expires, err := s.q.InsertFamily(ctx, tx, sqlcgen.InsertFamilyParams{
		ID: r.Family, HostID: h, PublicKey: r.PublicKey, TokenHash: r.RefreshHash, LifetimeSecs: host.RefreshLifetime.Seconds(),
	})
	if err != nil {
		return host.Joined{}, err
	}
	return host.Joined{Host: h, Family: r.Family, Counter: 1, Expires: expires}, auditpg.Append(ctx, tx, r.Audit(row.TeamID, h))
}

// Rotate implements host.Store.
func (s *Store) Rotate(ctx context.Context, r host.Rotation) (host.Joined, error) {
	var out host.Joined
	refused := false
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		owner, err := s.q.HostOfFamily(ctx, tx, r.Family)
		if errors.Is(err, pgx.ErrNoRows) {
			return host.ErrRefreshToken
		}
		if err != nil {
			return err
		}
		h, err := s.lockOwn(ctx, tx, owner)
		if err != nil {
			return err
		}
		row, err := s.q.LockFamily(ctx, tx, r.Family)
		if errors.Is(err, pgx.ErrNoRows) || err == nil && !row.Valid {
			return host.ErrRefreshToken
		}
		if err != nil {
			return err
		}
		f := row.HostRefreshToken
		ours := bytes.Equal(f.PublicKey, r.PublicKey)
		refused = false
		switch {
		case ours && (r.Counter > f.Counter || bytes.Equal(f.TokenHash, r.TokenHash)):
			// One that is newer than all we know of was issued by us all the same:
			// this database is an older one that was restored, and catches up.
			expires, err := s.q.RotateFamily(ctx, tx, sqlcgen.RotateFamilyParams{
				ID: f.ID, Presented: r.Counter, PresentedHash: r.TokenHash, TokenHash: r.Next, LifetimeSecs: host.RefreshLifetime.Seconds(),
			})
			out = host.Joined{Host: f.HostID, Family: f.ID, Counter: r.Counter + 1, Expires: expires}
			return err
		case ours && bytes.Equal(f.PreviousHash, r.TokenHash):
			// The answer was lost, or the call made several times: the same
			// successor again.
			out = host.Joined{Host: f.HostID, Family: f.ID, Counter: f.Counter, Expires: f.ExpiresAt}
			return nil
		}
		// One older than a confirmed successor, or another's key. The refusal is
		// recorded, so the transaction commits.
		refused = true
		if ours {
			if err := s.q.RevokeFamily(ctx, tx, f.ID); err != nil {
				return err
			}
			if err := s.q.TakeOut(ctx, tx, sqlcgen.TakeOutParams{ID: f.HostID, Reason: r.Reason}); err != nil {
				return err
			}
		}
		return auditpg.Append(ctx, tx, r.Audit(h.TeamID, f.HostID, ours))
	})
	if err == nil && refused {
		err = host.ErrRefreshToken
	}
	return out, err
}

// Alive implements host.Store.
func (s *Store) Alive(ctx context.Context, family id.HostRefreshToken) (id.Host, error) {
	row, err := s.q.FamilyAlive(ctx, s.pool, family)
	if errors.Is(err, pgx.ErrNoRows) {
		return id.Host{}, host.ErrHostToken
	}
	switch {
	case err != nil:
		return id.Host{}, pg.Map(err)
	case row.Deleted:
		return id.Host{}, &host.DeletedError{Host: row.HostID}
	case !row.Alive:
		return id.Host{}, host.ErrHostToken
	}
	return row.HostID, nil
}

// lock locks a host that is there for whoever wants to change it.
func (s *Store) lock(ctx context.Context, tx pgx.Tx, h id.Host) (sqlcgen.LockHostRow, error) {
	row, err := s.q.LockHost(ctx, tx, h)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && row.Deleted {
		return row, host.ErrNotFound
	}
	return row, err
}

// lockOwn is lock for the host's own calls.
func (s *Store) lockOwn(ctx context.Context, tx pgx.Tx, h id.Host) (sqlcgen.LockHostRow, error) {
	row, err := s.q.LockHost(ctx, tx, h)
	if err == nil && row.Deleted {
		return row, &host.DeletedError{Host: h}
	}
	return row, err
}

// Heartbeat implements host.Store.
func (s *Store) Heartbeat(ctx context.Context, b host.Beat) (host.Host, error) {
	load, err := json.Marshal(b.Load)
	if err != nil {
		return host.Host{}, err
	}
	var engines []byte
	if b.Engines != nil {
		engines = host.EnginesJSON(b.Engines)
	}
	row, err := s.q.Heartbeat(ctx, s.pool, sqlcgen.HeartbeatParams{
		ID: b.Host, Family: b.Family, AgentVersion: b.Version, Load: load, Address: b.Address, Generation: b.Generation, Engines: engines,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		owner, err := s.Alive(ctx, b.Family)
		if err != nil {
			return host.Host{}, err
		}
		if owner != b.Host {
			return host.Host{}, host.ErrHostToken
		}
		return host.Host{}, errs.Conflict("stale_generation", "A later start of this agent has reported already. Two agents must not share a host's credentials.")
	}
	if err != nil {
		return host.Host{}, pg.Map(err)
	}
	return host.Host{
		ID: row.ID, TeamID: row.TeamID, Name: row.Name, Status: host.Status(row.Status), Generation: row.Generation,
		Facts: host.Facts{Address: row.Address},
	}, nil
}

// MarkOnline implements host.Store.
func (s *Store) MarkOnline(ctx context.Context, h host.Host, entry audit.Entry) error {
	return pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		_, err := s.q.MarkOnline(ctx, tx, sqlcgen.MarkOnlineParams{ID: h.ID, Generation: h.Generation, Address: h.Facts.Address})
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return auditpg.Append(ctx, tx, entry)
	})
}

// SetReason implements host.Store.
func (s *Store) SetReason(ctx context.Context, h id.Host, reason string) error {
	return pg.Map(s.q.SetReason(ctx, s.pool, sqlcgen.SetReasonParams{ID: h, Reason: reason}))
}

// MarkStale implements host.Store.
func (s *Store) MarkStale(ctx context.Context, after time.Duration, reason string, entry func(host.Host) audit.Entry) ([]host.Host, error) {
	var out []host.Host
	err := pg.InTx(ctx, s.pool, func(ctx context.Context, tx pgx.Tx) error {
		out = out[:0]
		var entries []audit.Entry
		rows, err := s.q.MarkStale(ctx, tx, sqlcgen.MarkStaleParams{Reason: reason, AfterSecs: after.Seconds()})
		if err != nil {
			return err
		}
		for _, r := range rows {
			h := host.Host{ID: r.ID, TeamID: r.TeamID, Name: r.Name, Status: host.StatusUnreachable}
			entries = append(entries, entry(h))
			out = append(out, h)
		}
		return auditpg.Append(ctx, tx, entries...)
	})
	return out, err
}

// ListActiveHosts implements host.Store.
func (s *Store) ListActiveHosts(ctx context.Context) ([]host.Ref, error) {
	rows, err := s.q.ListActiveHosts(ctx, s.pool, maxHosts)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]host.Ref, len(rows))
	for i, r := range rows {
		out[i] = host.Ref{ID: r.ID, Address: r.Address, Generation: r.Generation, Online: true}
	}
	return out, nil
}

// ListBuilders implements host.Store.
func (s *Store) ListBuilders(ctx context.Context) ([]host.Ref, error) {
	rows, err := s.q.ListBuilders(ctx, s.pool, maxBuilders)
	if err != nil {
		return nil, pg.Map(err)
	}
	out := make([]host.Ref, len(rows))
	for i, r := range rows {
		out[i] = host.Ref{ID: r.ID, Address: r.Address, Generation: r.Generation, Online: true}
	}
	return out, nil
}

// Get implements host.Store.
func (s *Store) Get(ctx context.Context, h id.Host) (host.Host, error) { return s.get(ctx, s.pool, h) }

func (s *Store) get(ctx context.Context, db sqlcgen.DBTX, h id.Host) (host.Host, error) {
	u := h.UUID()
	rows, err := s.q.ListHosts(ctx, db, sqlcgen.ListHostsParams{ID: &u, MaxRows: 1, DrainReason: sandbox.PausedDrain, Compute: computeStatuses()})
	if err != nil {
		return host.Host{}, pg.Map(err)
	}
	if len(rows) == 0 {
		return host.Host{}, host.ErrNotFound
	}
	return seen(rows[0])
}

func computeStatuses() []string {
	statuses := sandbox.ComputeStatuses()
	out := make([]string, len(statuses))
	for i, st := range statuses {
		out[i] = string(st)
	}
	return out
}

// errJunkCursor is a cursor that decodes and names no position.
var errJunkCursor = errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.")

type position struct {
	At time.Time `json:"at"`
	ID uuid.UUID `json:"id"`
}

// List implements host.Store.
func (s *Store) List(ctx context.Context, team *id.Team, p page.Request) (page.Page[host.Host], error) {
	params := sqlcgen.ListHostsParams{MaxRows: int32(p.Limit + 1), DrainReason: sandbox.PausedDrain, Compute: computeStatuses()}
	if team != nil {
		u := team.UUID()
		params.TeamID = &u
	}
	if p.Cursor != "" {
		var after position
		if err := page.Decode(p.Cursor, &after); err != nil {
			return page.Page[host.Host]{}, err
		}
		if after.At.IsZero() {
			return page.Page[host.Host]{}, errJunkCursor
		}
		params.AfterAt, params.AfterID = &after.At, &after.ID
	}
	rows, err := s.q.ListHosts(ctx, s.pool, params)
	if err != nil {
		return page.Page[host.Host]{}, pg.Map(err)
	}
	out := make([]host.Host, len(rows))
	for i, r := range rows {
		if out[i], err = seen(r); err != nil {
			return page.Page[host.Host]{}, err
		}
	}
	return page.Of(out, p.Limit, func(h host.Host) any { return position{h.CreatedAt, h.ID.UUID()} })
}

// seen adds what a read finds beside the row.
func seen(r sqlcgen.ListHostsRow) (host.Host, error) {
	out, err := fromRow(r.Host)
	out.TeamName, out.Sandboxes, out.Active = r.TeamName, r.Sandboxes, r.Active
	out.Reserved = host.Amounts{CPUMillis: r.CpuMillis, MemoryMB: r.MemoryMb, DiskMB: r.DiskMb}
	out.NeedsRegistration, out.DrainError, out.OnlyHere = r.NeedsRegistration, r.DrainError, r.OnlyHere
	return out, err
}

func fromRow(r sqlcgen.Host) (host.Host, error) {
	engines, err := host.ParseEngines(r.Engines)
	if err != nil {
		return host.Host{}, err
	}
	out := host.Host{
		ID: r.ID, TeamID: r.TeamID, Type: host.Type(r.Type), Name: r.Name, Provider: r.Provider, AvailabilityZone: r.AvailabilityZone,
		Status: host.Status(r.Status), StatusReason: r.StatusReason, Generation: r.Generation, LastHeartbeatAt: r.LastHeartbeatAt, CreatedAt: r.CreatedAt,
		DrainRequestedAt: r.DrainRequestedAt, DrainDeadlineAt: r.DrainDeadlineAt,
		Facts: host.Facts{
			Hostname: r.Name, Arch: r.Arch, CPUs: int64(r.CpuCount), MemoryBytes: r.MemoryBytes, DiskBytes: r.DiskBytes, Kernel: r.Kernel,
			Version: r.AgentVersion, Address: r.Address, Engines: engines,
		},
	}
	if err := json.Unmarshal(r.Labels, &out.Labels); err != nil {
		return host.Host{}, fmt.Errorf("labels of %s: %w", r.ID, err)
	}
	if err := json.Unmarshal(r.Load, &out.Load); err != nil {
		return host.Host{}, fmt.Errorf("load of %s: %w", r.ID, err)
	}
	return out, nil
}
