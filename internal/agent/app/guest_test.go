package app_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

// rebuilt writes another build of the guest daemon over the one of cfg, as an
// upgrade does, and returns the digests of both. Its code lies elsewhere, so that no
// memory of the one goes on with the other.
func rebuilt(t *testing.T, cfg app.Config) (old, now string) {
	t.Helper()
	return replaced(t, cfg, func(path string) { buildGuest(t, path, "-gcflags=skerry.dev/skerry/internal/guest/...=-N -l") })
}

// replaced is rebuilt with what build writes.
func replaced(t *testing.T, cfg app.Config, build func(path string)) (old, now string) {
	t.Helper()
	old = digestOf(t, cfg.GuestBinary)
	build(cfg.GuestBinary + ".new")
	if err := os.Rename(cfg.GuestBinary+".new", cfg.GuestBinary); err != nil {
		t.Fatal(err)
	}
	if now = digestOf(t, cfg.GuestBinary); now == old {
		t.Fatal("it is no other build")
	}
	return old, now
}

// boxOn is a box on an image of its own.
func boxOn(t *testing.T, p *platform, r *running, img *agentv1.Image) *box {
	t.Helper()
	b := &box{t: t, p: p, r: r, req: request("gvisor")}
	b.req.AccessToken, b.req.Image = "tok", img
	if _, err := r.CreateSandbox(t.Context(), b.req); err != nil {
		t.Fatal(err)
	}
	b.starts()
	b.pid = b.look().pid
	return b
}

// from is another sandbox on what a box was saved as.
func (b *box) from(st *agentv1.State) *box {
	b.t.Helper()
	c := *b
	c.req = proto.CloneOf(b.req)
	c.req.SandboxId, c.req.Incarnation, c.req.StateId = id.NewSandbox().UUID().String(), 1, st.StateId
	if _, err := b.r.CreateSandbox(b.t.Context(), c.req); err != nil {
		b.t.Fatal(err)
	}
	return &c
}

// on fails unless the sandbox has that daemon, and a command runs in it.
func (b *box) on(daemon string) {
	b.t.Helper()
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	res, err := client.Get("http://guest/files?username=root&path=" + url.QueryEscape(image.GuestPath))
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, res.Body); err != nil {
		b.t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != daemon {
		b.t.Errorf("it runs on daemon %s, not %s", got, daemon)
	}
	if out, err := b.runs("", "/worker", "hello"); err != nil || out != "hello\n" {
		b.t.Errorf("a command says %q, %v", out, err)
	}
}

// daemons are those that a host keeps, sorted.
func daemons(t *testing.T, cfg app.Config) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(cfg.DataDir, "images", "guests"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func sorted(s ...string) []string { slices.Sort(s); return s }

func stateDir(cfg app.Config, st *agentv1.State) string {
	return filepath.Join(cfg.DataDir, "states", strings.ReplaceAll(st.StateId, "-", ""))
}

// keptDisk waits for the disk of a paused sandbox on its own.
func keptDisk(t *testing.T, cfg app.Config, st *agentv1.State) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "the disk on its own", func() bool {
		_, err := os.Stat(filepath.Join(stateDir(cfg, st), "disk.json"))
		return err == nil
	})
}

// An upgrade of the guest daemon strands nothing: what was paused, what runs, and
// what was saved while it ran go on with the daemon that they have, over the deaths of
// agents; what boots has the new one; and a daemon goes with the last that needs
// it.
func TestP7_AnUpgradeOfTheDaemonStrandsNothing_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg := realHost(t, p)
	img := p.storedImage(t, workshop(t))
	a, cmd := p.spawn(t, cfg, tree{})
	again := func() {
		t.Helper()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		a, cmd = p.spawn(t, cfg, tree{})
	}
	sleeps, runs := boxOn(t, p, a, img), boxOn(t, p, a, img)
	sleeps.works()
	runs.works()
	paused := sleeps.pauses()
	saved, err := a.CheckpointSandbox(t.Context(), &agentv1.CheckpointSandboxRequest{
		SandboxId: runs.req.SandboxId, Incarnation: 1, StateId: id.NewSnapshot().UUID().String(), Memory: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := *runs
	old, now := rebuilt(t, cfg)
	again()
	for _, b := range []*box{sleeps, runs, &snapshot} {
		b.r = a
	}
	runs.works()
	if got := daemons(t, cfg); !slices.Equal(got, sorted(old, now)) {
		t.Errorf("kept while something runs: %v", got)
	}
	// What ran over the upgrade is paused, resumed, copied and saved.
	second := runs.pauses()
	if err := runs.resume(second.StateId); err != nil {
		t.Fatal(err)
	}
	runs.works()
	runs.on(old)
	began := time.Now()
	if err := sleeps.resume(paused.StateId); err != nil {
		t.Fatal(err)
	}
	t.Logf("resumed on the older daemon in %v", time.Since(began))
	sleeps.works()
	sleeps.on(old)
	fork := runs.from(second)
	fork.did--
	fork.works()
	fork.on(old)
	third := snapshot.from(saved.State)
	third.works()
	third.on(old)
	fresh := boxOn(t, p, a, img)
	fresh.works()
	fresh.on(now)

	// And once more, with an agent that dies.
	_, newest := replaced(t, cfg, func(path string) { buildGuest(t, path, "-ldflags=-s -w") })
	again()
	boxes := []*box{runs, sleeps, fork, third, fresh}
	for _, b := range boxes {
		b.r = a
		b.works()
	}
	if got := daemons(t, cfg); !slices.Equal(got, sorted(old, now, newest)) {
		t.Errorf("kept of three: %v", got)
	}
	last := fork.pauses()
	for _, b := range boxes {
		b.destroy()
	}
	quiet(t, cfg)
	testkit.Eventually(t, 20*time.Second, "only the current daemon is kept", func() bool { return slices.Equal(daemons(t, cfg), []string{newest}) })
	again()
	if got := daemons(t, cfg); !slices.Equal(got, []string{newest}) {
		t.Errorf("kept after all: %v", got)
	}
	// The states have theirs, and only they need it.
	fork.r = a
	back := fork.from(last)
	back.works()
	back.on(old)
	back.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
	testkit.Eventually(t, 20*time.Second, "only the current daemon is kept", func() bool { return slices.Equal(daemons(t, cfg), []string{newest}) })
	if left := heldBy(t, cfg, old); len(left) > 0 {
		t.Errorf("the old daemon is left in %v", left)
	}
}

// heldBy are the files below a host's directory that are a daemon.
func heldBy(t *testing.T, cfg app.Config, daemon string) (out []string) {
	t.Helper()
	for _, dir := range []string{"states", "images/guests", "instances"} {
		_ = filepath.WalkDir(filepath.Join(cfg.DataDir, dir), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && digestOf(t, path) == daemon {
				out = append(out, path)
			}
			return nil
		})
	}
	return out
}

