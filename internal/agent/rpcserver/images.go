package rpcserver

import (
	"context"
	"errors"
	"sync"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// maxReference bounds what names an image, and who pulls it.
const maxReference = 4096

// Imager makes images and uploads them. It tells log what happens, a line at a
// time; a log that fails ends the work.
type Imager interface {
	Import(ctx context.Context, req ImportRequest, log func(line string)) (BuiltImage, error)
	Export(ctx context.Context, req ExportRequest, log func(line string)) (BuiltImage, error)
}

// ImportRequest says which container image is made into one of ours: that of a
// reference, or else in a tarball.
type ImportRequest struct {
	Reference          string
	Username, Password string
	Tarball            artifact.Source
	To                 artifact.Source
}

// ExportRequest names the running sandbox an image is made of.
type ExportRequest struct {
	Sandbox     id.Sandbox
	Incarnation uint64
	To          artifact.Source
}

// BuiltImage is an image that was uploaded, with what an imported one says of
// itself.
type BuiltImage struct {
	Built
	Env           map[string]string
	User, Workdir string
	Arch          string
	Command       []string
}

func imageOf(b BuiltImage) *agentv1.BuiltImage {
	return &agentv1.BuiltImage{
		Digest: b.Digest, SizeBytes: b.SizeBytes, ManifestDigest: b.ManifestDigest,
		Env: b.Env, User: b.User, Workdir: b.Workdir, Arch: b.Arch, Command: b.Command,
	}
}

// logged runs work whose lines are sent as they come, and sends its result as
// the last. Who does not hear the lines does not wait for the result either.
func logged(ctx context.Context, sendLine func(string) error, sendResult func(*agentv1.BuiltImage) error, work func(context.Context, func(string)) (BuiltImage, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex // the stream takes one message at a time
	built, err := work(ctx, func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if err := sendLine(line); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		var typed *errs.Error
		if !errors.As(err, &typed) && ctx.Err() == nil {
			err = errs.Unavailable("image_failed", "The image could not be made: "+err.Error()).Because(err)
		}
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	return sendResult(imageOf(built))
}
