package artifactpg

import (
	"cmp"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

// Begin makes the row of an upload in the caller's transaction, in which the
// caller also sets what points at it.
func Begin(ctx context.Context, tx pgx.Tx, n artifact.New) error {
	return sqlcgen.New().Insert(ctx, tx, sqlcgen.InsertParams{
		ID: n.ID, TeamID: n.Team, Kind: string(n.Kind), HostID: nullable(n.Host), LeaseSecs: seconds(cmp.Or(n.Lease, artifact.Lease)),
	})
}

// Again lets an upload go on that was broken off, by this host from here on and
// for so long (0 is the usual time); what it has brought so far stays. false: it
// is over, or was given up meanwhile; Begin another one.
func Again(ctx context.Context, tx pgx.Tx, a id.Artifact, by id.Host, lease time.Duration) (bool, error) {
	n, err := sqlcgen.New().Again(ctx, tx, sqlcgen.AgainParams{ID: a, HostID: nullable(by), LeaseSecs: seconds(cmp.Or(lease, artifact.Lease))})
	return n == 1, err
}

// Use makes sure, before the caller's transaction points at a ready artifact,
// that it is not collected; ErrNotFound when it is not there to be used.
func Use(ctx context.Context, tx pgx.Tx, a id.Artifact) error {
	if _, err := sqlcgen.New().Use(ctx, tx, a); err != nil {
		return notFound(err)
	}
	return nil
}

// Abandon gives up an upload: it and what it brought are removed. Succeeds on
// what is no upload any more.
func Abandon(ctx context.Context, tx pgx.Tx, a id.Artifact) error {
	return sqlcgen.New().Abandon(ctx, tx, a)
}

func nullable(h id.Host) *id.Host {
	if h.IsZero() {
		return nil
	}
	return &h
}

func seconds(d time.Duration) float64 { return d.Seconds() }
