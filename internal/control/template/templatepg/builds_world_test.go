package templatepg_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// buildWorld is a database with hosts, and disks that are lists of what was done
// to them: what a build makes is compared with what its recipe says.
type buildWorld struct {
	*sandboxtest.World
	t testing.TB

	mu     sync.Mutex
	disks  map[id.Sandbox][]string
	states map[id.Snapshot][]string
	images map[content.Digest][]string
	stored map[string][]byte // contexts, by artifact
	ran    int               // commands, all together
	// blocked is told of a command that goes on until it is ended.
	blocked chan id.Sandbox
}

func newBuildWorld(t testing.TB) *buildWorld {
	t.Helper()
	w := &buildWorld{
		World: sandboxtest.NewWorld(t, pgtest.New(t), 64, 64<<10), t: t, disks: map[id.Sandbox][]string{}, states: map[id.Snapshot][]string{},
		images: map[content.Digest][]string{content.Digest(strings.Repeat("ab", 32)): {"base"}}, stored: map[string][]byte{}, blocked: make(chan id.Sandbox, 64),
	}
	base := id.NewArtifact()
	w.sql(`INSERT INTO artifacts (id, team_id, kind, status, manifest_digest, ready_at) VALUES ($1, $2, 'image', 'ready', 'x', now())`, base, id.PlatformTeamID)
	w.sql(`UPDATE hosts SET arch = 'amd64'`)
	w.sql(`UPDATE templates SET artifact_id = $1, default_user = 'ada', default_workdir = '/home'`, base)
	return w
}

func (w *buildWorld) sql(query string, args ...any) {
	w.t.Helper()
	if _, err := w.Pool.Exec(context.Background(), query, args...); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
}

func (w *buildWorld) count(what string, args ...any) int {
	w.t.Helper()
	var n int
	if err := w.Pool.QueryRow(context.Background(), "SELECT count(*) FROM "+what, args...).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	return n
}

// buildServer is one control plane.
type buildServer struct {
	*build.Service
	store  *templatepg.Builds
	driver *build.Driver
	sweep  *build.Sweep
	rooms  boxes
	stop   func()
}

func (w *buildWorld) serve(cfg build.Config) *buildServer {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	store := templatepg.NewBuilds(w.Pool)
	templates := template.NewService(templatepg.New(w.Pool), nil, nil, buildStore{w})
	watch := sandbox.NewWatch(w.Store, log)
	runner := sandbox.NewRunner(w.Store, w.Agents, templates, w.Secret, watch, sandbox.Config{Poll: 20 * time.Millisecond}, log)
	rooms := boxes{sandbox.NewService(w.Store, w.Scheduler, templates, w.Agents, runner, watch, w.Secret, log), w}
	feed := build.NewFeed(store, log)
	cfg.Poll, cfg.ReadyEvery, cfg.UploadLimit, cfg.Scratch, cfg.MaxContextBytes = 20*time.Millisecond, 10*time.Millisecond, time.Second, w.t.TempDir(), 1<<20
	if cfg.Lease == 0 {
		cfg.Lease = 3 * time.Second
	}
	b := &buildServer{store: store, rooms: rooms}
	b.driver = build.NewDriver(build.Ports{
		Store: store, Agents: buildAgents{w}, Sandboxes: rooms, Guests: buildGuests{w}, Templates: templates, Artifacts: buildStore{w}, Feed: feed, Secret: w.Secret,
	}, cfg, log)
	b.Service = build.NewService(store, templates, buildStore{w}, feed, b.driver, w.Secret, build.ServiceConfig{Scratch: cfg.Scratch, MaxContextBytes: 1 << 20}, log)
	b.sweep = build.NewSweep(store, rooms, log)
	b.sweep.SetLeftAge(0)
	ctx, cancel := context.WithCancel(context.Background())
	var loops sync.WaitGroup
	loops.Go(func() { _ = runner.Run(ctx) })
	loops.Go(func() { _ = watch.Run(ctx) })
	loops.Go(func() { _ = b.driver.Run(ctx) })
	loops.Go(func() { _ = feed.Run(ctx) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		loops.Wait()
	})
	w.t.Cleanup(b.stop)
	return b
}

// boxes are the sandbox room, and what becomes of disks in it.
type boxes struct {
	*sandbox.Service
	w *buildWorld
}