// The daemon travels with the state: a host that never had it starts from that.
// Where it is lost everywhere memory is refused, nothing changes, and the disk is left,
// which boots with the host's own daemon.
func TestP7_TheDaemonTravelsWithItsState_OnRealHosts(t *testing.T) {
	store := transfertest.Serve(t)
	first, second := newPlatform(t), newPlatform(t)
	cfg := realHost(t, first)
	file := packed(t, workshop(t))
	img := first.storedFile(t, file)
	a := first.start(t, cfg, app.Options{})
	b := boxOn(t, first, a, img)
	b.works()
	st := b.pauses()
	keptDisk(t, cfg, st)
	stored := uploads(t, a, store, &agentv1.UploadRequest{What: &agentv1.UploadRequest_StateId{StateId: st.StateId}})
	b.destroy()
	quiet(t, cfg)
	a.stop()
	for _, gone := range []string{"states", "engines", "instances"} {
		if err := os.RemoveAll(filepath.Join(cfg.DataDir, gone)); err != nil {
			t.Fatal(err)
		}
	}

	there := realHost(t, second)
	_, own := rebuilt(t, there)
	old := digestOf(t, cfg.GuestBinary)
	there.Runsc = cfg.Runsc
	c := second.start(t, there, app.Options{})
	b.p, b.r = second, c
	b.req.Image = second.storedFile(t, file)
	if err := fetches(t, c, store, stored, stateCargo(st)); err != nil {
		t.Fatal(err)
	}
	if err := b.resume(st.StateId); err != nil {
		t.Fatal(err)
	}
	b.works()
	b.on(old)
	c.stop() // and goes on there over a restart
	c = second.start(t, there, app.Options{})
	b.r = c
	b.works()
	st = b.pauses()
	keptDisk(t, there, st)
	quiet(t, there)
	stored = uploads(t, c, store, &agentv1.UploadRequest{What: &agentv1.UploadRequest_StateId{StateId: st.StateId}})

	// Lost here, it comes back from the store.
	lose := func() {
		t.Helper()
		if got := daemons(t, there); !slices.Equal(got, []string{own}) {
			t.Errorf("kept: %v", got)
		}
		if err := os.Remove(filepath.Join(stateDir(there, st), "guest")); err != nil {
			t.Fatal(err)
		}
		refused := proto.CloneOf(b.req)
		err := rpcerr.FromConnect(b.resume(st.StateId))
		if !errs.Is(err, "guest_build_missing") || errs.CodeOf(err) != errs.CodeFailedPrecondition || !strings.Contains(err.Error(), "without memory") {
			t.Fatalf("its daemon is lost: %v", err)
		}
		b.req = refused
		if r := b.report(); r.Phase != agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED || r.StateId != st.StateId {
			t.Errorf("after the refusal it is %v", r)
		}
		b.req.Incarnation++
		quiet(t, there)
	}
	lose()
	if err := fetches(t, c, store, stored, stateCargo(st)); err != nil {
		t.Fatal(err)
	}
	if err := b.resume(st.StateId); err != nil {
		t.Fatal(err)
	}
	b.works()
	b.on(old)
	st = b.pauses()
	keptDisk(t, there, st)
	quiet(t, there)

	// Lost everywhere, its disk is left.
	lose()
	b.req.DiskOnly = true
	began := time.Now()
	if err := b.resume(st.StateId); err != nil {
		t.Fatalf("from its disk: %v", err)
	}
	t.Logf("from the disk on its own: %v", time.Since(began))
	b.starts()
	b.on(own)
	if got := b.look(); got.memory != 0 || got.file != b.did {
		t.Errorf("from the disk: %+v, want %d in the file", got, b.did)
	}
	b.req.DiskOnly = false
	b.pid = b.look().pid
	again := b.pauses()
	if err := b.resume(again.StateId); err != nil {
		t.Fatal(err)
	}
	if got := b.look(); got.file != b.did || got.pid != b.pid {
		t.Errorf("paused and resumed on the new daemon: %+v", got)
	}
	b.destroy()
	quiet(t, there)
	clearStates(t, c, there)
}

