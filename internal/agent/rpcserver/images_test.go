package rpcserver

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// imager says two lines and then what it was told to.
type imager struct {
	imported ImportRequest
	exported ExportRequest
	err      error
}

func (i *imager) Import(_ context.Context, req ImportRequest, log func(string)) (BuiltImage, error) {
	i.imported = req
	log("one")
	log("two")
	return BuiltImage{
		Built: Built{Digest: "d", ManifestDigest: "m", SizeBytes: 7}, Env: map[string]string{"A": "b"}, User: "u", Workdir: "/w", Arch: "amd64", Command: []string{"c"},
	}, i.err
}

func (i *imager) Export(_ context.Context, req ExportRequest, log func(string)) (BuiltImage, error) {
	i.exported = req
	log("one")
	return BuiltImage{Built: Built{Digest: "d"}}, i.err
}

func TestP2_ImagesAreMadeOverTheWire(t *testing.T) {
	i := &imager{}
	f := start(t, &fixture{imager: i})
	c := f.client(t, f.ca.ControlCertificate())
	key := []byte(strings.Repeat("k", artifact.ContentKeyBytes))
	stream, err := c.ImportImage(t.Context(), &agentv1.ImportImageRequest{Reference: "r", Username: "me", Password: "pw", To: &agentv1.Source{Url: "https://x/", Key: key}})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	var got *agentv1.BuiltImage
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			got = r
			continue
		}
		lines = append(lines, stream.Msg().GetLog())
	}
	want := &agentv1.BuiltImage{
		Digest: "d", SizeBytes: 7, ManifestDigest: "m", Env: map[string]string{"A": "b"}, User: "u", Workdir: "/w", Arch: "amd64", Command: []string{"c"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || stream.Err() != nil || strings.Join(lines, " ") != "one two" {
		t.Errorf("%s; %v, %v", diff, lines, stream.Err())
	}
	_ = stream.Close()
	if r := i.imported; r.Reference != "r" || r.Username != "me" || r.Password != "pw" || r.To.URL != "https://x/" || string(r.To.Key) != string(key) {
		t.Errorf("asked for %+v", r)
	}
	sandbox := id.NewSandbox()
	out, err := c.ExportImage(t.Context(), &agentv1.ExportImageRequest{SandboxId: sandbox.UUID().String(), Incarnation: 3, To: &agentv1.Source{Url: "https://x/"}})
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for out.Receive() {
		last = out.Msg().GetResult().GetDigest()
	}
	_ = out.Close()
	if out.Err() != nil || last != "d" || i.exported.Sandbox != sandbox || i.exported.Incarnation != 3 {
		t.Errorf("exported %q of %+v, %v", last, i.exported, out.Err())
	}
	for _, fail := range []error{errs.NotFound("image_not_found", "None."), errors.New("a plain one")} {
		i.err = fail
		stream, err := c.ImportImage(t.Context(), &agentv1.ImportImageRequest{Reference: "r", To: &agentv1.Source{Url: "https://x/"}})
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
			if stream.Msg().GetResult() != nil {
				t.Error("a failure has a result")
			}
		}
		want := "image_failed"
		if errs.Is(fail, "image_not_found") {
			want = "image_not_found"
		}
		if got := rpcerr.FromConnect(stream.Err()); !errs.Is(got, want) {
			t.Errorf("%v arrives as %v", fail, got)
		}
		_ = stream.Close()
	}
}
