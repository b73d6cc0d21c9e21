package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/observe"
)

// Bounds of bringing states to the store.
const (
	uploadEvery = time.Second
	uploadHands = 8 // of one server
	uploadHost  = 2 // of them for one host
	// uploadLease is how long a server that died keeps others from going on.
	uploadLease = time.Minute
	uploadRenew = uploadLease / 4
	// uploadRetry is how long after a failure it is tried again; it doubles.
	uploadRetry    = 10 * time.Second
	uploadRetryMax = 15 * time.Minute
)

// DefaultUploadAfter is how old a state of a pause or checkpoint is before it is
// brought to the store: one that is resumed at once need not be.
const DefaultUploadAfter = 10 * time.Second

// Upload is a state that is on its way to the store.
type Upload struct {
	State     id.Snapshot
	Team      id.Team
	Host      host.Ref // brings it there
	Artifact  id.Artifact
	SizeBytes int64
	Digest    string
	// Stored: it is there already, and only has to be noted.
	Stored bool
}

// UploadConfig of the uploader. Zero values take the defaults.
type UploadConfig struct {
	// After is how old states of pauses and checkpoints are before they are brought
	// to the store; nil is never.
	After *time.Duration
	// OnStep is called after each step; an error abandons the upload there, as the
	// death of the process would.
	OnStep func(UploadStep, Upload) error
}

// UploadStep is a point of an upload at which a process may die.
type UploadStep string

// The steps, each named by what has just been done.
const (
	StepUploadTaken  UploadStep = "upload_taken"
	StepUploadSent   UploadStep = "upload_sent"
	StepUploadStored UploadStep = "upload_stored"
	StepUploadFailed UploadStep = "upload_failed"
)

// UploadSteps are all of them.
func UploadSteps() []UploadStep {
	return []UploadStep{StepUploadTaken, StepUploadSent, StepUploadStored, StepUploadFailed}
}

// Uploader brings saved states to the store. It looks at the world and takes no
// input; several servers may each run one: a state is taken under its row's lock
// for a time, and what is stored already is not sent again.
type Uploader struct {
	store     Store
	agents    Agents
	artifacts Artifacts
	cfg       UploadConfig
	log       *slog.Logger

	mu     sync.Mutex
	busy   map[id.Host]int // no zeros
	failed map[id.Snapshot]int
	under  sync.WaitGroup
	free   chan struct{}
}

// NewUploader makes the loop.
func NewUploader(store Store, agents Agents, artifacts Artifacts, cfg UploadConfig, log *slog.Logger) *Uploader {
	if cfg.OnStep == nil {
		cfg.OnStep = func(UploadStep, Upload) error { return nil }
	}
	return &Uploader{
		store: store, agents: agents, artifacts: artifacts, cfg: cfg, log: log,
		busy: map[id.Host]int{}, failed: map[id.Snapshot]int{}, free: make(chan struct{}, 1),
	}
}

// Run uploads until ctx ends, then waits for what is under way to be let go.
func (u *Uploader) Run(ctx context.Context) error {
	defer u.under.Wait()
	ticker := time.NewTicker(uploadEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-u.free:
		}
		if err := observe.Round(ctx, "state_upload", u.begin); err != nil && ctx.Err() == nil {
			u.log.WarnContext(ctx, "cannot look for states to upload", "error", err)
		}
	}
}

// Pass uploads what is due and returns when that is done.
func (u *Uploader) Pass(ctx context.Context) error {
	err := u.begin(ctx)
	u.under.Wait()
	return err
}

// begin takes as many as there are free hands.
func (u *Uploader) begin(ctx context.Context) error {
	for {
		full, ok := u.crowded()
		if !ok {
			return nil
		}
		up, err := u.store.TakeUpload(ctx, uploadLease, full, u.cfg.After)
		if err != nil || up.State.IsZero() {
			return err
		}
		u.mu.Lock()
		u.busy[up.Host.ID]++
		u.mu.Unlock()
		u.under.Go(func() {
			defer u.done(up.Host.ID)
			u.upload(ctx, up)
		})
	}
}

