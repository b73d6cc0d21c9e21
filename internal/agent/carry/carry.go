package carry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// What moves at once, each with some ten megabytes a chunk in flight.
	uploads = 2
	fetches = 4
	// maxProgram bounds the program of an engine.
	maxProgram = 1 << 30
	// maxBeside bounds what comes with the files of a state's image, over and above
	// their size once more: its description, its disk in another form, its daemon.
	maxBeside = 64 << 20
	// leftFor is how long what a broken fetch of a program left stays.
	leftFor = 24 * time.Hour
)

// Images fetches templates' images into the host's cache.
type Images interface {
	Fetch(ctx context.Context, img journal.Image, progress transfer.Progress) error
}

// Config wires a Carrier. All but the last four are required.
type Config struct {
	States  *state.Store
	Images  Images
	Engines map[string]engine.Engine
	Clients transfer.Clients
	// Dir holds programs of engines on their way.
	Dir string
	// Daemon is the guest daemon that this host ships, DaemonDigest its SHA-256: with
	// a state that has just that it is not fetched. The file is never written to.
	Daemon       string
	DaemonDigest artifact.Digest
	// BeforeUpload is called before a state is read; its failure does not keep the
	// state from being stored.
	BeforeUpload func(ctx context.Context, which id.Snapshot) error
	Logger       *slog.Logger
}

// Build names a build of an engine.
type Build struct {
	Engine  string
	Version string
	Digest  string // SHA-256 of the program, hex
}

// Carrier is safe for concurrent use.
type Carrier struct {
	cfg      Config
	flights  *flights
	up, down chan struct{}
}

// New returns a carrier and removes what nobody went on with.
func New(cfg Config) (*Carrier, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("carry: %w", err)
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("carry: %w", err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) < leftFor {
			continue
		}
		if err := os.RemoveAll(filepath.Join(cfg.Dir, entry.Name())); err != nil {
			return nil, fmt.Errorf("carry: %w", err)
		}
	}
	return &Carrier{cfg: cfg, flights: newFlights(), up: make(chan struct{}, uploads), down: make(chan struct{}, fetches)}, nil
}

// Close ends every transfer and waits for it.
func (c *Carrier) Close() { c.flights.close() }

func uploadKey(which id.Snapshot) string { return "upload " + which.String() }
func fetchKey(which id.Snapshot) string  { return "fetch " + which.String() }

// UploadState stores a saved state with all it consists of. Reasons:
// unknown_state, state_damaged, and those of the store.
func (c *Carrier) UploadState(ctx context.Context, which id.Snapshot, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error) {
	return c.flights.join(ctx, uploadKey(which), to.URL, c.up, progress, func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error) {
		if c.cfg.BeforeUpload != nil {
			if err := c.cfg.BeforeUpload(ctx, which); err != nil && ctx.Err() == nil {
				c.cfg.Logger.Warn("a saved state is stored as it is", "snapshot_id", which.String(), "err", err)
			}
		}
		held, err := c.cfg.States.Hold(ctx, which)
		if err != nil {
			return transfer.Uploaded{}, err
		}
		defer held.Release()
		var files []transfer.File
		for _, p := range held.Parts() {
			files = append(files, transfer.File{Name: p.Name, Path: p.Path, Mode: p.Mode})
		}
		return transfer.Upload(ctx, c.cfg.Clients, to, files, artifact.MediaTypeState, transfer.Options{Progress: progress})
	})
}

// FetchState brings a saved state here; see state.Store.Import.
func (c *Carrier) FetchState(ctx context.Context, want state.Copy, from artifact.Source, progress transfer.Progress) error {
	_, err := c.flights.join(ctx, fetchKey(want.ID), want.Digest, c.down, progress, func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error) {
		_, err := c.cfg.States.Import(ctx, want, func(ctx context.Context, dir string) error {
			into := transfer.Into(dir)
			place := func(f artifact.File) (string, error) {
				if !state.Accepts(f.Name) {
					return "", errs.Invalid("wrong_artifact", "The artifact has a file that no saved state has.").With("file", f.Name)
				}
				path, err := into(f)
				if err == nil && state.IsGuest(f.Name) {
					c.reuse(f, from.Key, path)
				}
				return path, err
			}
			opts := transfer.Options{Progress: progress, MaxBytes: 2*want.SizeBytes + maxBeside}
			return transfer.Fetch(ctx, c.cfg.Clients, from, transfer.Want{MediaType: artifact.MediaTypeState}, place, opts)
		})
		return transfer.Uploaded{}, err
	})
	return err
}

