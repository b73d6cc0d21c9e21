package artifactpg_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/testkit"
)

// TestTS03_CollectingTakesNothingThatIsReferred: uploads that share their chunks
// with what is being collected, some of them broken off, against two collectors:
// nothing that is referred to lacks a byte, and at the end nothing is left.
func TestTS03_CollectingTakesNothingThatIsReferred(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	host := w.host(id.PlatformTeamID)
	rounds := testkit.Scaled(1000, 50)
	pieces := make([][]byte, 6)
	for i := range pieces {
		pieces[i] = fmt.Appendf(nil, "piece %d", i)
	}
	stop, collected := make(chan struct{}), make(chan struct{}, 2)
	for range 2 {
		go func() {
			defer func() { collected <- struct{}{} }()
			c := w.collector()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := errors.Join(w.hurry(ctx), c.Pass(ctx)); err != nil {
					t.Errorf("collect: %v", err)
					return
				}
			}
		}()
	}
	var next atomic.Int64
	var shared atomic.Int64
	var work sync.WaitGroup
	for n := range 4 {
		work.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n))) //nolint:gosec // which chunks meet is to be the same again
			for next.Add(1) <= int64(rounds) && !t.Failed() {
				if err := w.round(ctx, random, host, pieces, &shared); err != nil {
					t.Errorf("round %d: %v", next.Load(), err)
				}
			}
		})
	}
	work.Wait()
	close(stop)
	<-collected
	<-collected
	w.settle()
	if rows, blobs := w.rowsLeft(), w.blobsOf(); rows != 0 || blobs != 0 {
		t.Errorf("%d rows and %d blobs are left of nothing", rows, blobs)
	}
	t.Logf("%d rounds, %d chunks found there", rounds, shared.Load())
}

// round uploads three of the pieces, sees that they are there, and lets go.
func (w *world) round(ctx context.Context, random *rand.Rand, host id.Host, pieces [][]byte, shared *atomic.Int64) error {
	a := id.NewArtifact()
	if err := w.begin(ctx, artifact.New{ID: a, Team: w.team, Kind: artifact.KindContext, Host: host}); err != nil {
		return err
	}
	mine := make([][]byte, 0, 3)
	for _, i := range random.Perm(len(pieces))[:3] {
		mine = append(mine, pieces[i])
	}
	end := ""
	if random.IntN(5) == 0 {
		end = []string{"claimed", "put", "named"}[random.IntN(3)]
	}
	err := w.upload(ctx, a, host, func(part string) error {
		if part == end {
			return errHalfway
		}
		if part == "claimed" {
			var pieces []transfer.Piece
			for _, b := range mine {
				pieces = append(pieces, transfer.Piece{Digest: content.DigestOf(b), Size: int64(len(b))})
			}
			unseen, err := w.rows.Claim(ctx, a, host, pieces)
			shared.Add(int64(3 - len(unseen)))
			return err
		}
		return nil
	}, mine...)
	if errors.Is(err, errHalfway) {
		return errors.Join(w.drop(ctx, a), expired(ctx, w.pool, a))
	}
	if err != nil {
		return err
	}
	if err := w.intact(ctx, a, host, mine...); err != nil {
		return err
	}
	return w.drop(ctx, a)
}

// TestP1_ACollectorMayDieAtEachStep: whatever it was about, the next one ends it,
// and what shares chunks with it stays whole.
func TestP1_ACollectorMayDieAtEachStep(t *testing.T) {
	visited := map[artifact.Step]bool{}
	for _, step := range artifact.Steps() {
		t.Run(string(step), func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			host := w.host(id.PlatformTeamID)
			kept, unwanted, broken := id.NewArtifact(), id.NewArtifact(), id.NewArtifact()
			both, own, half := []byte("in both"), []byte("in one"), []byte("in half of one")
			for _, a := range []id.Artifact{kept, unwanted, broken} {
				if err := w.begin(ctx, artifact.New{ID: a, Team: w.team, Kind: artifact.KindContext, Host: host}); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.upload(ctx, kept, host, whole, both), w.upload(ctx, unwanted, host, whole, both, own), w.drop(ctx, unwanted)); err != nil {
				t.Fatal(err)
			}
			err := w.upload(ctx, broken, host, func(part string) error {
				if part == "named" {
					return errHalfway
				}
				return nil
			}, both, half)
			if !errors.Is(err, errHalfway) || expired(ctx, w.pool, broken) != nil {
				t.Fatal(err)
			}
			w.damagedEngine(host)
			c := w.collector()
			died := errors.New("died")
			var once sync.Once
			c.OnStep = func(s artifact.Step) (err error) {
				if s == step {
					once.Do(func() { visited[step], err = true, died })
				}
				return err
			}
			for range 2 {
				if err := c.Pass(ctx); err != nil && !errors.Is(err, died) {
					t.Fatal(err)
				}
				if err := w.intact(ctx, kept, host, both); err != nil {
					t.Fatal(err)
				}
				if err := w.hurry(ctx); err != nil {
					t.Fatal(err)
				}
			}
			w.settle()
			if err := w.intact(ctx, kept, host, both); err != nil {
				t.Error(err)
			}
			// Of the one that is kept: itself, its chunk, its claim; its chunk and its manifest.
			if rows, blobs := w.rowsLeft(), w.blobsOf(); rows != 3 || blobs != 2 {
				t.Errorf("%d rows and %d blobs, want 3 and 2", rows, blobs)
			}
		})
	}
	if len(visited) != len(artifact.Steps()) {
		t.Errorf("only %v of %v were visited", visited, artifact.Steps())
	}
	t.Logf("%d steps", len(visited))
}

