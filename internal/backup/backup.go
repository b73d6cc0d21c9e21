// Package backup writes down what an installation consists of, and makes one
// again out of that: the database as it was at one moment, the secret under
// which it is sealed, and a list of what its rows say the artifact store has;
// with Objects also the bytes.
//
// A backup is a directory:
//
//	backup.json    what the rest is, with a hash of each file; written last
//	database.dump  pg_dump's custom format
//	secret         SKERRY_SECRET
//	objects.jsonl  a line per blob: {"key","size"}
//	store/         the blobs, as a directory store keeps them; with Objects
//
// It appears under its name complete, or not at all. Whoever has it has
// everything: it is for root's eyes.
package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// Names in a backup.
const (
	aboutFile    = "backup.json"
	databaseFile = "database.dump"
	secretFile   = "secret"
	objectsFile  = "objects.jsonl"
	storeDir     = "store"
)

// format is the version of the directory's form.
const format = 1

// Installation is what is backed up, or filled.
type Installation struct {
	DatabaseURL string
	Secret      string
	Store       artifact.Store
}

// About is backup.json.
type About struct {
	Format  int       `json:"format"`
	MadeAt  time.Time `json:"made_at"`
	Program string    `json:"program"` // the version that made it
	// Files are the SHA-256 of the others, hex.
	Files map[string]string `json:"files"`
	// Rows are how many each table has.
	Rows map[string]int64 `json:"rows"`
	// Objects and Bytes are what the rows say the store has; WithObjects that the
	// bytes are here too.
	Objects     int64 `json:"objects"`
	Bytes       int64 `json:"bytes"`
	WithObjects bool  `json:"with_objects"`
	// Missing are those of them that the store did not have.
	Missing int64 `json:"missing"`
}

// Options of both directions.
type Options struct {
	// Objects takes the bytes too.
	Objects bool
	Program string
	// Progress is told how many objects were looked at.
	Progress func(done int64)
}

// object is a line of objects.jsonl.
type object struct {
	Key  string `json:"key"`
	Size int64  `json:"size"` // -1 where the store did not have it
}

// Write makes a backup of a running installation in dir, which must not exist.
func Write(ctx context.Context, from Installation, dir string, opts Options) (About, error) {
	if _, err := os.Lstat(dir); err == nil {
		return About{}, errs.Conflict("backup_exists", fmt.Sprintf("%s exists. A backup goes into a new directory.", dir))
	} else if !errors.Is(err, os.ErrNotExist) {
		return About{}, err
	}
	draft, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+".part-")
	if err != nil {
		return About{}, err
	}
	about := About{
		Format: format, MadeAt: time.Now().UTC(), Program: opts.Program, Files: map[string]string{}, Rows: map[string]int64{}, WithObjects: opts.Objects,
	}
	if err := write(ctx, from, draft, opts, &about); err != nil {
		return About{}, errors.Join(err, os.RemoveAll(draft))
	}
	if err := os.Rename(draft, dir); err != nil {
		return About{}, errors.Join(err, os.RemoveAll(draft))
	}
	return about, syncDir(filepath.Dir(dir))
}

func write(ctx context.Context, from Installation, draft string, opts Options, about *About) error {
	var copies artifact.Store
	if opts.Objects {
		at := filepath.Join(draft, storeDir)
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		store, err := fs.New(at)
		if err != nil {
			return err
		}
		copies = store
	}
	err := about.file(draft, databaseFile, func(dump io.Writer) error {
		return pg.Dump(ctx, from.DatabaseURL, dump, func(ctx context.Context, tx pgx.Tx) error {
			if err := countRows(ctx, tx, about.Rows); err != nil {
				return err
			}
			return about.file(draft, objectsFile, func(list io.Writer) error {
				return listObjects(ctx, tx, from.Store, copies, list, about, opts.Progress)
			})
		})
	})
	if err != nil {
		return err
	}
	if err := about.file(draft, secretFile, func(w io.Writer) error {
		_, err := io.WriteString(w, from.Secret+"\n")
		return err
	}); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return err
	}
	var last About // its own hash is nowhere
	last.Files = map[string]string{}
	if err := last.file(draft, aboutFile, func(w io.Writer) error {
		_, err := w.Write(append(raw, '\n'))
		return err
	}); err != nil {
		return err
	}
	return syncDir(draft)
}

// file makes one durably and notes its hash.
func (a *About) file(dir, name string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(f, hash), 1<<20)
	if err := fill(buffered); err != nil {
		return err
	}
	if err := errors.Join(buffered.Flush(), f.Sync()); err != nil {
		return err
	}
	a.Files[name] = hex.EncodeToString(hash.Sum(nil))
	return f.Close()
}

// countRows counts each table's.
func countRows(ctx context.Context, tx pgx.Tx, into map[string]int64) error {
	rows, err := tx.Query(ctx, `SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition`)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, table := range tables {
		var n int64
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM public."+pgx.Identifier{table}.Sanitize()).Scan(&n); err != nil {
			return err
		}
		into[table] = n
	}
	return nil
}

// someObjects are looked at together, atOnce of them at a time.
const (
	someObjects = 512
	atOnce      = 8
)

const storedObjects = `
SELECT team_id, 'chunks', encode(digest, 'hex'), object FROM chunks WHERE stored
UNION ALL SELECT team_id, 'manifests', manifest_digest, manifest_object FROM artifacts WHERE status = 'ready'`

// listObjects writes down what the rows say the store has, and copies it where
// copies is not nil.
func listObjects(ctx context.Context, tx pgx.Tx, store, copies artifact.Store, w io.Writer, about *About, progress func(int64)) error {
	rows, err := tx.Query(ctx, storedObjects)
	if err != nil {
		return err
	}
	defer rows.Close()
	lines := json.NewEncoder(w)
	batch := make([]artifact.Key, 0, someObjects)
	flush := func() error {
		found, err := look(ctx, store, copies, batch)
		if err != nil {
			return err
		}
		for _, o := range found {
			if o.Size < 0 {
				about.Missing++
			} else {
				about.Bytes += o.Size
			}
			about.Objects++
			if err := lines.Encode(o); err != nil {
				return err
			}
		}
		batch = batch[:0]
		if progress != nil {
			progress(about.Objects)
		}
		return nil
	}
	for rows.Next() {
		var team uuid.UUID
		var k artifact.Key
		if err := rows.Scan(&team, &k.Kind, &k.Digest, &k.Object); err != nil {
			return err
		}
		k.Team = id.Team{}.FromUUID(team)
		if batch = append(batch, k); len(batch) == someObjects {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return flush()
}

// look finds blobs in from, and puts those into to, unless it is nil.
func look(ctx context.Context, from, to artifact.Store, keys []artifact.Key) ([]object, error) {
	out := make([]object, len(keys))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, k := range keys {
		group.Go(func() error {
			size, err := transfer(gctx, from, to, k)
			if errors.Is(err, artifact.ErrNotFound) {
				size, err = -1, nil
			}
			out[i] = object{Key: k.String(), Size: size}
			return err
		})
	}
	return out, group.Wait()
}

func transfer(ctx context.Context, from, to artifact.Store, k artifact.Key) (int64, error) {
	if to == nil {
		info, err := from.Stat(ctx, k)
		return info.Size, err
	}
	r, info, err := from.Open(ctx, k)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return info.Size, to.Put(ctx, k, r, info.Size)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