// Memory is left out although all is there: a state with and without its disk on its own
// boots with the host's daemon.
func TestP7_WithoutMemoryItBootsWithTheNewDaemon_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg := realHost(t, p)
	img := p.storedImage(t, workshop(t))
	a := p.start(t, cfg, app.Options{})
	var boxes []*box
	var states []*agentv1.State
	for range 2 {
		b := boxOn(t, p, a, img)
		b.works()
		st := b.pauses()
		keptDisk(t, cfg, st)
		boxes, states = append(boxes, b), append(states, st)
	}
	quiet(t, cfg)
	a.stop()
	for _, name := range []string{"disk.json", "disk.tar.zst"} {
		if err := os.Remove(filepath.Join(stateDir(cfg, states[1]), name)); err != nil {
			t.Fatal(err)
		}
	}
	_, now := rebuilt(t, cfg)
	a = p.start(t, cfg, app.Options{})
	for i, b := range boxes {
		b.r = a
		b.req.DiskOnly = true
		began := time.Now()
		if err := b.resume(states[i].StateId); err != nil {
			t.Fatal(err)
		}
		t.Logf("without memory, its disk on its own %v: %v", i == 0, time.Since(began))
		b.starts()
		b.on(now)
		if got := b.look(); got.memory != 0 || got.file != b.did {
			t.Errorf("from the disk: %+v, want %d in the file", got, b.did)
		}
		b.destroy()
	}
	quiet(t, cfg)
	clearStates(t, a, cfg)
	if got := daemons(t, cfg); !slices.Equal(got, []string{now}) {
		t.Errorf("kept: %v", got)
	}
}

// An agent that dies at any step of what moves a sandbox between daemons leaves the
// sandbox what it was before or after, and no daemon that nothing needs.
func TestP7_AnAgentMayDieBetweenTwoDaemons_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg := realHost(t, p)
	img := p.storedImage(t, workshop(t))
	a, cmd := p.spawn(t, cfg, tree{})
	b := boxOn(t, p, a, img)
	old, now := digestOf(t, cfg.GuestBinary), ""
	at := filepath.Join(t.TempDir(), "step")
	dies := func(step manager.Step, do func()) {
		t.Helper()
		if err := os.WriteFile(at, []byte(step), 0o600); err != nil {
			t.Fatal(err)
		}
		do()
		_ = cmd.Wait()
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		a, cmd = p.spawnDying(t, cfg, tree{}, at)
		b.r = a
	}
	restart := func() {
		t.Helper()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		a, cmd = p.spawnDying(t, cfg, tree{}, at)
		b.r = a
	}
	b.works()
	_, now = rebuilt(t, cfg)
	restart()
	steps := manager.Operations()
	for _, step := range []manager.Step{manager.StepSealState, manager.StepJournalPaused} {
		which := id.NewSnapshot()
		dies(step, func() { _, _ = a.PauseSandbox(t.Context(), b.pauseRequest(which)) })
		if b.report().Phase == agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING {
			b.works()
			b.on(old)
			continue
		}
		if err := b.resume(which.UUID().String()); err != nil {
			t.Fatal(err)
		}
		b.works()
		b.on(old)
	}
	for _, step := range steps["resume"] {
		st := b.pauses()
		quiet(t, cfg)
		before := proto.CloneOf(b.req)
		dies(step, func() { _ = b.resume(st.StateId) })
		if r := b.report(); r.Phase == agentv1.SandboxPhase_SANDBOX_PHASE_PAUSED {
			quiet(t, cfg)
			if got := daemons(t, cfg); !slices.Equal(got, []string{now}) {
				t.Errorf("after %s: kept %v", step, got)
			}
			b.req = before
			b.req.Incarnation++
			if err := b.resume(st.StateId); err != nil {
				t.Fatalf("after %s: %v", step, err)
			}
		}
		b.works()
		if got := daemons(t, cfg); !slices.Equal(got, sorted(old, now)) {
			t.Errorf("after %s: kept %v", step, got)
		}
	}
	b.on(old)
	b.destroy()
	quiet(t, cfg)
	clearStates(t, a, cfg)
	testkit.Eventually(t, 20*time.Second, "only the current daemon is kept", func() bool { return slices.Equal(daemons(t, cfg), []string{now}) })
}
