package rpcserver

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/carry"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// Carrier is what the service asks to move things to the store and from there.
type Carrier interface {
	UploadState(ctx context.Context, which id.Snapshot, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error)
	FetchState(ctx context.Context, want state.Copy, from artifact.Source, progress transfer.Progress) error
	FetchImage(ctx context.Context, img journal.Image, progress transfer.Progress) error
	UploadEngine(ctx context.Context, b carry.Build, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error)
	FetchEngine(ctx context.Context, b carry.Build, from artifact.Source, progress transfer.Progress) error
	// Drop ends the transfers of a state.
	Drop(ctx context.Context, which id.Snapshot) error
}

var _ Carrier = (*carry.Carrier)(nil)

// sourceOf is where bytes are, or are to be put. A key of another length is
// refused by who uses it.
func sourceOf(in *agentv1.Source) artifact.Source {
	return artifact.Source{URL: in.GetUrl(), Key: artifact.ContentKey(in.GetKey())}
}

func buildOf(in *agentv1.EngineBuild) carry.Build {
	return carry.Build{Engine: in.GetEngine(), Version: in.GetVersion(), Digest: in.GetDigest()}
}

// told makes a progress that sends, and a context that ends when that fails: who
// does not hear of a transfer does not wait for it either.
func told(ctx context.Context, send func(*agentv1.Progress) error) (context.Context, context.CancelFunc, transfer.Progress) {
	ctx, cancel := context.WithCancelCause(ctx)
	var mu sync.Mutex
	return ctx, func() { cancel(nil) }, func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if err := send(&agentv1.Progress{DoneBytes: done, TotalBytes: total}); err != nil {
			cancel(err)
		}
	}
}

func (s *service) Upload(ctx context.Context, in *agentv1.UploadRequest, out *connect.ServerStream[agentv1.UploadResponse]) error {
	to := sourceOf(in.GetTo())
	if to.URL == "" {
		return rpcerr.ToConnect(errs.Field("to.url", "Say where it is to be stored."))
	}
	ctx, cancel, progress := told(ctx, func(p *agentv1.Progress) error {
		return out.Send(&agentv1.UploadResponse{Message: &agentv1.UploadResponse_Progress{Progress: p}})
	})
	defer cancel()
	var up transfer.Uploaded
	var err error
	switch what := in.GetWhat().(type) {
	case *agentv1.UploadRequest_StateId:
		var which id.Snapshot
		if which, err = which.ParseBare(what.StateId); err == nil {
			up, err = s.carrier.UploadState(ctx, which, to, progress)
		}
	case *agentv1.UploadRequest_Engine:
		up, err = s.carrier.UploadEngine(ctx, buildOf(what.Engine), to, progress)
	default:
		err = errs.Field("what", "Say what is to be stored.")
	}
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	return out.Send(&agentv1.UploadResponse{Message: &agentv1.UploadResponse_Result_{Result: &agentv1.UploadResponse_Result{
		ManifestDigest: string(up.Manifest), SizeBytes: up.SizeBytes, SentBytes: up.SentBytes,
	}}})
}

func (s *service) Fetch(ctx context.Context, in *agentv1.FetchRequest, out *connect.ServerStream[agentv1.FetchResponse]) error {
	from := sourceOf(in.GetFrom())
	ctx, cancel, progress := told(ctx, func(p *agentv1.Progress) error {
		return out.Send(&agentv1.FetchResponse{Message: &agentv1.FetchResponse_Progress{Progress: p}})
	})
	defer cancel()
	var err error
	switch what := in.GetWhat().(type) {
	case *agentv1.FetchRequest_State:
		var which id.Snapshot
		if which, err = which.ParseBare(what.State.GetStateId()); err == nil {
			err = s.carrier.FetchState(ctx, state.Copy{ID: which, Digest: what.State.GetDigest(), SizeBytes: what.State.GetSizeBytes()}, from, progress)
		}
	case *agentv1.FetchRequest_Image:
		err = s.carrier.FetchImage(ctx, journal.Image{Digest: what.Image.GetDigest(), SizeBytes: what.Image.GetSizeBytes(), From: from}, progress)
	case *agentv1.FetchRequest_Engine:
		err = s.carrier.FetchEngine(ctx, buildOf(what.Engine), from, progress)
	default:
		err = errs.Field("what", "Say what is to be fetched.")
	}
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	return out.Send(&agentv1.FetchResponse{Message: &agentv1.FetchResponse_Done{Done: true}})
}
