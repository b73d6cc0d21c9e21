package artifactpg_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// world is a database and a directory with blobs.
type world struct {
	t     testing.TB
	pool  *pgxpool.Pool
	rows  *artifactpg.Store
	blobs *fs.Store
	dir   string // of the blobs
	team  id.Team
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	blobs, err := fs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.New(t)
	team, _ := teamtest.New(t, pool)
	return &world{t: t, pool: pool, rows: artifactpg.New(pool), blobs: blobs, dir: dir, team: team}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) count(sql string, args ...any) int {
	w.t.Helper()
	var n int
	if err := w.pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// host is one that is online; of the platform's for the platform's team.
func (w *world) host(team id.Team) id.Host {
	w.t.Helper()
	kind := "byoc"
	if team == id.PlatformTeamID {
		kind = "regular"
	}
	h := id.NewHost()
	w.exec(`INSERT INTO hosts (id, team_id, type, name, status, registered_at) VALUES ($1, $2, $3, 'h', 'online', now())`, h, team, kind)
	sum := sha256.Sum256(fmt.Append(nil, h))
	w.exec(`INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, expires_at) VALUES ($1, $2, '\x00', $3, now() + interval '1 day')`, uuid.New(), h, sum[:])
	return h
}

// begin makes an upload that a build's context points at.
func (w *world) begin(ctx context.Context, n artifact.New) error {
	return pg.InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := artifactpg.Begin(ctx, tx, n); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO build_contexts (id, team_id, artifact_id, expires_at) VALUES ($1, $2, $3, now() + interval '1 day')`, id.NewBuildContext(), n.Team, n.ID)
		return err
	})
}

// drop takes away what points at it.
func (w *world) drop(ctx context.Context, a id.Artifact) error {
	_, err := w.pool.Exec(ctx, `UPDATE build_contexts SET expires_at = now() - interval '1 s' WHERE artifact_id = $1`, a)
	return err
}

// manifestOf is one of a file whose chunks are stored as these.
func manifestOf(stored ...[]byte) content.Manifest {
	f := content.File{Name: content.ContextFile, Size: int64(len(stored)) * content.ChunkSize, Digest: content.DigestOf(nil)}
	for i, b := range stored {
		f.Chunks = append(f.Chunks, content.Chunk{
			Offset: int64(i) * content.ChunkSize, RawSize: content.ChunkSize, RawDigest: content.DigestOf(nil), Size: int64(len(b)), Digest: content.DigestOf(b),
		})
	}
	return content.Manifest{
		Version: content.ManifestVersion, MediaType: content.MediaTypeContext, Size: f.Size, ChunkSize: content.ChunkSize, Files: []content.File{f},
	}
}

// errHalfway ends an upload at a point at which its host is gone.
var errHalfway = errors.New("halfway")

// upload does what the handler does for a host. at is called after each part.
func (w *world) upload(ctx context.Context, a id.Artifact, host id.Host, at func(part string) error, stored ...[]byte) error {
	var pieces []transfer.Piece
	bytesOf := map[content.Digest][]byte{}
	for _, b := range stored {
		pieces = append(pieces, transfer.Piece{Digest: content.DigestOf(b), Size: int64(len(b))})
		bytesOf[content.DigestOf(b)] = b
	}
	missing, err := w.rows.Claim(ctx, a, host, pieces)
	if err != nil {
		return err
	}
	if err := at("claimed"); err != nil {
		return err
	}
	for _, k := range missing {
		if err := w.blobs.Put(ctx, k, bytes.NewReader(bytesOf[k.Digest]), int64(len(bytesOf[k.Digest]))); err != nil {
			return err
		}
	}
	if err := w.rows.Put(ctx, a, missing); err != nil {
		return err
	}
	if err := at("put"); err != nil {
		return err
	}
	m := manifestOf(stored...)
	raw, err := m.Encode()
	if err != nil {
		return err
	}
	key, err := w.rows.Name(ctx, a, host, content.DigestOf(raw))
	if err != nil {
		return err
	}
	if err := w.blobs.Put(ctx, key, bytes.NewReader(raw), int64(len(raw))); err != nil {
		return err
	}
	if err := at("named"); err != nil {
		return err
	}
	// Others may have been about to put what we were not asked for.
	unseen, err := w.rows.Claim(ctx, a, host, pieces)
	if err != nil {
		return err
	}
	for _, k := range unseen {
		if _, err := w.blobs.Stat(ctx, k); errors.Is(err, content.ErrNotFound) {
			if err := w.blobs.Put(ctx, k, bytes.NewReader(bytesOf[k.Digest]), int64(len(bytesOf[k.Digest]))); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	if err := w.rows.Put(ctx, a, unseen); err != nil {
		return err
	}
	return w.rows.Complete(ctx, a, host, m, content.DigestOf(raw))
}

func whole(string) error { return nil }

// intact reads a ready artifact as a host does.
func (w *world) intact(ctx context.Context, a id.Artifact, host id.Host, stored ...[]byte) error {
	ready, err := w.rows.Ready(ctx, a, host)
	if err != nil {
		return err
	}
	want := map[content.Key][]byte{}
	raw, err := manifestOf(stored...).Encode()
	if err != nil {
		return err
	}
	want[ready.Manifest] = raw
	digests := make([]content.Digest, len(stored))
	for i, b := range stored {
		digests[i] = content.DigestOf(b)
	}
	keys, err := w.rows.Keys(ctx, a, digests)
	if err != nil {
		return err
	}
	for i, d := range digests {
		k, ok := keys[d]
		if !ok {
			return fmt.Errorf("chunk %s belongs to nothing", d)
		}
		want[k] = stored[i]
	}
	for k, b := range want {
		r, _, err := w.blobs.Open(ctx, k)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, b) {
			return fmt.Errorf("%s holds something else (%w)", k, err)
		}
	}
	return nil
}

// hurry makes what is doomed due: no upload of a test lasts.
func (w *world) hurry(ctx context.Context) error {
	_, err := w.pool.Exec(ctx, `UPDATE doomed_objects SET due_at = now() WHERE due_at > now()`)
	return err
}

func (w *world) collector() *artifact.Collector {
	c := artifact.NewCollector(w.rows, w.blobs, slog.New(slog.DiscardHandler))
	c.Grace = 0
	return c
}

// settle collects until nothing moves any more.
func (w *world) settle() {
	w.t.Helper()
	c := w.collector()
	for range 4 {
		if err := c.Pass(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		if err := w.hurry(context.Background()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// blobsOf is how many the store has of the team's.
func (w *world) blobsOf() int {
	w.t.Helper()
	n := 0
	for _, kind := range []content.Kind{content.KindChunk, content.KindManifest} {
		all, err := w.blobs.List(context.Background(), content.Prefix{Team: w.team, Kind: kind}, "", 10000)
		if err != nil {
			w.t.Fatal(err)
		}
		n += len(all)
	}
	return n
}

func (w *world) rowsLeft() int {
	w.t.Helper()
	return w.count(`SELECT (SELECT count(*) FROM artifacts) + (SELECT count(*) FROM chunks) + (SELECT count(*) FROM artifact_chunks) + (SELECT count(*) FROM doomed_objects)`)
}

func expired(ctx context.Context, pool *pgxpool.Pool, a id.Artifact) error {
	_, err := pool.Exec(ctx, `UPDATE artifacts SET lease_until = now() - interval '1 s' WHERE id = $1 AND status = 'uploading'`, a)
	return err
}
