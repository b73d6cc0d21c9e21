package hostlink

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// carries answers uploads and fetches as it was told.
type carries struct {
	upload func(ctx context.Context, req *agentv1.UploadRequest, out *connect.ServerStream[agentv1.UploadResponse]) error
	fetch  func(ctx context.Context, req *agentv1.FetchRequest, out *connect.ServerStream[agentv1.FetchResponse]) error
}

func (a *agent) Upload(ctx context.Context, req *agentv1.UploadRequest, out *connect.ServerStream[agentv1.UploadResponse]) error {
	return a.upload(ctx, req, out)
}

func (a *agent) Fetch(ctx context.Context, req *agentv1.FetchRequest, out *connect.ServerStream[agentv1.FetchResponse]) error {
	return a.fetch(ctx, req, out)
}

func TestP5_HostsAreToldWhatToCarry(t *testing.T) {
	pool, a := newPool(t)
	agents := NewAgents(pool)
	state := id.NewSnapshot()
	from := artifact.Source{URL: "https://x/a", Key: artifact.ContentKey("k")}
	source := &agentv1.Source{Url: "https://x/a", Key: []byte("k")}
	same := func(t *testing.T, want, got proto.Message) {
		t.Helper()
		if !proto.Equal(want, got) {
			t.Errorf("asked for %v, want %v", got, want)
		}
	}
	var told [][2]int64
	progress := func(done, total int64) { told = append(told, [2]int64{done, total}) }

	a.upload = func(_ context.Context, req *agentv1.UploadRequest, out *connect.ServerStream[agentv1.UploadResponse]) error {
		same(t, &agentv1.UploadRequest{What: &agentv1.UploadRequest_StateId{StateId: state.UUID().String()}, To: source}, req)
		for _, p := range []*agentv1.Progress{{DoneBytes: 1, TotalBytes: 9}, {DoneBytes: -5, TotalBytes: 9}} {
			if err := out.Send(&agentv1.UploadResponse{Message: &agentv1.UploadResponse_Progress{Progress: p}}); err != nil {
				return err
			}
		}
		return out.Send(&agentv1.UploadResponse{Message: &agentv1.UploadResponse_Result_{
			Result: &agentv1.UploadResponse_Result{ManifestDigest: "m", SizeBytes: 9, SentBytes: 4},
		}})
	}
	got, err := agents.Upload(t.Context(), a.ref, host.StateCargo{ID: state}, from, progress)
	if diff := cmp.Diff(host.Uploaded{ManifestDigest: "m", SizeBytes: 9, SentBytes: 4}, got); err != nil || diff != "" {
		t.Errorf("uploaded: %v %s", err, diff)
	}
	if diff := cmp.Diff([][2]int64{{1, 9}, {0, 9}}, told); diff != "" {
		t.Errorf("progress: %s", diff)
	}

	for name, c := range map[string]struct {
		what host.Cargo
		want *agentv1.FetchRequest
	}{
		"state": {host.StateCargo{ID: state, Digest: "d", SizeBytes: 7}, &agentv1.FetchRequest{From: source, What: &agentv1.FetchRequest_State{
			State: &agentv1.FetchRequest_StateCopy{StateId: state.UUID().String(), Digest: "d", SizeBytes: 7},
		}}},
		"image": {host.ImageCargo{Digest: "i", SizeBytes: 8}, &agentv1.FetchRequest{From: source, What: &agentv1.FetchRequest_Image{
			Image: &agentv1.Image{Digest: "i", SizeBytes: 8, From: source},
		}}},
		"engine": {host.EngineCargo{Engine: "gvisor", Version: "1", Digest: "e"}, &agentv1.FetchRequest{From: source, What: &agentv1.FetchRequest_Engine{
			Engine: &agentv1.EngineBuild{Engine: "gvisor", Version: "1", Digest: "e"},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			a.fetch = func(_ context.Context, req *agentv1.FetchRequest, out *connect.ServerStream[agentv1.FetchResponse]) error {
				same(t, c.want, req)
				return out.Send(&agentv1.FetchResponse{Message: &agentv1.FetchResponse_Done{Done: true}})
			}
			if err := agents.Fetch(t.Context(), a.ref, c.what, from, nil); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := agents.Upload(t.Context(), a.ref, host.ImageCargo{Digest: "i"}, from, nil); err == nil {
		t.Error("a host was asked to upload an image")
	}
}

func TestP5_ATransferThatBreaksOffIsTriedAgainAndOneThatFailedIsNot(t *testing.T) {
	pool, a := newPool(t)
	agents := NewAgents(pool)
	what, from := host.StateCargo{ID: id.NewSnapshot(), Digest: "d"}, artifact.Source{URL: "https://x"}
	a.fetch = func(context.Context, *agentv1.FetchRequest, *connect.ServerStream[agentv1.FetchResponse]) error {
		return nil
	}
	if err := agents.Fetch(t.Context(), a.ref, what, from, nil); !errs.Is(err, "host_unavailable") {
		t.Errorf("ended without a word: %v", err)
	}
	a.upload = func(context.Context, *agentv1.UploadRequest, *connect.ServerStream[agentv1.UploadResponse]) error {
		return nil
	}
	if _, err := agents.Upload(t.Context(), a.ref, what, from, nil); !errs.Is(err, "host_unavailable") {
		t.Errorf("ended without a word: %v", err)
	}
	left := make(chan struct{})
	a.fetch = func(ctx context.Context, _ *agentv1.FetchRequest, out *connect.ServerStream[agentv1.FetchResponse]) error {
		if err := out.Send(&agentv1.FetchResponse{Message: &agentv1.FetchResponse_Progress{Progress: &agentv1.Progress{DoneBytes: 1}}}); err != nil {
			return err
		}
		<-ctx.Done()
		close(left)
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := agents.Fetch(ctx, a.ref, what, from, func(int64, int64) { cancel() }); err == nil {
		t.Error("given up and done")
	}
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the host goes on with what was given up")
	}
}
