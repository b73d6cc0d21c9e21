package browser

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// wanted is what a script asks to have put into the database: far more than it
// could make by hand.
type wanted struct {
	Team      id.Team `json:"team"`
	Host      id.Host `json:"host"` // where the sandboxes are; one that never joined, so that nobody misses them there
	Name      string  `json:"name"` // of the sandboxes, before a number
	Sandboxes int     `json:"sandboxes"`
	Audit     int     `json:"audit"`
	Events    int     `json:"events"` // of sandboxes that are there
}

// fill answers a script that wants it.
func (w *world) fill(ctx context.Context, args json.RawMessage) (any, error) {
	var want wanted
	if err := json.Unmarshal(args, &want); err != nil {
		return nil, err
	}
	url, err := (&pg.Cluster{Dir: filepath.Join(w.Data, "postgres")}).Start(ctx)
	if err != nil {
		return nil, err
	}
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer db.Close(ctx)
	return nil, pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for _, put := range []func(context.Context, pgx.Tx, wanted) error{putSandboxes, putAudit, putEvents} {
			if err := put(ctx, tx, want); err != nil {
				return err
			}
		}
		return nil
	})
}

func putSandboxes(ctx context.Context, tx pgx.Tx, want wanted) error {
	if want.Sandboxes == 0 {
		return nil
	}
	var template uuid.UUID
	var digest string
	if err := tx.QueryRow(ctx, `SELECT id, image_digest FROM templates WHERE name = 'base' AND status = 'ready'`).Scan(&template, &digest); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	now := time.Now()
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"sandboxes"}, []string{
		"id", "team_id", "host_id", "template_id", "template_name", "image_digest", "status", "engine", "cpu_millis", "memory_mb", "disk_mb",
		"metadata", "timeout_sec", "on_timeout", "paused_at", "paused_reason", "created_by_type", "created_by_id", "created_by_name", "created_at",
	}, pgx.CopyFromSlice(want.Sandboxes, func(i int) ([]any, error) {
		made := now.Add(-time.Duration(i+1) * time.Minute)
		return []any{
			at(made), want.Team.UUID(), want.Host.UUID(), template, "base", digest, "paused", "gvisor", 1000, 512, 512,
			map[string]string{"name": fmt.Sprintf("%s %d", want.Name, i)},
			3600, "pause", made, "requested", "system", "system", "Skerry", made,
		}, nil
	}))
	return err
}

func putAudit(ctx context.Context, tx pgx.Tx, want wanted) error {
	if want.Audit == 0 {
		return nil
	}
	// The chain goes on after what is put here; that these entries are none of its
	// links is for `skerry audit verify` to find.
	var head int64
	if err := tx.QueryRow(ctx, `SELECT seq FROM audit_heads WHERE team_id = $1 FOR UPDATE`, want.Team.UUID()).Scan(&head); err != nil {
		return fmt.Errorf("the chain's head: %w", err)
	}
	hash := sha256.Sum256(nil)
	begun := time.Now().Add(-time.Duration(want.Audit) * time.Second)
	actions := []string{"create", "pause", "resume", "destroy"}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"audit_logs"}, []string{
		"id", "team_id", "seq", "hash", "actor_type", "actor_id", "actor_name", "resource_type", "resource_id", "action", "scope", "status", "metadata", "created_at",
	}, pgx.CopyFromSlice(want.Audit, func(i int) ([]any, error) {
		made := begun.Add(time.Duration(i) * time.Second)
		return []any{
			at(made), want.Team.UUID(), head + 1 + int64(i), hash[:], "system", "system", "Skerry", "sandbox", fmt.Sprintf("sb-%d", i), actions[i%len(actions)], "team", "success",
			json.RawMessage(fmt.Sprintf(`{"name":"entry %d"}`, i)), made,
		}, nil
	}))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE audit_heads SET seq = seq + $2, hash = $3 WHERE team_id = $1`, want.Team.UUID(), want.Audit, hash[:])
	return err
}

// putEvents has something happen to the team's sandboxes, which whoever watches
// is told.
func putEvents(ctx context.Context, tx pgx.Tx, want wanted) error {
	_, err := tx.Exec(ctx, `INSERT INTO sandbox_events (sandbox_id, team_id, kind)
		SELECT id, team_id, 'checked' FROM sandboxes WHERE team_id = $1 ORDER BY random() LIMIT $2`, want.Team.UUID(), want.Events)
	return err
}

// at is an id of that moment, so that what it names is listed where it belongs.
func at(t time.Time) uuid.UUID {
	u := uuid.Must(uuid.NewV7())
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(u[:6], ms[2:])
	return u
}
