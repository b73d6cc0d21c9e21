package build

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/buildcontext"
	"skerry.dev/skerry/internal/control/template/recipe"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// job is one attempt at one build.
type job struct {
	d     *Driver
	b     Build
	lines *logger

	dir     string // of archives
	archive *buildcontext.Archive
	base    template.Template
	plan    recipe.Plan
	picks   map[int]*buildcontext.Selection // of COPY, by the step's number
	box     sandbox.Sandbox
	// changed: something ran, so that the disk is not the base's any more.
	changed bool
}

// close lets go of files; what runs is ended elsewhere.
func (j *job) close() {
	if j.archive != nil {
		j.archive.Close()
	}
	if j.dir != "" {
		os.RemoveAll(j.dir)
	}
}

// run does it all, from the beginning: what a former attempt has left that is
// worth keeping is found by what it was made of.
func (j *job) run(ctx context.Context) error {
	d, b := j.d, j.b
	if err := d.step(StepTaken, b.ID); err != nil {
		return err
	}
	if err := d.clear(ctx, b); err != nil {
		return err
	}
	if err := d.step(StepCleared, b.ID); err != nil {
		return err
	}
	read, err := recipe.Parse(b.Spec.Recipe)
	if err != nil {
		return err
	}
	if j.base, err = j.begin(ctx); err != nil {
		return err
	}
	if j.plan, err = read.Plan(baseOf(j.base, j.base.Env)); err != nil {
		return err
	}
	if err := j.choose(ctx); err != nil {
		return err
	}
	if err := j.steps(ctx); err != nil {
		return err
	}
	made, err := j.image(ctx)
	if err != nil {
		return err
	}
	start, ready := shown(j.plan.Start), shown(j.plan.Ready)
	if start == "" && ready == "" {
		start, ready = j.base.Start, j.base.Ready
	}
	var state *id.Snapshot
	if start != "" || ready != "" {
		if state, err = j.boot(ctx, made, start, ready); err != nil {
			return err
		}
	}
	if err := d.clear(ctx, b); err != nil {
		return err
	}
	if err := d.step(StepEnded, b.ID); err != nil {
		return err
	}
	j.lines.at(len(j.plan.Actions))
	j.lines.say("The template %s is ready.", b.Name)
	if err := j.lines.flush(ctx); err != nil {
		return err
	}
	by := principal.System("build")
	if err := d.Store.Finish(ctx, d.lease, b.ID, Outcome{
		Status: StatusReady, Template: &made.ID, State: state, Start: start, Ready: ready,
		Audit: audit.By(by).TemplateBuilt(b.TeamID, made.ID, b.Name, true),
	}); err != nil {
		return err
	}
	d.Feed.Hint(b.ID)
	return d.step(StepPublished, b.ID)
}

// baseOf is what steps on a template begin with.
func baseOf(t template.Template, env map[string]string) recipe.Base {
	return recipe.Base{Env: env, User: t.DefaultUser, Workdir: t.DefaultWorkdir}
}

// begin finds what the steps begin with. It is the same for all attempts.
func (j *job) begin(ctx context.Context) (template.Template, error) {
	d, b := j.d, j.b
	if b.BaseID != nil {
		return d.Templates.ByID(ctx, *b.BaseID)
	}
	var base template.Template
	var err error
	if b.Spec.FromTemplate != "" {
		base, err = d.Templates.Resolve(ctx, b.TeamID, b.Spec.FromTemplate)
	} else {
		base, err = j.bring(ctx)
	}
	if err != nil {
		return base, err
	}
	if err := d.Store.SetBase(ctx, d.lease, b.ID, &base.ID); err != nil {
		return base, err
	}
	return base, d.step(StepBased, b.ID)
}

// What an imported image's sandboxes have, when nothing else was asked for; the
// columns' own defaults.
const (
	defaultCPUMillis = 1000
	defaultMemoryMB  = 512
	defaultDiskMB    = 4096
)

