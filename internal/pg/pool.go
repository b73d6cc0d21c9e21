package pg

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/kernel/errs"
)

// minPoolConns is the least number of connections a pool may open: a small
// machine still has requests that wait for each other's locks.
const minPoolConns = 16

// Open connects a pool to a migrated database. Its connections act as AppRole,
// whoever the URL names. URL parameters of pgxpool (pool_max_conns, …) win over
// the defaults. The caller closes the pool.
func Open(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		// The parser's message can hold the password; it is not passed on.
		return nil, errs.Invalid("invalid_database_url", "DATABASE_URL is not a PostgreSQL URL such as postgres://user@host/database.")
	}
	if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = max(minPoolConns, config.MaxConns)
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "skerry"
	}
	config.ConnConfig.RuntimeParams["timezone"] = "UTC"
	// A transaction that its server forgot must not hold its locks for ever.
	config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "60000"
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		registerIDs(conn.TypeMap())
		return becomeApp(ctx, conn)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return pool, nil
}

// registerIDs lets values of package id travel as binary uuids, alone and in
// arrays, without a detour over text.
func registerIDs(types *pgtype.Map) {
	types.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{wrapID}, types.TryWrapEncodePlanFuncs...)
}

type typedID interface{ UUID() uuid.UUID }

func wrapID(value any) (pgtype.WrappedEncodePlanNextSetter, any, bool) {
	v, ok := value.(typedID)
	if !ok || reflect.TypeOf(value).Kind() == reflect.Pointer {
		return nil, nil, false
	}
	return &wrapIDPlan{}, idValue{v.UUID()}, true
}

type wrapIDPlan struct{ next pgtype.EncodePlan }

func (p *wrapIDPlan) SetNext(next pgtype.EncodePlan) { p.next = next }

func (p *wrapIDPlan) Encode(value any, buf []byte) ([]byte, error) {
	return p.next.Encode(idValue{value.(typedID).UUID()}, buf)
}

type idValue struct{ u uuid.UUID }

func (v idValue) UUIDValue() (pgtype.UUID, error) {
	return pgtype.UUID{Bytes: v.u, Valid: true}, nil
}
