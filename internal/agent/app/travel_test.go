package app_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

func wire(s artifact.Source) *agentv1.Source { return &agentv1.Source{Url: s.URL, Key: s.Key} }

// uploads has a host bring something to the store.
func uploads(t *testing.T, r *running, store *transfertest.Server, what *agentv1.UploadRequest) id.Artifact {
	t.Helper()
	a, to := store.To(id.NewHost())
	what.To = wire(to)
	stream, err := r.Upload(t.Context(), what)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var result *agentv1.UploadResponse_Result
	for stream.Receive() {
		result = stream.Msg().GetResult()
	}
	if err := stream.Err(); err != nil || result.GetManifestDigest() == "" || !store.Ledger.IsReady(a) {
		t.Fatalf("upload: %v, %v", result, err)
	}
	return a
}

// fetches has a host bring something to itself.
func fetches(t *testing.T, r *running, store *transfertest.Server, from id.Artifact, what *agentv1.FetchRequest) error {
	t.Helper()
	what.From = wire(store.From(from, id.NewHost()))
	stream, err := r.Fetch(t.Context(), what)
	if err != nil {
		return err
	}
	defer stream.Close()
	done := false
	for stream.Receive() {
		done = stream.Msg().GetDone()
	}
	if err := stream.Err(); err != nil {
		return rpcerr.FromConnect(err)
	}
	if !done {
		return errors.New("the stream ended without a word")
	}
	return nil
}

func stateCargo(st *agentv1.State) *agentv1.FetchRequest {
	return &agentv1.FetchRequest{What: &agentv1.FetchRequest_State{State: &agentv1.FetchRequest_StateCopy{
		StateId: st.StateId, Digest: st.Digest, SizeBytes: st.SizeBytes,
	}}}
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(artifact.DigestOf(b))
}

func (b *box) pauses() *agentv1.State {
	b.t.Helper()
	paused, err := b.r.PauseSandbox(b.t.Context(), b.pauseRequest(id.NewSnapshot()))
	if err != nil {
		b.t.Fatal(err)
	}
	return paused.State
}

// What was paused on one host goes on on another that shares nothing with it,
// after the first is gone for good: under the engine that saved it, which is
// fetched, though the other host has a newer one. Where that engine is gone as
// well, memory is refused and the disk is left.
func TestP5_P7_StateTravelsAndOutlivesItsEngine_OnRealHosts(t *testing.T) {
	store := transfertest.Serve(t)
	first, second := newPlatform(t), newPlatform(t)
	cfg := realHost(t, first)
	a := first.start(t, cfg, app.Options{Images: workshop(t)})
	b := newBox(t, first, a)
	b.works()
	b.works()
	st := b.pauses()
	version := st.EngineVersion
	disk := filepath.Join(cfg.DataDir, "states", strings.ReplaceAll(st.StateId, "-", ""), "disk.json")
	testkit.Eventually(t, 30*time.Second, "the disk on its own", func() bool { _, err := os.Stat(disk); return err == nil })
	stored := uploads(t, a, store, &agentv1.UploadRequest{What: &agentv1.UploadRequest_StateId{StateId: st.StateId}})
	engine := uploads(t, a, store, &agentv1.UploadRequest{What: &agentv1.UploadRequest_Engine{Engine: &agentv1.EngineBuild{Engine: "gvisor", Version: version}}})
	b.destroy()
	quiet(t, cfg)
	a.stop()
	for _, gone := range []string{"states", "engines", "instances"} {
		if err := os.RemoveAll(filepath.Join(cfg.DataDir, gone)); err != nil {
			t.Fatal(err)
		}
	}

	there := realHost(t, second)
	there.Runsc, _ = testkit.AnotherRunsc(t, there.Runsc)
	root := workshop(t)
	c := second.start(t, there, app.Options{Images: root})
	if err := fetches(t, c, store, stored, stateCargo(st)); err != nil {
		t.Fatal(err)
	}
	b.p, b.r = second, c
	if err := b.resume(st.StateId); !errs.Is(rpcerr.FromConnect(err), "engine_build_missing") || !strings.Contains(err.Error(), version) {
		t.Fatalf("without its engine: %v", err)
	}
	digest := digestOf(t, cfg.Runsc)
	cargo := &agentv1.FetchRequest{What: &agentv1.FetchRequest_Engine{Engine: &agentv1.EngineBuild{Engine: "gvisor", Version: version, Digest: digest}}}
	if err := fetches(t, c, store, engine, cargo); err != nil {
		t.Fatal(err)
	}
	if err := b.resume(st.StateId); err != nil {
		t.Fatal(err)
	}
	b.works()
	if r := b.report(); r.EngineVersion != version {
		t.Errorf("it runs under %s, not %s", r.EngineVersion, version)
	}
	// The agent goes and comes; what runs under the older engine is found, saved
	// and goes on.
	c.stop()
	c = second.start(t, there, app.Options{Images: root})
	b.r = c
	b.works()
	st = b.pauses()
	if st.EngineVersion != version {
		t.Errorf("saved under %s, not %s", st.EngineVersion, version)
	}
	if err := b.resume(st.StateId); err != nil {
		t.Fatal(err)
	}
	b.works()
	st = b.pauses()
	disk = filepath.Join(there.DataDir, "states", strings.ReplaceAll(st.StateId, "-", ""), "disk.json")
	testkit.Eventually(t, 30*time.Second, "the disk on its own", func() bool { _, err := os.Stat(disk); return err == nil })
	quiet(t, there)

	// The engine is lost: memory is refused by its name, the disk is offered.
	c.stop()
	if err := os.RemoveAll(filepath.Join(there.DataDir, "engines", "gvisor", digest)); err != nil {
		t.Fatal(err)
	}
	c = second.start(t, there, app.Options{Images: root})
	b.r = c
	lost := proto.CloneOf(b.req)
	if err := b.resume(st.StateId); !errs.Is(rpcerr.FromConnect(err), "engine_build_missing") || !strings.Contains(err.Error(), version) {
		t.Fatalf("its engine is lost: %v", err)
	}
	b.req = lost
	b.req.Incarnation++
	b.req.DiskOnly = true
	if err := b.resume(st.StateId); err != nil {
		t.Fatalf("from its disk: %v", err)
	}
	if r := b.report(); r.EngineVersion == version {
		t.Error("it says that it runs under the engine that is lost")
	}
	b.starts()
	if got := b.look(); got.memory != 0 || got.file != b.did {
		t.Errorf("from the disk: %+v, want %d in the file", got, b.did)
	}
	// And it is a sandbox like any other from here on.
	b.req.DiskOnly = false
	b.pid = b.look().pid
	again := b.pauses()
	if err := b.resume(again.StateId); err != nil {
		t.Fatal(err)
	}
	if got := b.look(); got.file != b.did || got.pid != b.pid {
		t.Errorf("paused and resumed under the new engine: %+v", got)
	}
	b.destroy()
	quiet(t, there)
	clearStates(t, c, there)
}