// bring imports an OCI image.
func (j *job) bring(ctx context.Context) (template.Template, error) {
	d, b := j.d, j.b
	hosts, err := d.Store.Builders(ctx, b.TeamID)
	if err != nil {
		return template.Template{}, err
	}
	if len(hosts) == 0 {
		return template.Template{}, errs.Unavailable("no_host", "No host is online to build on.").After(5 * time.Second)
	}
	h := hosts[0]
	in := Import{Reference: b.Spec.FromImage}
	if in.Login, err = openLogin(d.Secret, b); err != nil {
		return template.Template{}, err
	}
	if b.TarballID != nil {
		c, err := d.Store.Context(ctx, *b.TarballID)
		if err != nil {
			return template.Template{}, err
		}
		if in.Tarball, err = d.Artifacts.Source(ctx, c.Artifact, h.ID, artifact.Read); err != nil {
			return template.Template{}, err
		}
	} else if b.Spec.FromImage == "" {
		return template.Template{}, ErrContextNotFound // its time was over before the build began
	}
	image := artifact.New{ID: id.NewArtifact(), Team: b.TeamID, Kind: artifact.KindImage, Host: h.ID, Lease: imageLease}
	if err := d.Store.BeginImage(ctx, d.lease, b.ID, image); err != nil {
		return template.Template{}, err
	}
	if in.To, err = d.Artifacts.Source(ctx, image.ID, h.ID, artifact.Write); err != nil {
		return template.Template{}, err
	}
	j.lines.say("FROM %s", cmp.Or(b.Spec.FromImage, "the uploaded archive"))
	got, err := d.Agents.ImportImage(ctx, h, in, j.lines.line)
	if err != nil {
		return template.Template{}, err
	}
	if err := d.step(StepImported, b.ID); err != nil {
		return template.Template{}, err
	}
	return j.add(ctx, got, image, template.Template{
		Engine: "auto", CPUMillis: defaultCPUMillis, MemoryMB: defaultMemoryMB, DiskMB: defaultDiskMB, Env: got.Env,
		DefaultUser: cmp.Or(got.User, "root"), DefaultWorkdir: cmp.Or(got.Workdir, "/"),
	})
}

// imageLease is how long a host may work on an image before it begins to send it.
const imageLease = time.Hour

// add makes the hidden template of an image that a host has put into the store.
func (j *job) add(ctx context.Context, got Image, image artifact.New, like template.Template) (template.Template, error) {
	for _, digest := range []content.Digest{got.Digest, got.ManifestDigest} {
		if err := digest.Validate(); err != nil {
			return template.Template{}, errs.Internal(fmt.Errorf("host %s named a broken digest: %w", image.Host, err))
		}
	}
	like.ID, like.TeamID, like.Name = id.NewTemplate(), j.b.TeamID, j.b.Name
	like.ImageDigest, like.ImageSizeBytes, like.ManifestDigest, like.Artifact = got.Digest, got.SizeBytes, got.ManifestDigest, image.ID
	like.Arch = cmp.Or(got.Arch, like.Arch)
	return j.d.Store.AddImage(ctx, j.d.lease, j.b.ID, like)
}

// maxPicked bounds what is kept in memory of what COPY takes.
const maxPicked = 1_000_000