// crowded are hosts that have enough to do; false when this server has.
func (u *Uploader) crowded() ([]id.Host, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := 0
	full := []id.Host{}
	for h, n := range u.busy {
		if all += n; n >= uploadHost {
			full = append(full, h)
		}
	}
	return full, all < uploadHands
}

func (u *Uploader) done(h id.Host) {
	u.mu.Lock()
	if u.busy[h]--; u.busy[h] == 0 {
		delete(u.busy, h)
	}
	u.mu.Unlock()
	select {
	case u.free <- struct{}{}:
	default:
	}
}

// upload brings one there. What it says of failures is written down; the lease
// ends whatever else comes in between.
func (u *Uploader) upload(ctx context.Context, up Upload) {
	log := u.log.With("snapshot_id", up.State.String(), "host_id", up.Host.ID.String())
	err := u.bring(ctx, up)
	switch {
	case err == nil:
		u.mu.Lock()
		delete(u.failed, up.State)
		u.mu.Unlock()
		return
	case ctx.Err() != nil, errors.Is(err, errAbandoned), errors.Is(err, errSupplanted):
		return
	}
	pause := u.pause(up.State)
	log.WarnContext(ctx, "a saved state could not be brought to the store; it is tried again", "error", err, "pause", pause)
	if err := u.store.UploadFailed(ctx, up, errs.As(err).Message, pause); err != nil {
		log.WarnContext(ctx, "cannot note a failed upload; its lease will end", "error", err)
		return
	}
	_ = u.cfg.OnStep(StepUploadFailed, up) // nothing is left to abandon
}

// maxFailed bounds how many failing uploads are remembered.
const maxFailed = 10_000

// pause grows with each failure in a row.
func (u *Uploader) pause(state id.Snapshot) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.failed) >= maxFailed {
		clear(u.failed)
	}
	n := u.failed[state]
	u.failed[state]++
	return min(uploadRetryMax, uploadRetry<<min(n, 7))
}

// errSupplanted: nobody wants it any more.
var errSupplanted = errors.New("the state is not to be stored any more")

func (u *Uploader) bring(ctx context.Context, up Upload) error {
	if err := u.step(StepUploadTaken, up); err != nil {
		return err
	}
	if !up.Stored {
		if err := u.send(ctx, up); err != nil {
			return err
		}
		if err := u.step(StepUploadSent, up); err != nil {
			return err
		}
	}
	stored, err := u.store.Uploaded(ctx, up)
	if err != nil {
		return err
	}
	if !stored {
		return errs.Unavailable("upload_incomplete", "The host says that it has uploaded the state, and the store has it not.")
	}
	observe.From(ctx).Moved("saved_state", "stored", -1)
	return u.step(StepUploadStored, up)
}

func (u *Uploader) step(s UploadStep, up Upload) error {
	if err := u.cfg.OnStep(s, up); err != nil {
		return errors.Join(errAbandoned, err)
	}
	return nil
}

// send has the host bring it there, and keeps the lease meanwhile.
func (u *Uploader) send(ctx context.Context, up Upload) error {
	to, err := u.artifacts.Source(ctx, up.Artifact, up.Host.ID, artifact.Write)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var renewal sync.WaitGroup
	renewal.Go(func() {
		ticker := time.NewTicker(uploadRenew)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if still, err := u.store.RenewUpload(ctx, up, uploadLease); err == nil && !still {
				cancel(errSupplanted)
			}
		}
	})
	defer renewal.Wait()
	defer cancel(nil)
	var told time.Time
	_, err = u.agents.Upload(ctx, up.Host, host.StateCargo{ID: up.State, Digest: up.Digest, SizeBytes: up.SizeBytes}, to, func(done, _ int64) {
		if time.Since(told) < time.Second {
			return
		}
		told = time.Now()
		if err := u.artifacts.Progress(ctx, up.Artifact, done); err != nil && ctx.Err() == nil {
			u.log.InfoContext(ctx, "cannot note how far an upload is", "error", err)
		}
	})
	if errors.Is(context.Cause(ctx), errSupplanted) {
		return errSupplanted
	}
	return err
}
