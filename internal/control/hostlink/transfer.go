package hostlink

import (
	"context"
	"errors"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
)

// errBrokenOff is a transfer whose host said neither that it succeeded nor that
// it failed.
var errBrokenOff = errors.New("hostlink: a transfer ended without a result")

func source(from artifact.Source) *agentv1.Source {
	if from.URL == "" {
		return nil
	}
	return &agentv1.Source{Url: from.URL, Key: from.Key}
}

func image(i host.ImageCargo, from artifact.Source) *agentv1.Image {
	return &agentv1.Image{Digest: i.Digest, SizeBytes: i.SizeBytes, From: source(from)}
}

func engineBuild(e host.EngineCargo) *agentv1.EngineBuild {
	return &agentv1.EngineBuild{Engine: e.Engine, Version: e.Version, Digest: e.Digest}
}

// Upload has a host bring a saved state, or the program of an engine, to the
// store. It may be repeated: what is stored is not sent again. The end of ctx
// ends it on the host too.
func (a *Agents) Upload(ctx context.Context, h host.Ref, what host.Cargo, to artifact.Source, progress host.Progress) (host.Uploaded, error) {
	req := &agentv1.UploadRequest{To: source(to)}
	switch c := what.(type) {
	case host.StateCargo:
		req.What = &agentv1.UploadRequest_StateId{StateId: c.ID.UUID().String()}
	case host.EngineCargo:
		req.What = &agentv1.UploadRequest_Engine{Engine: engineBuild(c)}
	default:
		return host.Uploaded{}, errs.Internal(errors.New("hostlink: hosts upload states and engines only"))
	}
	c, err := a.pool.Client(h)
	if err != nil {
		return host.Uploaded{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Upload(ctx, req)
	if err != nil {
		return host.Uploaded{}, failure(err)
	}
	defer stream.Close()
	for stream.Receive() {
		switch m := stream.Msg().GetMessage().(type) {
		case *agentv1.UploadResponse_Progress:
			tell(progress, m.Progress)
		case *agentv1.UploadResponse_Result_:
			return host.Uploaded{
				ManifestDigest: artifact.Digest(m.Result.GetManifestDigest()), SizeBytes: m.Result.GetSizeBytes(), SentBytes: m.Result.GetSentBytes(),
			}, nil
		}
	}
	return host.Uploaded{}, brokenOff(stream.Err())
}

// Fetch has a host bring something out of the store to itself, and returns once
// it is there, checked. It succeeds at once on what is there.
func (a *Agents) Fetch(ctx context.Context, h host.Ref, what host.Cargo, from artifact.Source, progress host.Progress) error {
	req := &agentv1.FetchRequest{From: source(from)}
	switch c := what.(type) {
	case host.StateCargo:
		req.What = &agentv1.FetchRequest_State{State: &agentv1.FetchRequest_StateCopy{
			StateId: c.ID.UUID().String(), Digest: c.Digest, SizeBytes: c.SizeBytes,
		}}
	case host.ImageCargo:
		req.What = &agentv1.FetchRequest_Image{Image: image(c, from)}
	case host.EngineCargo:
		req.What = &agentv1.FetchRequest_Engine{Engine: engineBuild(c)}
	default:
		return errs.Internal(errors.New("hostlink: nothing to fetch"))
	}
	c, err := a.pool.Client(h)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Fetch(ctx, req)
	if err != nil {
		return failure(err)
	}
	defer stream.Close()
	for stream.Receive() {
		switch m := stream.Msg().GetMessage().(type) {
		case *agentv1.FetchResponse_Progress:
			tell(progress, m.Progress)
		case *agentv1.FetchResponse_Done:
			return nil
		}
	}
	return brokenOff(stream.Err())
}

func tell(progress host.Progress, p *agentv1.Progress) {
	if progress != nil {
		progress(max(p.GetDoneBytes(), 0), max(p.GetTotalBytes(), 0))
	}
}

func brokenOff(err error) error {
	if err != nil {
		return failure(err)
	}
	return errs.Unavailable("host_unavailable", "The host broke off. It is tried again.").Because(errBrokenOff).After(retryAfter)
}

// KeepWarm says which instances a host is to keep ready, all at once, and returns
// what it has ready now.
func (a *Agents) KeepWarm(ctx context.Context, h host.Ref, targets []host.WarmTarget) ([]host.Warm, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return nil, err
	}
	req := &agentv1.KeepWarmRequest{Targets: make([]*agentv1.KeepWarmRequest_Target, len(targets))}
	for i, t := range targets {
		req.Targets[i] = &agentv1.KeepWarmRequest_Target{
			TemplateId: t.Template.UUID().String(), Engine: t.Engine, Image: image(t.Image, t.ImageFrom), Internet: t.Internet,
			Count: uint32(max(t.Count, 0)), Key: t.Key,
			Resources: &agentv1.Resources{
				CpuMillis: uint32(t.CPUMillis), MemoryMb: uint32(t.MemoryMB), DiskMb: uint32(t.DiskMB), MaxProcesses: uint32(t.MaxProcesses),
			},
		}
		if !t.State.IsZero() {
			req.Targets[i].StateId = t.State.UUID().String()
		}
	}
	res, err := c.KeepWarm(ctx, req)
	if err != nil {
		return nil, failure(err)
	}
	out := make([]host.Warm, 0, len(targets))
	for _, k := range res.GetKept() {
		out = append(out, host.Warm{Key: k.GetKey(), Ready: int(k.GetReady()), Reason: k.GetReason()})
	}
	return out, nil
}
