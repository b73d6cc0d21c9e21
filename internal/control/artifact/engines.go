package artifact

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Rhythm and bounds of keeping engines.
const (
	enginesEvery = time.Minute
	// Uploads of one pass, one after the other, and how long each may take.
	engineUploads = 4
	engineLimit   = 10 * time.Minute
	// enginePause is when an upload that failed is tried again.
	enginePause = 5 * time.Minute
	// engineUnseen is after how long a build is forgotten that no host has and no
	// state needs.
	engineUnseen = 7 * 24 * time.Hour
	someEngines  = 100
)

// EngineUpload is a build of an engine that the store lacks, about to be brought
// there.
type EngineUpload struct {
	Team     id.Team // whose hosts may run it
	Engine   string
	Version  string
	Arch     string
	Digest   string // SHA-256 of the program, hex
	Artifact id.Artifact
	Host     host.Ref // which has it
}

// EngineRows is what the keeper needs of the room's store. Each verb is one
// transaction; several servers share the work.
type EngineRows interface {
	// RecordEngines makes a row of each build that a host says it has.
	RecordEngines(ctx context.Context) error
	// TakeEngineUpload gives the caller a build that the store lacks and a host in
	// reach has, with an artifact that is uploading, and nobody else for so long.
	TakeEngineUpload(ctx context.Context, lease time.Duration) (EngineUpload, bool, error)
	// EngineUploaded is told that the store has it, when again is 0; else it is tried
	// again in so long.
	EngineUploaded(ctx context.Context, e EngineUpload, again time.Duration) error
	// PruneEngines forgets builds that no host has said to have for so long and no
	// saved state needs.
	PruneEngines(ctx context.Context, unseen time.Duration, n int) (int, error)
	// Progress notes how far an upload is.
	Progress(ctx context.Context, a id.Artifact, done int64) error
}

// EngineHosts are the agents, as far as they bring engines to the store.
type EngineHosts interface {
	Upload(ctx context.Context, h host.Ref, what host.Cargo, to artifact.Source, progress host.Progress) (host.Uploaded, error)
}

// EngineKeeper sees to it that the store has each build of an engine that hosts
// run: a state with memory starts under the build that saved it alone. It looks
// at the world and takes no input; several servers may each run one.
type EngineKeeper struct {
	rows    EngineRows
	hosts   EngineHosts
	service *Service
	log     *slog.Logger
}

// NewEngineKeeper makes the loop.
func NewEngineKeeper(rows EngineRows, hosts EngineHosts, service *Service, log *slog.Logger) *EngineKeeper {
	return &EngineKeeper{rows: rows, hosts: hosts, service: service, log: log}
}

// Run keeps engines until ctx ends.
func (k *EngineKeeper) Run(ctx context.Context) error {
	ticker := time.NewTicker(enginesEvery)
	defer ticker.Stop()
	for {
		if err := observe.Round(ctx, "engine_keeper", k.Pass); err != nil && ctx.Err() == nil {
			k.log.WarnContext(ctx, "cannot bring all engines to the store", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Pass is one bounded look.
func (k *EngineKeeper) Pass(ctx context.Context) error {
	failed := []error{k.rows.RecordEngines(ctx)}
	for range engineUploads {
		e, some, err := k.rows.TakeEngineUpload(ctx, engineLimit+time.Minute)
		if err != nil || !some {
			failed = append(failed, err)
			break
		}
		failed = append(failed, k.upload(ctx, e))
	}
	_, err := k.rows.PruneEngines(ctx, engineUnseen, someEngines)
	return errors.Join(append(failed, err)...)
}

func (k *EngineKeeper) upload(ctx context.Context, e EngineUpload) error {
	err := k.bring(ctx, e)
	again := enginePause
	if err == nil {
		again = 0
		k.log.InfoContext(ctx, "the store has an engine's build", "engine", e.Engine, "version", e.Version, "host_id", e.Host.ID.String())
	} else {
		err = fmt.Errorf("bring %s %s from host %s: %w", e.Engine, e.Version, e.Host.ID, err)
	}
	return errors.Join(err, k.rows.EngineUploaded(ctx, e, again))
}

func (k *EngineKeeper) bring(ctx context.Context, e EngineUpload) error {
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	to, err := k.service.Source(ctx, e.Artifact, e.Host.ID, Write)
	if err != nil {
		return err
	}
	if _, err := k.hosts.Upload(ctx, e.Host, host.EngineCargo{Engine: e.Engine, Version: e.Version, Digest: e.Digest}, to, k.progress(ctx, e.Artifact)); err != nil {
		return err
	}
	// The row decides, not what the host says.
	a, err := k.service.Describe(ctx, e.Artifact)
	if err == nil && a.Status != StatusReady {
		err = fmt.Errorf("the host says it is there, and it is %s", a.Status)
	}
	return err
}

// progress notes how far an upload is, once a second at most.
func (k *EngineKeeper) progress(ctx context.Context, a id.Artifact) host.Progress {
	var last time.Time
	return func(done, _ int64) {
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		if err := k.rows.Progress(ctx, a, done); err != nil {
			k.log.WarnContext(ctx, "cannot note how far an upload is", "error", err)
		}
	}
}
