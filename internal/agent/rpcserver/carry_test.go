package rpcserver

import (
	"context"
	"sync"
	"testing"

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

// porter is a Carrier that notes what it is asked for.
type porter struct {
	mu      sync.Mutex
	asked   []any
	source  artifact.Source
	dropped id.Snapshot
	err     error
	// waits holds a transfer until its caller leaves, whose end it tells.
	waits bool
	left  chan error
}

func (p *porter) ask(ctx context.Context, what any, s artifact.Source, progress transfer.Progress) error {
	p.mu.Lock()
	p.asked, p.source = append(p.asked, what), s
	err, waits := p.err, p.waits
	p.mu.Unlock()
	progress(3, 10)
	if waits {
		<-ctx.Done()
		p.left <- ctx.Err()
		return ctx.Err()
	}
	return err
}

func (p *porter) UploadState(ctx context.Context, which id.Snapshot, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error) {
	return transfer.Uploaded{Manifest: "m", SizeBytes: 10, SentBytes: 4}, p.ask(ctx, which, to, progress)
}

func (p *porter) FetchState(ctx context.Context, want state.Copy, from artifact.Source, progress transfer.Progress) error {
	return p.ask(ctx, want, from, progress)
}

func (p *porter) FetchImage(ctx context.Context, img journal.Image, progress transfer.Progress) error {
	return p.ask(ctx, img.Digest, img.From, progress)
}

func (p *porter) UploadEngine(ctx context.Context, b carry.Build, to artifact.Source, progress transfer.Progress) (transfer.Uploaded, error) {
	return transfer.Uploaded{Manifest: "m"}, p.ask(ctx, b, to, progress)
}

func (p *porter) FetchEngine(ctx context.Context, b carry.Build, from artifact.Source, progress transfer.Progress) error {
	return p.ask(ctx, b, from, progress)
}

func (p *porter) Drop(_ context.Context, which id.Snapshot) error {
	p.dropped = which
	return nil
}

func TestP1_TransfersOverTheWire(t *testing.T) {
	f := start(t, &fixture{})
	c := f.client(t, f.ca.ControlCertificate())
	which := id.NewSnapshot()
	source := &agentv1.Source{Url: "https://store/x", Key: []byte("secret")}
	build := &agentv1.EngineBuild{Engine: "gvisor", Version: "v", Digest: "d"}

	up, err := c.Upload(t.Context(), &agentv1.UploadRequest{What: &agentv1.UploadRequest_StateId{StateId: which.UUID().String()}, To: source})
	if err != nil {
		t.Fatal(err)
	}
	var progress *agentv1.Progress
	var result *agentv1.UploadResponse_Result
	for up.Receive() {
		if p := up.Msg().GetProgress(); p != nil {
			progress = p
		}
		result = up.Msg().GetResult()
	}
	if up.Err() != nil || progress.GetDoneBytes() != 3 || progress.GetTotalBytes() != 10 || result.GetManifestDigest() != "m" || result.GetSizeBytes() != 10 || result.GetSentBytes() != 4 {
		t.Errorf("upload: %v, %v, %v", progress, result, up.Err())
	}
	for _, what := range []*agentv1.FetchRequest{
		{What: &agentv1.FetchRequest_State{State: &agentv1.FetchRequest_StateCopy{StateId: which.UUID().String(), Digest: "d", SizeBytes: 9}}, From: source},
		{What: &agentv1.FetchRequest_Image{Image: &agentv1.Image{Digest: "i", SizeBytes: 5}}, From: source},
		{What: &agentv1.FetchRequest_Engine{Engine: build}, From: source},
	} {
		down, err := c.Fetch(t.Context(), what)
		if err != nil {
			t.Fatal(err)
		}
		done := false
		for down.Receive() {
			done = down.Msg().GetDone()
		}
		if !done || down.Err() != nil {
			t.Errorf("%v: %v", what, down.Err())
		}
		if got := f.porter.source; got.URL != source.Url || string(got.Key) != "secret" {
			t.Error("it was fetched from elsewhere")
		}
	}
	want := []any{which, state.Copy{ID: which, Digest: "d", SizeBytes: 9}, "i", carry.Build{Engine: "gvisor", Version: "v", Digest: "d"}}
	for i, got := range f.porter.asked {
		if got != want[i] {
			t.Errorf("asked for %v, not %v", got, want[i])
		}
	}

	// Failures keep their reason, and a caller who leaves is known to have left.
	f.porter.err = errs.Invalid("content_mismatch", "No.").With("file", "image/pages.img")
	down, err := c.Fetch(t.Context(), &agentv1.FetchRequest{What: &agentv1.FetchRequest_Engine{Engine: build}, From: source})
	if err != nil {
		t.Fatal(err)
	}
	for down.Receive() {
	}
	if got := errs.As(rpcerr.FromConnect(down.Err())); got.Reason != "content_mismatch" || got.Details["file"] != "image/pages.img" {
		t.Errorf("%v with %v", got, got.Details)
	}
	f.porter.waits = true
	ctx, cancel := context.WithCancel(t.Context())
	if down, err = c.Fetch(ctx, &agentv1.FetchRequest{What: &agentv1.FetchRequest_Engine{Engine: build}, From: source}); err != nil || !down.Receive() {
		t.Fatal(err, down.Err())
	}
	cancel()
	if err := <-f.porter.left; err == nil {
		t.Error("it goes on")
	}
	for _, bad := range []*agentv1.UploadRequest{{To: source}, {What: &agentv1.UploadRequest_StateId{StateId: "x"}, To: source}, {What: &agentv1.UploadRequest_Engine{Engine: build}}} {
		up, err := c.Upload(t.Context(), bad)
		if err != nil {
			t.Fatal(err)
		}
		for up.Receive() {
		}
		if got := errs.As(rpcerr.FromConnect(up.Err())); got.Code != errs.CodeInvalid {
			t.Errorf("%v: %v", bad, up.Err())
		}
	}
	if _, err := c.DeleteState(t.Context(), &agentv1.DeleteStateRequest{StateId: which.UUID().String()}); err != nil || f.porter.dropped != which {
		t.Errorf("P3: a deletion waits for a transfer of the state: %v", err)
	}
}
