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
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/pg"
)

// newObjects lets the numbers of blobs go on far beyond those that were given out
// after the backup was made: what a name stood for in the lost time, it never
// stands for again.
const newObjects = "SELECT setval('public.store_objects', (SELECT last_value FROM public.store_objects) + 4294967296)"

// awaitLooks has nothing resumed before the hosts were looked at, which may have
// gone on with it since the backup. How long counts from the start of the servers.
// Databases from before there was such a column do without.
const awaitLooks = `DO $$ BEGIN
	IF EXISTS (SELECT FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'hosts' AND column_name = 'awaited_until') THEN
		UPDATE public.hosts SET awaited_until = '9999-01-01' WHERE deleted_at IS NULL AND registered_at IS NOT NULL;
	END IF;
END $$`

// maxAbout bounds backup.json, in bytes.
const maxAbout = 1 << 20

// Restored is what a restore found.
type Restored struct {
	About

	// Brought are objects that the store lacked and the backup had; StillMissing
	// those that neither has.
	Brought      int64
	StillMissing int64

	lost []int64 // the numbers of chunks among the latter
}

// unseen takes the word back that the store has these chunks: whoever brings one
// again is not told that it is there.
func (r *Restored) unseen() []string {
	var out []string
	for some := range slices.Chunk(r.lost, someObjects) {
		numbers := make([]string, len(some))
		for i, n := range some {
			numbers[i] = strconv.FormatInt(n, 10)
		}
		out = append(out, "UPDATE public.chunks SET stored = false WHERE object IN ("+strings.Join(numbers, ", ")+")")
	}
	return out
}

// miss counts one that neither the store nor the backup has.
func (r *Restored) miss(k artifact.Key) {
	r.StillMissing++
	if k.Kind == artifact.KindChunk {
		r.lost = append(r.lost, k.Object)
	}
}

// Secret reads the secret of a backup, and checks it.
func Secret(dir string) (string, error) {
	about, err := read(dir)
	if err == nil {
		err = about.check(dir, secretFile)
	}
	if err != nil {
		return "", err
	}
	raw, err := os.ReadFile(filepath.Join(dir, secretFile))
	return strings.TrimSpace(string(raw)), err
}

// Restore fills an empty database, and what the store lacks, with a backup, after
// it has checked all of it. Blobs come first: only rows make them count. It may
// be repeated after it was broken off, until it succeeded.
func Restore(ctx context.Context, dir string, to Installation, opts Options) (Restored, error) {
	about, err := read(dir)
	if err == nil {
		err = about.check(dir, databaseFile, objectsFile, secretFile)
	}
	if err != nil {
		return Restored{}, err
	}
	out := Restored{About: about}
	secret, err := Secret(dir)
	if err != nil {
		return out, err
	}
	if to.Secret != "" && to.Secret != secret {
		return out, errs.FailedPrecondition("wrong_secret", "SKERRY_SECRET is not the one of the backup, under which its database is sealed. Set the backup's, or none.")
	}
	if err := pg.IsEmpty(ctx, to.DatabaseURL); err != nil {
		return out, err
	}
	if err := out.objects(ctx, dir, to.Store, opts); err != nil {
		return out, err
	}
	if err := pg.Load(ctx, to.DatabaseURL, filepath.Join(dir, databaseFile), append(out.unseen(), newObjects, awaitLooks)...); err != nil {
		return out, err
	}
	return out, compare(ctx, to.DatabaseURL, about)
}

// read reads backup.json.
func read(dir string) (About, error) {
	f, err := os.Open(filepath.Join(dir, aboutFile))
	if err != nil {
		return About{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxAbout))
	if err != nil {
		return About{}, err
	}
	var about About
	if err := json.Unmarshal(raw, &about); err != nil {
		return About{}, damaged(aboutFile)
	}
	if about.Format != format {
		return About{}, errs.FailedPrecondition("unknown_backup", fmt.Sprintf("The backup's form is %d; this program knows %d.", about.Format, format))
	}
	return about, nil
}

// check hashes files of the backup.
func (a About) check(dir string, names ...string) error {
	for _, name := range names {
		sum, err := hashOf(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if sum != a.Files[name] {
			return damaged(name)
		}
	}
	return nil
}

func damaged(name string) error {
	return errs.FailedPrecondition("backup_damaged", fmt.Sprintf("The backup's %s is not what was written. Take another backup.", name))
}

func hashOf(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// objects sees that the store has what the rows will say it has.
func (r *Restored) objects(ctx context.Context, dir string, store artifact.Store, opts Options) error {
	var copies artifact.Store
	if r.WithObjects {
		found, err := fs.New(filepath.Join(dir, storeDir))
		if err != nil {
			return err
		}
		copies = found
	}
	f, err := os.Open(filepath.Join(dir, objectsFile))
	if err != nil {
		return err
	}
	defer f.Close()
	lines := json.NewDecoder(bufio.NewReaderSize(f, 1<<20))
	done := int64(0)
	for batch := make([]artifact.Key, 0, someObjects); ; batch = batch[:0] {
		for len(batch) < someObjects {
			var o object
			if err := lines.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return damaged(objectsFile)
			}
			k, err := artifact.ParseKey(o.Key)
			if err != nil {
				return damaged(objectsFile)
			}
			batch = append(batch, k)
		}
		if len(batch) == 0 {
			return nil
		}
		if err := r.bring(ctx, store, copies, batch); err != nil {
			return err
		}
		if done += int64(len(batch)); opts.Progress != nil {
			opts.Progress(done)
		}
	}
}

// bring puts into the store what it lacks of keys.
func (r *Restored) bring(ctx context.Context, store, copies artifact.Store, keys []artifact.Key) error {
	there, err := look(ctx, store, nil, keys)
	if err != nil {
		return err
	}
	var missing []artifact.Key
	for i, o := range there {
		if o.Size < 0 {
			missing = append(missing, keys[i])
		}
	}
	if copies == nil {
		for _, k := range missing {
			r.miss(k)
		}
		return nil
	}
	brought, err := look(ctx, copies, store, missing)
	if err != nil {
		return err
	}
	for i, o := range brought {
		if o.Size < 0 {
			r.miss(missing[i])
		} else {
			r.Brought++
		}
	}
	return nil
}

// compare counts the rows again.
func compare(ctx context.Context, address string, about About) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	have := map[string]int64{}
	if err := countRows(ctx, tx, have); err != nil {
		return err
	}
	var wrong []error
	for table, want := range about.Rows {
		if have[table] != want {
			wrong = append(wrong, fmt.Errorf("table %s has %d rows, the backup %d", table, have[table], want))
		}
	}
	return errors.Join(wrong...)
}