func (b boxes) StartForBuild(ctx context.Context, s sandbox.BuildStart) (sandbox.Sandbox, error) {
	x, err := b.Service.StartForBuild(ctx, s)
	if err != nil {
		return x, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	from := b.w.images[s.Template.ImageDigest]
	if s.From != nil {
		from = b.w.states[*s.From]
	}
	if from == nil {
		return x, errs.Internal(fmt.Errorf("started from bytes that nobody has: %s", s.Template.ImageDigest))
	}
	b.w.disks[x.ID] = append([]string(nil), from...)
	return x, nil
}

func (b boxes) SaveForBuild(ctx context.Context, x id.Sandbox, kind sandbox.StateKind, memory bool) (sandbox.Snapshot, error) {
	s, err := b.Service.SaveForBuild(ctx, x, kind, memory)
	if err == nil {
		b.w.mu.Lock()
		defer b.w.mu.Unlock()
		b.w.states[s.ID] = append([]string(nil), b.w.disks[x]...)
	}
	return s, err
}

func (b boxes) StateForBuild(ctx context.Context, state id.Snapshot) (sandbox.Snapshot, error) {
	s, err := b.Service.StateForBuild(ctx, state)
	s.Stored = true // nobody uploads here
	return s, err
}

// buildStore keeps contexts in memory; an address is the artifact's bare id.
type buildStore struct{ w *buildWorld }

func (s buildStore) Source(_ context.Context, a id.Artifact, _ id.Host, _ artifact.Op) (content.Source, error) {
	return content.Source{URL: a.UUID().String()}, nil
}

func (s buildStore) PutContext(_ context.Context, to content.Source, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	s.w.mu.Lock()
	s.w.stored[to.URL] = raw
	s.w.mu.Unlock()
	return s.w.complete(to.URL, strings.Repeat("cd", 32))
}

func (s buildStore) FetchContext(_ context.Context, from content.Source, _ content.Digest, file string, _ int64) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return os.WriteFile(file, s.w.stored[from.URL], 0o600)
}

// complete makes an artifact ready, as the store's handler does.
func (w *buildWorld) complete(url, manifest string) error {
	_, err := w.Pool.Exec(context.Background(), `UPDATE artifacts SET status = 'ready', lease_until = NULL, manifest_digest = $2, ready_at = now()
		WHERE id = $1 AND status = 'uploading'`, url, manifest)
	return err
}

// buildAgents make images: what an image holds is its digest.
type buildAgents struct{ w *buildWorld }

func (a buildAgents) ImportImage(_ context.Context, _ host.Ref, i build.Import, log func(string) error) (build.Image, error) {
	if err := log("importing"); err != nil {
		return build.Image{}, err
	}
	if strings.Contains(i.Reference, "private") && (i.Login == nil || i.Login.Password != "sesame") {
		return build.Image{}, errs.FailedPrecondition("image_denied", "The registry refuses.")
	}
	img, err := a.made([]string{"image " + i.Reference + i.Tarball.URL}, i.To)
	img.Env, img.User, img.Workdir = map[string]string{"FROM_IMAGE": "1"}, "1000", "/srv"
	return img, err
}

func (a buildAgents) ExportImage(_ context.Context, _ host.Ref, x id.Sandbox, _ int64, to content.Source, log func(string) error) (build.Image, error) {
	a.w.mu.Lock()
	disk := a.w.disks[x]
	a.w.mu.Unlock()
	if disk == nil {
		return build.Image{}, errs.NotFound("sandbox_not_found", "There is no such sandbox.")
	}
	if err := log("exporting"); err != nil {
		return build.Image{}, err
	}
	return a.made(disk, to)
}

func (a buildAgents) made(disk []string, to content.Source) (build.Image, error) {
	sum := sha256.Sum256([]byte(strings.Join(disk, "\n")))
	digest := content.Digest(hex.EncodeToString(sum[:]))
	a.w.mu.Lock()
	a.w.images[digest] = append([]string(nil), disk...)
	a.w.mu.Unlock()
	return build.Image{Digest: digest, SizeBytes: 1, ManifestDigest: digest, Arch: "amd64"}, a.w.complete(to.URL, string(digest))
}

// buildGuests run commands: `say X` prints, `fail N` ends so, `block` goes on.
type buildGuests struct{ w *buildWorld }

