package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"skerry.dev/skerry/internal/artifact"
	artifactfs "skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/backup"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// installation has a team, keys under a secret, and an artifact with two blobs.
type installation struct {
	backup.Installation

	blobs *artifactfs.Store
	keys  []artifact.Key
}

func directory(t *testing.T) *artifactfs.Store {
	t.Helper()
	s, err := artifactfs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, address string) *pgxpool.Pool {
	t.Helper()
	pool, err := pg.Open(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func newInstallation(t *testing.T) installation {
	t.Helper()
	ctx := t.Context()
	secret, written := keyring.NewSecret()
	x := installation{blobs: directory(t)}
	x.DatabaseURL, x.Secret, x.Store = pgtest.URL(t), written, x.blobs
	pool := open(t, x.DatabaseURL)
	team, _ := teamtest.New(t, pool)
	if _, err := keyring.Load(ctx, keyringpg.New(pool), secret, clock.System{}); err != nil {
		t.Fatal(err)
	}
	chunk, manifest := []byte("a chunk"), []byte("a manifest")
	x.keys = []artifact.Key{
		artifact.ChunkKey(team, artifact.DigestOf(chunk), 11), artifact.ManifestKey(team, artifact.DigestOf(manifest), 12),
	}
	for i, b := range [][]byte{chunk, manifest} {
		if err := x.blobs.Put(ctx, x.keys[i], bytes.NewReader(b), int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	a := id.NewArtifact()
	batch := &pgx.Batch{}
	batch.Queue(`INSERT INTO artifacts (id, team_id, kind, status, manifest_digest, manifest_object, ready_at) VALUES ($1, $2, 'state', 'ready', $3, 12, now())`, a, team, string(x.keys[1].Digest))
	batch.Queue(`INSERT INTO chunks (team_id, digest, object, size_bytes, stored) VALUES ($1, decode($2, 'hex'), 11, 7, true), ($1, sha256('unseen'), 13, 7, false)`, team, string(x.keys[0].Digest))
	batch.Queue(`INSERT INTO artifact_chunks (artifact_id, team_id, digest) VALUES ($1, $2, decode($3, 'hex'))`, a, team, string(x.keys[0].Digest))
	batch.Queue(`INSERT INTO hosts (id, team_id, type, name, status, registered_at, deleted_at) VALUES
		(gen_random_uuid(), $1, 'byoc', 'there', 'online', now(), NULL), (gen_random_uuid(), $1, 'byoc', 'gone', 'deleted', now(), now()), (gen_random_uuid(), $1, 'byoc', 'to come', 'pending', NULL, NULL)`, team)
	batch.Queue(`SELECT nextval('store_objects') FROM generate_series(1, 13)`)
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	return x
}

// contents are all rows of all tables.
func contents(t *testing.T, address string) map[string][]string {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, table := range tables {
		rows, err := conn.Query(ctx, fmt.Sprintf(`SELECT t::text FROM %s t ORDER BY 1`, pgx.Identifier{table}.Sanitize()))
		if err != nil {
			t.Fatal(err)
		}
		if out[table], err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestO7_WhatWasBackedUpIsThereAgain: into an empty database and an empty store,
// all rows, all bytes, the same secret; numbers of blobs are never given out again.
func TestO7_WhatWasBackedUpIsThereAgain(t *testing.T) {
	ctx := t.Context()
	from := newInstallation(t)
	dir := filepath.Join(t.TempDir(), "backup")
	about, err := backup.Write(ctx, from.Installation, dir, backup.Options{Objects: true, Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if about.Objects != 2 || about.Bytes != 17 || about.Missing != 0 || about.Rows["teams"] < 2 {
		t.Errorf("about %+v", about)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s may be read by others: %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	blobs := directory(t)
	to := backup.Installation{DatabaseURL: pgtest.Empty(t), Store: blobs}
	got, err := backup.Restore(ctx, dir, to, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Brought != 2 || got.StillMissing != 0 {
		t.Errorf("restored %+v", got)
	}
	before, after := contents(t, from.DatabaseURL), contents(t, to.DatabaseURL)
	delete(before, "hosts") // they are waited for now, see below
	delete(after, "hosts")
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	for _, k := range from.keys {
		if _, err := blobs.Stat(ctx, k); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	if err := pg.Migrate(ctx, to.DatabaseURL); err != nil {
		t.Errorf("a server starts on it: %v", err)
	}
	pool := open(t, to.DatabaseURL)
	words, err := backup.Secret(dir)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keyring.ParseSecret(words)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Load(ctx, keyringpg.New(pool), secret, clock.System{}); err != nil {
		t.Errorf("its keys do not open: %v", err)
	}
	// Nothing goes on before the hosts that there are were looked at.
	var awaited []string
	if err := pool.QueryRow(ctx, `SELECT array_agg(name ORDER BY name) FROM hosts WHERE awaited_until > now() + interval '1 year'`).Scan(&awaited); err != nil || !slices.Equal(awaited, []string{"there"}) {
		t.Errorf("waited for are %v, %v", awaited, err)
	}
	var next int64
	if err := pool.QueryRow(ctx, `SELECT nextval('store_objects')`).Scan(&next); err != nil || next < 1<<32 {
		t.Errorf("the next blob is number %d (%v), as one made after the backup may be", next, err)
	}
	// Not a second time, nor over anything else.
	if _, err := backup.Restore(ctx, dir, to, backup.Options{}); !errs.Is(err, "database_not_empty") {
		t.Errorf("over what is there: %v", err)
	}
	if _, err := backup.Write(ctx, from.Installation, dir, backup.Options{}); !errs.Is(err, "backup_exists") {
		t.Errorf("over a backup: %v", err)
	}
}

// TestO7_ABackupIsCheckedBeforeAnythingIsDone.
func TestO7_ABackupIsCheckedBeforeAnythingIsDone(t *testing.T) {
	ctx := t.Context()
	from := newInstallation(t)
	if err := from.blobs.Delete(ctx, from.keys[0]); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "backup")
	about, err := backup.Write(ctx, from.Installation, dir, backup.Options{})
	if err != nil || about.Missing != 1 || about.Objects != 2 {
		t.Fatalf("a blob that is gone: %+v, %v", about, err)
	}
	to := backup.Installation{DatabaseURL: pgtest.Empty(t), Store: from.blobs}
	_, other := keyring.NewSecret()
	strange := to
	strange.Secret = other
	if _, err := backup.Restore(ctx, dir, strange, backup.Options{}); !errs.Is(err, "wrong_secret") {
		t.Errorf("under another secret: %v", err)
	}
	for _, name := range []string{"database.dump", "objects.jsonl", "secret"} {
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 1
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Restore(ctx, dir, to, backup.Options{}); !errs.Is(err, "backup_damaged") || !strings.Contains(err.Error(), name) {
			t.Errorf("a flipped bit in %s: %v", name, err)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := pg.IsEmpty(ctx, to.DatabaseURL); err != nil {
		t.Errorf("something was done: %v", err)
	}
	got, err := backup.Restore(ctx, dir, to, backup.Options{})
	if err != nil || got.StillMissing != 1 || got.Brought != 0 {
		t.Errorf("beside the store: %+v, %v", got, err)
	}
	// Whoever has the lost chunk is to bring it again.
	var believed, lost bool
	if err := open(t, from.DatabaseURL).QueryRow(ctx, `SELECT stored FROM chunks WHERE object = 11`).Scan(&believed); err != nil {
		t.Fatal(err)
	}
	if err := open(t, to.DatabaseURL).QueryRow(ctx, `SELECT NOT stored FROM chunks WHERE object = 11`).Scan(&lost); err != nil || !believed || !lost {
		t.Errorf("the restored database still believes in a chunk that is lost: %v, %v (%v)", believed, !lost, err)
	}
}

// TestO7_ABrokenLoadLeavesNothing: all of the database or none of it.
func TestO7_ABrokenLoadLeavesNothing(t *testing.T) {
	ctx := t.Context()
	from := newInstallation(t)
	dir := filepath.Join(t.TempDir(), "backup")
	if _, err := backup.Write(ctx, from.Installation, dir, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(dir, "database.dump")
	to := pgtest.Empty(t)
	if err := pg.Load(ctx, to, dump, "SELECT no_such_thing()"); err == nil {
		t.Error("a statement that fails is no failure")
	}
	info, err := os.Stat(dump)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(dump, info.Size()*3/4); err != nil {
		t.Fatal(err)
	}
	if err := pg.Load(ctx, to, dump); err == nil {
		t.Error("half a dump is no failure")
	}
	if err := pg.IsEmpty(ctx, to); err != nil {
		t.Errorf("something is left: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := backup.Write(gone, from.Installation, dir+"2", backup.Options{}); err == nil {
		t.Error("a backup nobody waited for is no failure")
	}
	left, err := filepath.Glob(dir + "2*")
	if err != nil || len(left) != 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}
