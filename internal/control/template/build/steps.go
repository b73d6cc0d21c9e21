package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/recipe"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// root is who COPY and WORKDIR act as.
const root = "root"

// extractor is the guest daemon's own program, which every sandbox has, and
// extractWord what makes it put files down.
const (
	extractor   = "/.skerry/guest"
	extractWord = "extract"
)

// steps brings the disk to where the recipe's last step leaves it, from as near
// as a former build has left it.
func (j *job) steps(ctx context.Context) error {
	keys, err := j.keys(ctx)
	if err != nil {
		return err
	}
	last := 0 // the number of the last step that changes the disk
	for i, a := range j.plan.Actions {
		if changes(a.Kind) {
			last = i + 1
		}
	}
	from, done, err := j.nearest(ctx, keys[:last])
	if err != nil {
		return err
	}
	if last > 0 {
		if err := j.resume(ctx, from, &done); err != nil {
			return err
		}
	}
	for i, a := range j.plan.Actions {
		n := i + 1
		j.lines.at(n)
		if err := j.d.Store.SetStep(ctx, j.d.lease, j.b.ID, n, len(j.plan.Actions)); err != nil {
			return err
		}
		if n <= done {
			j.lines.say("Step %d of %d: %s (kept from a former build)", n, len(j.plan.Actions), a.Text)
			continue
		}
		j.lines.say("Step %d of %d: %s", n, len(j.plan.Actions), a.Text)
		if !changes(a.Kind) {
			if err := j.known(ctx, a); err != nil {
				return err
			}
			continue
		}
		if err := j.do(ctx, i, a); err != nil {
			return err
		}
		if err := j.d.step(StepRan, j.b.ID); err != nil {
			return err
		}
		if err := j.keep(ctx, keys[i]); err != nil {
			return err
		}
	}
	if len(j.plan.Actions) == 0 || last == 0 {
		return j.verify(ctx)
	}
	return nil
}

func changes(k recipe.Kind) bool { return k == recipe.Run || k == recipe.Copy || k == recipe.Workdir }

// resume starts the sandbox. What cannot be started from any more is made anew.
func (j *job) resume(ctx context.Context, from *id.Snapshot, done *int) (err error) {
	if from != nil {
		j.box, err = j.start(ctx, j.base, from)
		if err == nil {
			j.changed = true
			return nil
		}
		if e := errs.As(err); ctx.Err() != nil || e.Code != errs.CodeFailedPrecondition && e.Code != errs.CodeNotFound && e.Code != errs.CodeUnavailable {
			return err
		}
		if err := j.d.clear(ctx, j.b); err != nil {
			return err
		}
		j.lines.say("What a former build left cannot be started from; all steps run.")
	}
	*done = 0
	j.box, err = j.start(ctx, j.base, nil)
	return err
}

// nearest finds the last step whose outcome a former build has left, and how
// many steps that are.
func (j *job) nearest(ctx context.Context, keys [][32]byte) (*id.Snapshot, int, error) {
	if len(keys) == 0 {
		return nil, 0, nil
	}
	var since *time.Time
	if j.b.Spec.NoCache {
		since = &j.b.CreatedAt // another try goes on from what this build has left
	}
	found, err := j.d.Store.Layers(ctx, j.b.TeamID, keys, since)
	if err != nil {
		return nil, 0, err
	}
	byKey := make(map[[32]byte]id.Snapshot, len(found))
	for _, l := range found {
		byKey[l.Key] = l.State
	}
	for n := len(keys); n > 0; n-- {
		if state, ok := byKey[keys[n-1]]; ok {
			return &state, n, nil
		}
	}
	return nil, 0, nil
}

// keep saves what the steps so far have left, for builds that come to the same.
// That it cannot be saved is no reason to fail.
func (j *job) keep(ctx context.Context, key [32]byte) error {
	d := j.d
	saved, err := d.Sandboxes.SaveForBuild(ctx, j.box.ID, sandbox.StateLayer, false)
	if err != nil {
		if ctx.Err() != nil || errs.Is(err, "invalid_state") {
			return err
		}
		d.log.InfoContext(ctx, "cannot keep what a step has left", "build_id", j.b.ID.String(), "error", err)
		return nil
	}
	if err := d.step(StepSaved, j.b.ID); err != nil {
		return err
	}
	if err := d.Store.PutLayer(ctx, d.lease, j.b.ID, Layer{Key: key, State: saved.ID}); err != nil {
		return err
	}
	return d.step(StepKept, j.b.ID)
}