// choose finds out what COPY takes.
func (j *job) choose(ctx context.Context) error {
	j.picks = map[int]*buildcontext.Selection{}
	if !slices.ContainsFunc(j.plan.Actions, func(a recipe.Action) bool { return a.Kind == recipe.Copy }) {
		return nil
	}
	d, b := j.d, j.b
	if b.ContextID == nil {
		return ErrContextNotFound
	}
	c, err := d.Store.Context(ctx, *b.ContextID)
	if err != nil {
		return err
	}
	from, err := d.Artifacts.Source(ctx, c.Artifact, id.Host{}, artifact.Read)
	if err != nil {
		return err
	}
	if j.dir, err = os.MkdirTemp(d.cfg.Scratch, "build-*"); err != nil {
		return errs.Internal(err)
	}
	packed := filepath.Join(j.dir, "packed")
	if err := d.Artifacts.FetchContext(ctx, from, content.Digest(c.Digest), packed, d.cfg.MaxContextBytes); err != nil {
		return err
	}
	// Packed text grows by much; what it may grow to is bounded all the same.
	if j.archive, err = buildcontext.Open(ctx, packed, filepath.Join(j.dir, "plain"), 4*d.cfg.MaxContextBytes); err != nil {
		return err
	}
	files := 0
	for i, a := range j.plan.Actions {
		if a.Kind != recipe.Copy {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pick, err := j.archive.Select(a.Copy.Sources, a.Copy.IntoDir)
		var missing *buildcontext.NoSuchFileError
		var many *buildcontext.ManyFilesError
		if errors.As(err, &missing) || errors.As(err, &many) {
			j.lines.at(i + 1)
			return recipe.InvalidAt(a.Line, "COPY: %v", err)
		}
		if err != nil {
			return err
		}
		if files += pick.Files(); files > maxPicked {
			j.lines.at(i + 1)
			return recipe.InvalidAt(a.Line, "COPY: all of them together take more than %d files", maxPicked)
		}
		j.picks[i] = pick
	}
	return nil
}

// keys are what the disk is made of after each step: two builds that agree in a
// key may go on from one another.
func (j *job) keys(ctx context.Context) ([][32]byte, error) {
	out := make([][32]byte, len(j.plan.Actions))
	at := sha256.Sum256([]byte("skerry layer 1\x00" + string(j.base.ImageDigest)))
	for i, a := range j.plan.Actions {
		h := sha256.New()
		h.Write(at[:])
		field := func(parts ...string) {
			var n [8]byte
			binary.BigEndian.PutUint64(n[:], uint64(len(parts)))
			h.Write(n[:])
			for _, p := range parts {
				binary.BigEndian.PutUint64(n[:], uint64(len(p)))
				h.Write(n[:])
				h.Write([]byte(p))
			}
		}
		switch a.Kind {
		case recipe.Run:
			field("RUN", a.User, a.Workdir, a.Command.Shell)
			field(a.Command.Args...)
			for _, k := range slices.Sorted(maps.Keys(a.Env)) {
				field(k, a.Env[k])
			}
		case recipe.Workdir:
			field("WORKDIR", a.User, a.Workdir)
		case recipe.Copy:
			sum, err := j.picks[i].Digest(ctx)
			if err != nil {
				return nil, err
			}
			field("COPY", a.Copy.Dest, a.Copy.Chown, fmt.Sprint(a.Copy.IntoDir, j.picks[i].File), string(sum[:]))
		default: // it changes what comes after and not the disk
			out[i] = at
			continue
		}
		h.Sum(at[:0])
		out[i] = at
	}
	return out, nil
}

// image makes the template of what the steps have left, hidden until all is
// done.
func (j *job) image(ctx context.Context) (template.Template, error) {
	d, b := j.d, j.b
	like := j.base
	like.Env, like.DefaultUser, like.DefaultWorkdir = j.plan.End.Env, j.plan.End.User, j.plan.End.Workdir
	like.CPUMillis, like.MemoryMB, like.DiskMB = j.sizes()
	if !j.changed {
		like.ID, like.TeamID, like.Name = id.NewTemplate(), b.TeamID, b.Name
		made, err := d.Store.AddImage(ctx, d.lease, b.ID, like)
		if err != nil {
			return made, err
		}
		return made, d.step(StepAdded, b.ID)
	}
	image := artifact.New{ID: id.NewArtifact(), Team: b.TeamID, Kind: artifact.KindImage, Host: j.box.Host.ID, Lease: imageLease}
	if err := d.Store.BeginImage(ctx, d.lease, b.ID, image); err != nil {
		return template.Template{}, err
	}
	to, err := d.Artifacts.Source(ctx, image.ID, image.Host, artifact.Write)
	if err != nil {
		return template.Template{}, err
	}
	j.lines.say("Making the image.")
	got, err := d.Agents.ExportImage(ctx, j.box.Host, j.box.ID, j.box.Incarnation, to, j.lines.line)
	if err != nil {
		return template.Template{}, err
	}
	if err := d.step(StepExported, b.ID); err != nil {
		return template.Template{}, err
	}
	made, err := j.add(ctx, got, image, like)
	if err != nil {
		return made, err
	}
	return made, d.step(StepAdded, b.ID)
}

// sizes are what was asked for, or what the base has.
func (j *job) sizes() (cpuMillis, memoryMB, diskMB int64) {
	return cmp.Or(j.b.Spec.CPUMillis, j.base.CPUMillis), cmp.Or(j.b.Spec.MemoryMB, j.base.MemoryMB), cmp.Or(j.b.Spec.DiskMB, j.base.DiskMB)
}

// start boots a sandbox of a template, or one that goes on from a layer, and
// writes down which it is.
func (j *job) start(ctx context.Context, t template.Template, from *id.Snapshot) (sandbox.Sandbox, error) {
	d, b := j.d, j.b
	t.StateID = nil // its disk is wanted, as it is
	cpus, memory, disk := j.sizes()
	x, err := d.Sandboxes.StartForBuild(ctx, sandbox.BuildStart{
		Build: b.ID, Team: b.TeamID, Template: t, From: from, CPUMillis: cpus, MemoryMB: memory, DiskMB: disk, Limit: d.cfg.Limit,
	})
	if err != nil {
		return x, err
	}
	if err := d.step(StepStarted, b.ID); err != nil {
		return x, err
	}
	if err := d.Store.SetSandbox(ctx, d.lease, b.ID, &x.ID); err != nil {
		if errs.Is(err, ErrOvertaken.Reason) {
			// Whoever drives the build now may have looked for it too early.
			ectx, end := context.WithTimeout(context.WithoutCancel(ctx), endWait)
			defer end()
			if err := d.Sandboxes.EndForBuild(ectx, x.ID); err != nil {
				d.log.WarnContext(ectx, "a sandbox of a build that is driven elsewhere runs on; the sweep ends it", "sandbox_id", x.ID.String(), "error", err)
			}
		}
		return x, err
	}
	return x, d.step(StepNamed, b.ID)
}