// damagedEngine is a build of which the store has lost something, and a host not.
func (w *world) damagedEngine(host id.Host) {
	w.t.Helper()
	a := id.NewArtifact()
	program := []byte("an engine")
	ctx := context.Background()
	err := errors.Join(w.begin(ctx, artifact.New{ID: a, Team: id.PlatformTeamID, Kind: artifact.KindEngine, Host: host}), w.upload(ctx, a, host, whole, program), w.drop(ctx, a))
	if err != nil {
		w.t.Fatal(err)
	}
	w.exec(`INSERT INTO engine_builds (team_id, engine, version, arch, digest, artifact_id) VALUES ($1, 'gvisor', 'v', 'amd64', 'd', $2)`, id.PlatformTeamID, a)
	w.lose(a, program)
}

// lose has it found out that the store has lost a chunk of an artifact.
func (w *world) lose(a id.Artifact, b []byte) {
	w.t.Helper()
	keys, err := w.rows.Keys(context.Background(), a, []content.Digest{content.DigestOf(b)})
	if err == nil {
		err = w.rows.Lost(context.Background(), a, []content.Key{keys[content.DigestOf(b)]})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestTS01_S5_WhatTheStoreLostComesFromWhoeverHasIt: of a saved state and of an
// engine, once a host in reach has it; until then nothing of what is left is given
// up. What shares the lost chunk is whole with it.
func TestTS01_S5_WhatTheStoreLostComesFromWhoeverHasIt(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	host := w.host(id.PlatformTeamID)
	shared, own := []byte("in both"), []byte("in one")
	tpl := id.NewTemplate()
	w.exec(`INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest) VALUES ($1, $2, 'x', 'ready', 'x', 'x')`, tpl, w.team)
	saved := func(stored ...[]byte) (id.Snapshot, id.Artifact) {
		t.Helper()
		a, state := id.NewArtifact(), id.NewSnapshot()
		n := artifact.New{ID: a, Team: w.team, Kind: artifact.KindState, Host: host}
		err := errors.Join(w.begin(ctx, n), w.upload(ctx, a, host, whole, stored...), w.drop(ctx, a))
		if err != nil {
			t.Fatal(err)
		}
		w.exec(`INSERT INTO snapshots (id, team_id, kind, status, sandbox_id, incarnation, host_id, template_id, template_name, image_digest, engine, engine_version, memory,
			cpu_millis, memory_mb, disk_mb, internet, digest, ready_at, created_by_type, created_by_id, created_by_name, artifact_id)
			VALUES ($1, $2, 'pause', 'ready', $3, 1, $4, $5, 'x', 'x', 'gvisor', 'b', true, 1, 1, 1, true, 'x', now(), 'user', 'x', 'x', $6)`,
			state, w.team, id.NewSandbox(), host, tpl, a)
		return state, a
	}
	here, one := saved(shared, own)
	_, two := saved(shared) // no host has it any more
	w.exec(`INSERT INTO state_copies (snapshot_id, host_id, ready_at) VALUES ($1, $2, now())`, here, host)
	w.damagedEngine(host)
	w.lose(one, shared)
	due := func() int {
		t.Helper()
		return w.count(`SELECT count(*) FROM snapshots WHERE artifact_id IS NULL AND upload_at <= now()`)
	}

	w.exec(`UPDATE hosts SET status = 'unreachable'`)
	w.exec(`UPDATE engine_builds SET seen_at = now() - interval '3 hours'`)
	if n, err := w.rows.BringAgain(ctx, 10); err != nil || n != 0 || due() != 0 {
		t.Fatalf("%d are to be brought by nobody, %v", n, err)
	}
	w.exec(`UPDATE hosts SET status = 'online'`)
	w.exec(`UPDATE engine_builds SET seen_at = now()`)
	if n, err := w.rows.BringAgain(ctx, 10); err != nil || n != 2 || due() != 1 {
		t.Fatalf("%d are to be brought, %d states, %v", n, due(), err)
	}
	if n := w.count(`SELECT count(*) FROM engine_builds WHERE artifact_id IS NULL AND upload_at IS NULL`); n != 1 {
		t.Errorf("%d engines are to be brought", n)
	}
	if n, err := w.rows.BringAgain(ctx, 10); err != nil || n != 0 {
		t.Errorf("asked for %d twice, %v", n, err)
	}
	// The host brings it, and only what is lacking.
	a := id.NewArtifact()
	if err := w.begin(ctx, artifact.New{ID: a, Team: w.team, Kind: artifact.KindState, Host: host}); err != nil {
		t.Fatal(err)
	}
	missing, err := w.rows.Claim(ctx, a, host, []transfer.Piece{
		{Digest: content.DigestOf(shared), Size: int64(len(shared))}, {Digest: content.DigestOf(own), Size: int64(len(own))},
	})
	if err != nil || len(missing) != 1 || missing[0].Digest != content.DigestOf(shared) {
		t.Fatalf("asked for %v, %v", missing, err)
	}
	if err := w.upload(ctx, a, host, whole, shared, own); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.intact(ctx, a, host, shared, own), w.intact(ctx, two, host, shared)); err != nil {
		t.Error(err)
	}
	if n, err := w.rows.BringAgain(ctx, 10); err != nil || n != 0 {
		t.Errorf("%d are to be brought once all is there, %v", n, err)
	}
}

// TestTS03_WhatIsPointedAtIsNotMarked: a pointer that is about to be set keeps an
// artifact, and one that comes too late is refused.
func TestTS03_WhatIsPointedAtIsNotMarked(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a := id.NewArtifact()
	n := artifact.New{ID: a, Team: w.team, Kind: artifact.KindImage}
	if err := pg.InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error { return artifactpg.Begin(ctx, tx, n) }); err != nil {
		t.Fatal(err)
	}
	if err := w.upload(ctx, a, id.Host{}, whole, []byte("an image")); err != nil {
		t.Fatal(err)
	}
	tpl := id.NewTemplate()
	err := pg.InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := artifactpg.Use(ctx, tx, a); err != nil {
			return err
		}
		if marked, err := w.rows.MarkUnreferenced(ctx, 0, 10); err != nil || marked != 0 {
			t.Errorf("%d marked while one was about to point at it (%v)", marked, err)
		}
		_, err := tx.Exec(ctx, `INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest, artifact_id) VALUES ($1, $2, 'x', 'ready', 'x', 'x', $3)`, tpl, w.team, a)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	w.settle()
	if err := w.intact(ctx, a, id.Host{}, []byte("an image")); err != nil {
		t.Fatal(err)
	}
	// A replaced template counts while a sandbox consists of it.
	host := w.host(id.PlatformTeamID)
	box := id.NewSandbox()
	w.exec(`INSERT INTO sandboxes (id, team_id, host_id, template_id, template_name, image_digest, status, engine, cpu_millis, memory_mb, disk_mb, timeout_sec, on_timeout,
		created_by_type, created_by_id, created_by_name) VALUES ($1, $2, $3, $4, 'x', 'x', 'running', 'fake', 1, 1, 1, 60, 'kill', 'user', 'x', 'x')`, box, w.team, host, tpl)
	w.exec(`UPDATE templates SET deleted_at = now() - interval '1 day' WHERE id = $1`, tpl)
	w.settle()
	if err := w.intact(ctx, a, id.Host{}, []byte("an image")); err != nil {
		t.Fatal(err)
	}
	w.exec(`UPDATE sandboxes SET status = 'stopped', ended_at = now() WHERE id = $1`, box)
	w.settle()
	if rows, blobs := w.rowsLeft(), w.blobsOf(); rows != 0 || blobs != 0 {
		t.Errorf("%d rows and %d blobs of what nothing consists of", rows, blobs)
	}
	err = pg.InTx(ctx, w.pool, func(ctx context.Context, tx pgx.Tx) error { return artifactpg.Use(ctx, tx, a) })
	if !errs.Is(err, "no_such_artifact") {
		t.Errorf("pointing at what is gone: %v", err)
	}
}