func (g buildGuests) Run(ctx context.Context, _ id.Team, x id.Sandbox, c build.Command, input func(context.Context, io.Writer) error, out func(string, []byte)) (int, error) {
	line := c.Cmd + " " + strings.Join(c.Args, " ")
	if c.Cmd == "/bin/sh" {
		line = c.Args[1]
	}
	g.w.mu.Lock()
	g.w.ran++
	_, there := g.w.disks[x]
	g.w.mu.Unlock()
	if !there {
		return 0, errs.FailedPrecondition("sandbox_ended", "There is no such sandbox.")
	}
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "say":
		out(build.Stdout, []byte(rest+"\n"))
	case "fail":
		out(build.Stderr, []byte("it went wrong"))
		return 3, nil
	case "check":
		return 0, nil
	case "block", "serve":
		g.w.blocked <- x
		<-ctx.Done()
		return 0, context.Cause(ctx)
	}
	note := fmt.Sprintf("%s@%s:%s", c.User, c.Cwd, line)
	if v := c.Env["A"]; v != "" {
		note += " A=" + v
	}
	if input != nil {
		names, err := received(ctx, input)
		if err != nil {
			return 0, err
		}
		note += " [" + names + "]"
	}
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.disks[x] = append(g.w.disks[x], note)
	return 0, nil
}

// received is what a COPY sends.
func received(ctx context.Context, input func(context.Context, io.Writer) error) (string, error) {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := input(ctx, w)
		w.CloseWithError(err)
		sent <- err
	}()
	var names []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		raw, err := io.ReadAll(tr)
		if err != nil {
			return "", err
		}
		names = append(names, fmt.Sprintf("%s %d:%d=%s", h.Name, h.Uid, h.Gid, raw))
	}
	_, _ = io.Copy(io.Discard, r)
	return strings.Join(names, ","), <-sent
}

func (g buildGuests) Read(_ context.Context, _ id.Team, _ id.Sandbox, path string, _ int64) ([]byte, error) {
	return []byte(map[string]string{
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\nada:x:1000:1001::/home:/bin/sh\n:broken\nbob:x:7:8::/b:/bin/sh\n",
		"/etc/group":  "root:x:0:\nstaff:x:50:ada\n",
	}[path]), nil
}

// ended waits until a build is at its end.
func (w *buildWorld) ended(b *buildServer, of id.Build) build.Build {
	w.t.Helper()
	var got build.Build
	testkit.Eventually(w.t, time.Minute, "the build ends", func() bool {
		var err error
		if got, err = b.store.Get(context.Background(), of); err != nil {
			w.t.Fatal(err)
		}
		return got.Status.Ended()
	})
	return got
}

func (w *buildWorld) log(b *buildServer, of id.Build) string {
	w.t.Helper()
	var out strings.Builder
	after := 0
	for {
		lines, err := b.store.Lines(context.Background(), of, after, 500)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(lines) == 0 {
			return out.String()
		}
		for _, l := range lines {
			fmt.Fprintf(&out, "%d %s %s\n", l.Step, l.Stream, l.Text)
			after = l.Seq
		}
	}
}

// whole checks what must hold when no build is under way: nothing runs for one,
// no state is left that nothing names, and what is visible is complete.
func (w *buildWorld) whole(b *buildServer) {
	w.t.Helper()
	testkit.Eventually(w.t, time.Minute, "what builds left is gone", func() bool {
		if err := b.sweep.Pass(context.Background()); err != nil {
			w.t.Fatal(err)
		}
		return w.count(`sandboxes WHERE build_id IS NOT NULL AND ended_at IS NULL`) == 0 &&
			w.count(`snapshots s WHERE s.kind IN ('layer', 'template') AND s.status = 'ready' AND NOT EXISTS (SELECT FROM build_layers l WHERE l.snapshot_id = s.id)
				AND NOT EXISTS (SELECT FROM templates t WHERE t.state_id = s.id AND t.deleted_at IS NULL)`) == 0
	})
	if n := w.count(`templates t LEFT JOIN artifacts a ON a.id = t.artifact_id WHERE t.deleted_at IS NULL AND (t.status <> 'ready' OR a.status IS DISTINCT FROM 'ready')`); n != 0 {
		w.t.Errorf("%d templates can be seen whose bytes are not all there", n)
	}
	if n := w.count(`templates t JOIN snapshots s ON s.id = t.state_id WHERE t.deleted_at IS NULL AND s.status <> 'ready'`); n != 0 {
		w.t.Errorf("%d templates start from what is not there", n)
	}
	if n := w.count(`builds WHERE secrets_sealed IS NOT NULL AND finished_at IS NOT NULL`); n != 0 {
		w.t.Errorf("%d ended builds have their secrets", n)
	}
}

// disk is what the team's template of a name consists of.
func (w *buildWorld) disk(team id.Team, name string) []string {
	w.t.Helper()
	t, err := templatepg.New(w.Pool).ResolveName(context.Background(), team, name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.images[t.ImageDigest]
}