// do runs one step that changes the disk.
func (j *job) do(ctx context.Context, i int, a recipe.Action) error {
	j.changed = true
	var c Command
	var input func(context.Context, io.Writer) error
	switch a.Kind {
	case recipe.Run:
		user, err := j.userOf(ctx, a.Line, a.User)
		if err != nil {
			return err
		}
		c = command(a.Command)
		c.Env, c.Cwd, c.User = a.Env, a.Workdir, user
	case recipe.Workdir:
		uid, gid, err := j.owner(ctx, a.Line, a.User)
		if err != nil {
			return err
		}
		// An archive of nothing: its destination is made.
		c = Command{Cmd: extractor, Args: []string{extractWord, a.Workdir, "tree", strconv.Itoa(uid), strconv.Itoa(gid)}, Cwd: "/", User: root}
		input = func(_ context.Context, w io.Writer) error {
			_, err := w.Write(make([]byte, 1024))
			return err
		}
	case recipe.Copy:
		uid, gid := 0, 0
		var err error
		if a.Copy.Chown != "" {
			if uid, gid, err = j.owner(ctx, a.Line, a.Copy.Chown); err != nil {
				return err
			}
		}
		kind := "tree"
		if j.picks[i].File {
			kind = "file"
		}
		c = Command{Cmd: extractor, Args: []string{extractWord, a.Copy.Dest, kind, strconv.Itoa(uid), strconv.Itoa(gid)}, Cwd: "/", User: root}
		input = func(ctx context.Context, w io.Writer) error { return j.picks[i].WriteTar(ctx, w, uid, gid) }
	}
	code, err := j.exec(ctx, c, input)
	if err != nil {
		if e := errs.As(err); e.Code == errs.CodeInvalid {
			return recipe.InvalidAt(a.Line, "%s: %s", a.Text, e.Message)
		}
		return err
	}
	if code != 0 {
		return errs.FailedPrecondition("step_failed", fmt.Sprintf("Line %d: `%s` ended with exit code %d. The log says why.", a.Line, clip(a.Text), code)).
			With("line", a.Line).With("exit_code", code)
	}
	return nil
}

// exec runs a command in the sandbox, what it says going to the log.
func (j *job) exec(ctx context.Context, c Command, input func(context.Context, io.Writer) error) (int, error) {
	defer j.lines.endOutput()
	return j.d.Guests.Run(ctx, j.b.TeamID, j.box.ID, c, input, func(stream string, data []byte) {
		j.lines.output(stream, data)
		if j.lines.crowded() {
			_ = j.lines.flush(ctx) // it is tried again; only what is said from now on waits
		}
	})
}

// command is how a line or an array is run.
func command(c recipe.Command) Command {
	if c.Args != nil {
		return Command{Cmd: c.Args[0], Args: append([]string{}, c.Args[1:]...)}
	}
	return Command{Cmd: "/bin/sh", Args: []string{"-c", c.Shell}}
}

// shown is a command as a row has it: a line for the shell, or a JSON array.
func shown(c *recipe.Command) string {
	if c == nil {
		return ""
	}
	if c.Args == nil {
		return c.Shell
	}
	raw, err := json.Marshal(c.Args)
	if err != nil {
		return ""
	}
	return string(raw)
}

// known checks a USER as soon as it is read: the image must have it.
func (j *job) known(ctx context.Context, a recipe.Action) error {
	if a.Kind != recipe.User || j.box.ID.IsZero() {
		return nil
	}
	_, err := j.userOf(ctx, a.Line, a.User)
	return err
}

// verify boots a sandbox of a template that has nothing else to run, for what
// was never started is not ready, and finds the user that an image may name by a
// number.
func (j *job) verify(ctx context.Context) error {
	var err error
	if j.box, err = j.start(ctx, j.base, nil); err != nil {
		return err
	}
	user, err := j.userOf(ctx, 1, j.plan.End.User)
	if err != nil {
		return err
	}
	j.plan.End.User = user
	return nil
}