// reuse puts a daemon that is here already where the fetch of a state looks for
// its own, which it checks and fetches all the same if it is not right.
func (c *Carrier) reuse(f artifact.File, key artifact.ContentKey, path string) {
	if transfer.IsFile(f, key, c.cfg.DaemonDigest) && os.Link(c.cfg.Daemon, path) == nil {
		return
	}
	for digest, file := range c.cfg.States.GuestFiles() {
		if transfer.IsFile(f, key, artifact.Digest(digest)) && os.Link(file, path) == nil {
			return
		}
	}
}

// Drop ends the transfers of a state, which is to be deleted, and returns when
// they have ended.
func (c *Carrier) Drop(ctx context.Context, which id.Snapshot) error {
	why := errs.NotFound("unknown_state", "The saved state is deleted.").With("state_id", which.UUID().String())
	return errors.Join(c.flights.stop(ctx, uploadKey(which), why), c.flights.stop(ctx, fetchKey(which), why))
}

// FetchImage brings an image here.
func (c *Carrier) FetchImage(ctx context.Context, img journal.Image, progress transfer.Progress) error {
	_, err := c.flights.join(ctx, "image "+img.Digest, "", c.down, progress, func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error) {
		return transfer.Uploaded{}, c.cfg.Images.Fetch(ctx, img, progress)
	})
	return err
}

// UploadEngine stores the program of an engine. Reasons: engine_unavailable,
// engine_build_missing, and those of the store.
func (c *Carrier) UploadEngine(ctx context.Context, b Build, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error) {
	e, err := c.builder(b)
	if err != nil {
		return transfer.Uploaded{}, err
	}
	return c.flights.join(ctx, "upload "+b.Engine+" "+b.Version, to.URL, c.up, progress, func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error) {
		kept, err := find(ctx, e, b)
		if err != nil {
			return transfer.Uploaded{}, err
		}
		if kept == nil {
			return transfer.Uploaded{}, errs.NotFound("engine_build_missing", "This host does not have "+b.Engine+" "+b.Version+".").With("version", b.Version)
		}
		files := []transfer.File{{Name: artifact.EngineFile, Path: kept.Path, Mode: 0o555}}
		return transfer.Upload(ctx, c.cfg.Clients, to, files, artifact.MediaTypeEngine, transfer.Options{Progress: progress})
	})
}

// FetchEngine brings the program of an engine here and keeps it. It is that of its
// digest, and says that it is that version; nothing else is kept.
func (c *Carrier) FetchEngine(ctx context.Context, b Build, from artifact.Source, progress transfer.Progress) error {
	e, err := c.builder(b)
	if err != nil {
		return err
	}
	digest, err := artifact.ParseDigest(b.Digest)
	if err != nil {
		return err
	}
	want := engine.Build{Version: b.Version, Digest: b.Digest}
	_, err = c.flights.join(ctx, "engine "+b.Digest, b.Version, c.down, progress, func(ctx context.Context, progress transfer.Progress) (transfer.Uploaded, error) {
		if kept, err := find(ctx, e, b); err != nil || kept != nil {
			if err == nil {
				err = e.Keep(ctx, kept.Path, want) // and it stays for a while
			}
			return transfer.Uploaded{}, err
		}
		path := filepath.Join(c.cfg.Dir, b.Digest)
		bundle := transfer.Want{MediaType: artifact.MediaTypeEngine, Files: map[string]artifact.Digest{artifact.EngineFile: digest}}
		err := transfer.Fetch(ctx, c.cfg.Clients, from, bundle, transfer.At(artifact.EngineFile, path), transfer.Options{Progress: progress, MaxBytes: maxProgram})
		if err != nil {
			return transfer.Uploaded{}, err
		}
		return transfer.Uploaded{}, errors.Join(e.Keep(ctx, path, want), os.Remove(path))
	})
	return err
}

// builder is the engine, if it has builds.
func (c *Carrier) builder(b Build) (engine.Builder, error) {
	e, ok := c.cfg.Engines[b.Engine].(engine.Builder)
	if !ok {
		return nil, errs.FailedPrecondition("engine_unavailable", fmt.Sprintf("This host has no engine %q of which it keeps builds.", b.Engine))
	}
	return e, nil
}

// find is the build if it is kept here, nil otherwise. A digest that was not said
// matches any.
func find(ctx context.Context, e engine.Builder, b Build) (*engine.Kept, error) {
	all, err := e.Builds(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range all {
		if k.Version == b.Version && (b.Digest == "" || k.Digest == b.Digest) {
			return &k, nil
		}
	}
	return nil, nil
}
