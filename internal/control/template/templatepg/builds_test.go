package templatepg_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/testkit"
)

// uploaded makes a context of files.
func (w *buildWorld) uploaded(b *buildServer, by principal.Principal, files ...string) string {
	w.t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, f := range files {
		name, text, _ := strings.Cut(f, "=")
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(text)), Mode: 0o644}); err != nil {
			w.t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		w.t.Fatal(err)
	}
	c, err := b.Upload(context.Background(), by, &raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.ID.String()
}

func (w *buildWorld) begin(b *buildServer, by principal.Principal, req build.Request) id.Build {
	w.t.Helper()
	r, err := b.Create(context.Background(), by, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return r.Build
}

const standardRecipe = `FROM debian:12
RUN one
WORKDIR app
COPY --chown=ada:staff *.txt ./
ENV A=b
USER bob
RUN ["two", "x y"]
START serve
READY check`

func standardDisk() []string {
	return []string{
		"image debian:12", "ada@/srv:one", "root@/:/.skerry/guest extract /srv/app tree 1000 1001 []",
		"root@/:/.skerry/guest extract /srv/app tree 1000 50 [a.txt 1000:50=A,b.txt 1000:50=B]", "bob@/srv/app:two x y A=b",
	}
}

func TestP2_ABuildMakesWhatItsRecipeSays(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	ctx := context.Background()
	by := w.User()
	archive := w.uploaded(b, by, "a.txt=A", "b.txt=B", "other=O")
	made := w.begin(b, by, build.Request{Name: "app", Recipe: standardRecipe, Context: archive})
	got := w.ended(b, made)
	if got.Status != build.StatusReady || got.TemplateID == nil || got.Step != 6 || got.Steps != 6 {
		t.Fatalf("%+v\n%s", got, w.log(b, made))
	}
	if diff := cmp.Diff(standardDisk(), w.disk(w.Team, "app")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	tpl, err := templatepg.New(w.Pool).ResolveName(ctx, w.Team, "app")
	if err != nil || tpl.StateID == nil || tpl.Start != "serve" || tpl.Ready != "check" || tpl.DefaultUser != "bob" || tpl.DefaultWorkdir != "/srv/app" ||
		tpl.Env["A"] != "b" || tpl.Env["FROM_IMAGE"] != "1" || tpl.Arch != "amd64" {
		t.Errorf("%+v %v", tpl, err)
	}
	w.whole(b)
	// Again: nothing runs but what starts, and the name means the new one.
	w.mu.Lock()
	before := w.ran
	w.mu.Unlock()
	again := w.begin(b, by, build.Request{Name: "app", Recipe: standardRecipe, Context: archive})
	if got := w.ended(b, again); got.Status != build.StatusReady {
		t.Fatalf("%+v\n%s", got, w.log(b, again))
	}
	if diff := cmp.Diff(standardDisk(), w.disk(w.Team, "app")); diff != "" {
		t.Errorf("from what was kept (-want +got)\n%s", diff)
	}
	w.mu.Lock()
	ran := w.ran - before
	w.mu.Unlock()
	if ran != 2 || !strings.Contains(w.log(b, again), "Step 6 of 6: RUN [\"two\", \"x y\"] (kept from a former build)") {
		t.Errorf("%d commands ran, want START and READY alone\n%s", ran, w.log(b, again))
	}
	if n := w.count("templates WHERE team_id = $1 AND deleted_at IS NULL", w.Team); n != 1 {
		t.Errorf("%d templates", n)
	}
	// A change of what is copied runs that step and those after it.
	third := w.begin(b, by, build.Request{Name: "app", Recipe: standardRecipe, Context: w.uploaded(b, by, "a.txt=A", "b.txt=C")})
	if got := w.ended(b, third); got.Status != build.StatusReady || w.disk(w.Team, "app")[3] == standardDisk()[3] || strings.Count(w.log(b, third), "kept from") != 2 {
		t.Errorf("%+v\n%s", got, w.log(b, third))
	}
	w.whole(b)
	list, err := b.List(ctx, by, "app", page.Request{Limit: 2})
	if err != nil || len(list.Items) != 2 || list.NextCursor == "" || list.Items[0].ID != third {
		t.Errorf("%+v %v", list, err)
	}
}

// What builds run in and leave is theirs alone, though its team sees what is kept
// for it, and may learn the ids.
func TestP2_WhatIsABuildsIsNobodysToUse(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	ctx := context.Background()
	by := w.User()
	w.ended(b, w.begin(b, by, build.Request{Name: "app", Recipe: "RUN one\nSTART serve\nREADY check"}))
	rows, err := w.Pool.Query(ctx, `SELECT id, kind FROM snapshots WHERE team_id = $1 AND status = 'ready'`, w.Team)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	var states []id.Snapshot
	for rows.Next() {
		var state id.Snapshot
		var kind string
		if err := rows.Scan(&state, &kind); err != nil {
			t.Fatal(err)
		}
		kinds[kind]++
		states = append(states, state)
	}
	if err := rows.Err(); err != nil || kinds["layer"] == 0 || kinds["template"] == 0 {
		t.Fatalf("the build left %v, %v", kinds, err)
	}
	for _, state := range states {
		if got, err := b.rooms.GetSnapshot(ctx, by, state.String()); err != nil || got.ID != state {
			t.Errorf("shown: %+v, %v", got, err)
		}
		_, startErr := b.rooms.Create(ctx, by, sandbox.CreateRequest{Snapshot: state.String()})
		for verb, err := range map[string]error{"start": startErr, "delete": b.rooms.DeleteSnapshot(ctx, by, state.String())} {
			if !errs.Is(err, sandbox.ErrStateNotFound.Reason) {
				t.Errorf("%s: %v", verb, err)
			}
		}
	}
	if list, err := b.rooms.ListSnapshots(ctx, by, sandbox.StateFilter{}, page.Request{Limit: 10}); err != nil || len(list.Items) != len(states) {
		t.Errorf("listed: %+v, %v", list.Items, err)
	}

	<-w.blocked // what START began
	made := w.begin(b, by, build.Request{Name: "goes-on", Recipe: "RUN block"})
	box := <-w.blocked
	_, getErr := b.rooms.Get(ctx, by, box)
	_, pauseErr := b.rooms.Pause(ctx, by, box, true, true)
	_, forkErr := b.rooms.Fork(ctx, by, box, sandbox.ForkRequest{Count: 1})
	for verb, err := range map[string]error{"get": getErr, "pause": pauseErr, "fork": forkErr, "delete": b.rooms.Delete(ctx, by, box)} {
		if !errs.Is(err, sandbox.ErrNotFound.Reason) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if n := w.count(`sandboxes WHERE id = $1 AND ended_at IS NULL AND status = 'running'`, box); n != 1 {
		t.Error("the build's sandbox does not run any more")
	}
	if _, err := b.Cancel(ctx, by, made); err != nil {
		t.Fatal(err)
	}
	w.ended(b, made)
	w.whole(b)
}

func TestP2_AFailingStepShowsItsLogAndItsLine(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	by := w.User()
	archive := w.uploaded(b, by, "a.txt=A")
	for recipe, want := range map[string]struct{ reason, says string }{
		"RUN say hello\n\nRUN fail": {"step_failed", "Line 3: `RUN fail` ended with exit code 3"},
		"RUN one\nCOPY none /":      {"invalid_recipe", `Line 2: COPY: there is no "none" in the context`},
		"COPY --chown=eve a.txt /":  {"invalid_recipe", `Line 1: the image has no user "eve"`},
		"USER eve\nRUN one":         {"invalid_recipe", `Line 1: the image has no user "eve"`},
	} {
		made := w.begin(b, by, build.Request{Name: "bad", Recipe: recipe, Context: archive})
		got := w.ended(b, made)
		if got.Status != build.StatusFailed || got.Reason != want.reason || !strings.Contains(got.Error, want.says) {
			t.Errorf("%q: %s %s %q", recipe, got.Status, got.Reason, got.Error)
		}
		log := w.log(b, made)
		if !strings.Contains(log, want.says) || want.reason == "step_failed" && !strings.Contains(log, "1 stdout hello\n") || want.reason == "step_failed" && !strings.Contains(log, "2 stderr it went wrong\n") {
			t.Errorf("%q:\n%s", recipe, log)
		}
	}
	made := w.begin(b, by, build.Request{Name: "bad", Recipe: "START fail\nREADY fail"})
	if got := w.ended(b, made); got.Status != build.StatusFailed || got.Reason != "start_failed" || !strings.Contains(w.log(b, made), "stderr it went wrong") {
		t.Errorf("%+v\n%s", got, w.log(b, made))
	}
	w.whole(b)
}

func TestP2_ABuildIsCanceledWithinSeconds(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{Parallel: 1})
	ctx := context.Background()
	by := w.User()
	running := w.begin(b, by, build.Request{Name: "long", Recipe: "RUN block"})
	<-w.blocked
	queued := w.begin(b, by, build.Request{Name: "later", Recipe: "RUN one"})
	var follower sync.WaitGroup
	var last build.Build
	var heard atomic.Int64
	follower.Go(func() {
		var err error
		if last, err = b.Logs(ctx, by, running, 0, true, func(lines []build.Line) error { heard.Add(int64(len(lines))); return nil }); err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	began := time.Now()
	for _, of := range []id.Build{queued, running, running} {
		got, err := b.Cancel(ctx, by, of)
		if err != nil || got.Status != build.StatusCanceled {
			t.Fatalf("%+v %v", got, err)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	follower.Wait()
	if last.Status != build.StatusCanceled || heard.Load() == 0 {
		t.Errorf("a follower heard %d lines and then %+v", heard.Load(), last)
	}
	w.whole(b)
	if w.count("templates WHERE team_id = $1", w.Team) != 0 {
		t.Error("a canceled build made a template")
	}
	if n := w.count("audit_logs WHERE resource_type = 'build' AND action = 'cancel'"); n != 2 {
		t.Errorf("%d audit entries of cancels", n)
	}
}

func TestP2_EightBuildsAtOnceDoNotMix(t *testing.T) {
	w := newBuildWorld(t)
	b, other := w.serve(build.Config{}), w.serve(build.Config{})
	by := w.User()
	var made []id.Build
	for i := range 8 {
		archive := w.uploaded(b, by, fmt.Sprintf("a=%d", i))
		recipe := "RUN same\nCOPY a /\n" + strings.Repeat(fmt.Sprintf("RUN say i am %d\nRUN step %d\n", i, i), 3)
		made = append(made, w.begin(other, by, build.Request{Name: fmt.Sprintf("t%d", i), Recipe: recipe, Context: archive}))
	}
	for i, of := range made {
		if got := w.ended(b, of); got.Status != build.StatusReady {
			t.Fatalf("%+v\n%s", got, w.log(b, of))
		}
		want := []string{"base", "ada@/home:same", fmt.Sprintf("root@/:/.skerry/guest extract / tree 0 0 [a 0:0=%d]", i)}
		for range 3 {
			want = append(want, fmt.Sprintf("ada@/home:say i am %d", i), fmt.Sprintf("ada@/home:step %d", i))
		}
		if diff := cmp.Diff(want, w.disk(w.Team, fmt.Sprintf("t%d", i))); diff != "" {
			t.Errorf("%d (-want +got)\n%s", i, diff)
		}
		if log := w.log(b, of); strings.Count(log, fmt.Sprintf("stdout i am %d\n", i)) != 3 || strings.Count(log, "stdout i am") != 3 {
			t.Errorf("%d says\n%s", i, log)
		}
	}
	w.whole(b)
}

// TestP2_AServerMayDieAtEachStepOfABuild abandons builds at each registered step,
// as kill -9 would, and lets a second server go on: the build comes to its right
// end, and nothing is left over.
func TestP2_AServerMayDieAtEachStepOfABuild(t *testing.T) {
	var visited sync.Map
	t.Run("at", func(t *testing.T) {
		for _, step := range build.Steps() {
			t.Run(string(step), func(t *testing.T) {
				t.Parallel()
				buildDiesAt(t, step, &visited)
			})
		}
	})
	for _, s := range build.Steps() {
		if _, ok := visited.Load(s); !ok {
			t.Errorf("step %s was never visited", s)
		}
	}
	t.Logf("%d steps", len(build.Steps()))
}

func buildDiesAt(t *testing.T, step build.Step, visited *sync.Map) {
	w := newBuildWorld(t)
	died := make(chan struct{})
	var once sync.Once
	var dead atomic.Bool
	first := w.serve(build.Config{Lease: time.Second, OnStep: func(s build.Step, _ id.Build) error {
		visited.Store(s, true)
		if s == step || dead.Load() {
			dead.Store(true)
			once.Do(func() { close(died) })
			return errors.New("killed")
		}
		return nil
	}})
	by := w.User()
	req := build.Request{Name: "app", Recipe: standardRecipe, Context: w.uploaded(first, by, "a.txt=A", "b.txt=B")}
	want := build.StatusReady
	switch step {
	case build.StepFailed:
		req.Recipe, want = "RUN fail", build.StatusFailed
	case build.StepCanceled:
		req.Recipe, want = "RUN block", build.StatusCanceled
	}
	made := w.begin(first, by, req)
	if step == build.StepCanceled {
		<-w.blocked
		if _, err := first.Cancel(context.Background(), by, made); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-died:
	case <-time.After(time.Minute):
		t.Fatalf("the step was never reached\n%s", w.log(first, made))
	}
	first.stop()
	second := w.serve(build.Config{Lease: 400 * time.Millisecond})
	got := w.ended(second, made)
	if got.Status != want {
		t.Fatalf("%s %s %q, want %s\n%s", got.Status, got.Reason, got.Error, want, w.log(second, made))
	}
	if want == build.StatusReady {
		if diff := cmp.Diff(standardDisk(), w.disk(w.Team, "app")); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	} else if n := w.count("templates WHERE team_id = $1 AND deleted_at IS NULL", w.Team); n != 0 {
		t.Errorf("%d templates can be seen", n)
	}
	w.whole(second)
}

func TestP2_WhatCannotBeBuiltIsRefusedAtOnce(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	ctx := context.Background()
	by := w.User()
	other := w.UserOf(w.NewTeam())
	theirs := w.uploaded(b, other, "a=A")
	half, nan := 0.5, 0.0
	few := int64(1)
	for name, c := range map[string]struct {
		req  build.Request
		want string
	}{
		"a bad name":           {build.Request{Name: "-x"}, "invalid_request"},
		"a name like an id":    {build.Request{Name: "tpl-x"}, "invalid_request"},
		"a bad recipe":         {build.Request{Name: "x", Recipe: "ADD x y"}, "invalid_recipe"},
		"two beginnings":       {build.Request{Name: "x", FromTemplate: "base", Recipe: "FROM base"}, "invalid_request"},
		"a login for no image": {build.Request{Name: "x", Login: &build.Login{}}, "invalid_request"},
		"COPY of nothing":      {build.Request{Name: "x", Recipe: "COPY a b"}, "invalid_recipe"},
		"another team's files": {build.Request{Name: "x", Recipe: "COPY a b", Context: theirs}, "context_not_found"},
		"no such files":        {build.Request{Name: "x", Context: id.NewBuildContext().String()}, "context_not_found"},
		"no such template":     {build.Request{Name: "x", FromTemplate: "none"}, "template_not_found"},
		"FROM of no template":  {build.Request{Name: "x", Recipe: "FROM debian"}, "invalid_recipe"},
		"a bad image":          {build.Request{Name: "x", FromImage: "a b"}, "invalid_request"},
		"too little CPU":       {build.Request{Name: "x", VCPUs: &nan}, "invalid_request"},
		"too little memory":    {build.Request{Name: "x", VCPUs: &half, MemoryMB: &few}, "invalid_request"},
	} {
		_, err := b.Create(ctx, by, c.req)
		if e := errs.As(err); err == nil || e.Reason != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.Upload(ctx, by, strings.NewReader("")); !errs.Is(err, "invalid_context") {
		t.Errorf("an empty archive: %v", err)
	}
	if _, err := b.Upload(ctx, by, bytes.NewReader(make([]byte, 2<<20))); !errs.Is(err, "context_too_large") {
		t.Errorf("a large archive: %v", err)
	}
	w.sql(`INSERT INTO team_limits (team_id, templates) VALUES ($1, 0)`, w.Team)
	if _, err := b.Create(ctx, by, build.Request{Name: "x"}); !errs.Is(err, "quota_exceeded") {
		t.Errorf("beyond the quota: %v", err)
	}
	made := w.begin(b, other, build.Request{Name: "x", FromImage: "r.example.com/private:1", Login: &build.Login{Username: "u", Password: "sesame"}})
	if got := w.ended(b, made); got.Status != build.StatusReady || strings.Contains(w.log(b, made), "sesame") {
		t.Errorf("%+v\n%s", got, w.log(b, made))
	}
	for _, call := range []func() error{
		func() error { _, err := b.Get(ctx, by, made); return err },
		func() error { _, err := b.Cancel(ctx, by, made); return err },
		func() error { _, err := b.Logs(ctx, by, made, 0, true, nil); return err },
	} {
		if err := call(); !errs.Is(err, "build_not_found") {
			t.Errorf("another team's: %v", err)
		}
	}
	w.whole(b)
}

// A build that wants nothing of former ones does not get it at another try either.
func TestP2_AnotherTryTakesNothingThatABuildDidNotWant(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	by := w.User()
	if got := w.ended(b, w.begin(b, by, build.Request{Name: "first", Recipe: "RUN one\nRUN two"})); got.Status != build.StatusReady {
		t.Fatalf("%+v", got)
	}
	b.stop()
	ran := w.ran
	var died atomic.Bool
	again := w.serve(build.Config{Lease: 300 * time.Millisecond, OnStep: func(s build.Step, _ id.Build) error {
		if s == build.StepKept && died.CompareAndSwap(false, true) {
			return errors.New("died")
		}
		return nil
	}})
	if got := w.ended(again, w.begin(again, by, build.Request{Name: "second", Recipe: "RUN one\nRUN two", NoCache: true})); got.Status != build.StatusReady || !died.Load() {
		t.Fatalf("%+v", got)
	}
	if n := w.ran - ran; n != 2 { // the first step before the death, the second after it
		t.Errorf("%d commands ran", n)
	}
}

// One that waits for another try ends at once.
func TestP2_ABuildThatWaitsForATryIsCanceled(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	by := w.User()
	running := w.begin(b, by, build.Request{Name: "long", Recipe: "RUN block"})
	<-w.blocked
	w.sql(`UPDATE builds SET lease_owner = NULL, lease_until = now() + interval '10 minutes'`)
	if got, err := b.Cancel(context.Background(), by, running); err != nil || got.Status != build.StatusCanceled {
		t.Errorf("%+v %v", got, err)
	}
	w.whole(b)
}

// READY that does not end is no reason to wait for longer than there is.
func TestP2_AReadyThatHangsIsNotReady(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{ReadyLimit: 200 * time.Millisecond})
	got := w.ended(b, w.begin(b, w.User(), build.Request{Name: "hung", Recipe: "READY block"}))
	if got.Status != build.StatusFailed || got.Reason != "not_ready" {
		t.Errorf("%+v", got)
	}
	w.whole(b)
}

func TestALogIsBounded(t *testing.T) {
	w := newBuildWorld(t)
	b := w.serve(build.Config{})
	by := w.User()
	long := strings.Repeat("x", 100<<10)
	made := w.begin(b, by, build.Request{Name: "loud", Recipe: strings.Repeat("RUN say "+long+"\n", 2) + strings.Repeat("RUN say \x01\r\x02b\n", 1)})
	if got := w.ended(b, made); got.Status != build.StatusReady {
		t.Fatalf("%+v", got)
	}
	longest := 0
	for line := range strings.Lines(w.log(b, made)) {
		longest = max(longest, len(line))
	}
	if n := strings.Count(w.log(b, made), "stdout"); longest > 8<<10+64 || n < 26 {
		t.Errorf("%d lines, the longest has %d bytes", n, longest)
	}
	w.sql(`DELETE FROM build_logs`)
	w.sql(`UPDATE builds SET finished_at = now() - interval '90 days'`)
	w.sql(`UPDATE templates SET build_id = NULL`)
	testkit.Eventually(t, 10*time.Second, "what is old is removed", func() bool {
		if err := b.sweep.Pass(context.Background()); err != nil {
			t.Fatal(err)
		}
		return w.count("builds") == 0
	})
}