// boot starts a sandbox of the image, runs in it what is to run, and saves its
// memory once it has come up.
func (j *job) boot(ctx context.Context, made template.Template, start, ready string) (*id.Snapshot, error) {
	d := j.d
	if err := d.clear(ctx, j.b); err != nil {
		return nil, err
	}
	var err error
	if j.box, err = j.start(ctx, made, nil); err != nil {
		return nil, err
	}
	if err := d.step(StepBooted, j.b.ID); err != nil {
		return nil, err
	}
	if err := j.comeUp(ctx, made, start, ready); err != nil {
		return nil, err
	}
	if err := d.step(StepReady, j.b.ID); err != nil {
		return nil, err
	}
	saved, err := d.Sandboxes.SaveForBuild(ctx, j.box.ID, sandbox.StateTemplate, true)
	if err != nil {
		return nil, err
	}
	if err := d.step(StepStated, j.b.ID); err != nil {
		return nil, err
	}
	j.lines.say("Its memory is saved, %d MB; sandboxes go on from there.", saved.SizeBytes>>20)
	return &saved.ID, j.stored(ctx, saved.ID)
}

// stored waits until a state is in the store, so that it can be started from
// anywhere.
func (j *job) stored(ctx context.Context, state id.Snapshot) error {
	patience := time.NewTimer(j.d.cfg.UploadLimit)
	defer patience.Stop()
	ticker := time.NewTicker(j.d.cfg.ReadyEvery)
	defer ticker.Stop()
	for {
		got, err := j.d.Sandboxes.StateForBuild(ctx, state)
		if err != nil || got.Stored {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-patience.C:
			j.lines.say("It is not in the store yet: until it is, sandboxes start on the host that has it, or boot.")
			return nil
		case <-ticker.C:
		}
	}
}

// plainWait is how long START runs before it counts as up when nothing tells.
const plainWait = 5 * time.Second

// comeUp runs START, and READY until it succeeds.
func (j *job) comeUp(ctx context.Context, made template.Template, start, ready string) error {
	in := func(s string) Command {
		c := command(parsed(s))
		c.Env, c.Cwd, c.User = made.Env, made.DefaultWorkdir, made.DefaultUser
		return c
	}
	// What it started goes on when nobody listens to it any more.
	sctx, leave := context.WithCancel(ctx)
	ended := make(chan error, 1)
	gone := make(chan struct{})
	defer func() {
		leave()
		<-gone
	}()
	if start == "" {
		close(gone)
	} else {
		j.lines.say("START %s", start)
		go func() {
			defer close(gone)
			code, err := j.exec(sctx, in(start), nil)
			if err == nil && code != 0 {
				err = errs.FailedPrecondition("start_failed", fmt.Sprintf("START ended with exit code %d. The log says why.", code)).With("exit_code", code)
			}
			ended <- err
		}()
	}
	limit := time.NewTimer(j.d.cfg.ReadyLimit)
	defer limit.Stop()
	notReady := errs.FailedPrecondition("not_ready", fmt.Sprintf("READY did not succeed within %s. The log says what START said.", j.d.cfg.ReadyLimit))
	// One that does not end is not ready either.
	rctx, stop := context.WithTimeout(ctx, j.d.cfg.ReadyLimit)
	defer stop()
	pause := j.d.cfg.ReadyEvery
	if ready == "" {
		pause = min(plainWait, j.d.cfg.ReadyLimit/2)
	} else {
		j.lines.say("READY %s", ready)
	}
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for tries := 1; ; tries++ {
		if ready != "" {
			code, err := j.d.Guests.Run(rctx, j.b.TeamID, j.box.ID, in(ready), nil, func(string, []byte) {})
			switch {
			case err != nil && rctx.Err() != nil && ctx.Err() == nil:
				return notReady
			case err != nil:
				return err
			}
			if code == 0 {
				j.lines.say("It is ready, after %d tries.", tries)
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-ended:
			if err != nil {
				return err
			}
			ended = nil // it left something that runs on, or has done its work
		case <-limit.C:
			return notReady
		case <-ticker.C:
			if ready == "" {
				return nil
			}
		}
	}
}

// parsed reads what shown has written.
func parsed(s string) recipe.Command {
	var args []string
	if strings.HasPrefix(s, "[") && json.Unmarshal([]byte(s), &args) == nil && len(args) > 0 {
		return recipe.Command{Args: args}
	}
	return recipe.Command{Shell: s}
}

const maxQuoted = 200

// clip shortens what is quoted in an error.
func clip(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
}
