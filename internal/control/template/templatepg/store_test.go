package templatepg_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
)

type hosts []host.Ref

func (h hosts) ListBuilders(context.Context) ([]host.Ref, error) { return h, nil }

// builder puts an image there as a host does, as far as rows tell.
type builder struct {
	pool   *pgxpool.Pool
	digest string
	broken bool
}

func (b *builder) BuildBase(ctx context.Context, _ host.Ref, to content.Source, log func(string) error) (template.Built, error) {
	d := content.Digest(b.digest)
	if !b.broken {
		put(ctx, b.pool, to.URL)
	}
	return template.Built{Digest: d, SizeBytes: 7, ManifestDigest: d}, log("a line")
}

func put(ctx context.Context, pool *pgxpool.Pool, a string) {
	if _, err := pool.Exec(ctx, `UPDATE artifacts SET status = 'ready', lease_until = NULL, ready_at = now(), manifest_digest = 'x' WHERE id = $1`, a); err != nil {
		panic(err)
	}
}

// sources name artifacts by nothing but their ids.
type sources struct{}

func (sources) Source(_ context.Context, a id.Artifact, _ id.Host, _ artifact.Op) (content.Source, error) {
	return content.Source{URL: a.UUID().String()}, nil
}

// builderHost is a host of the platform's.
func builderHost(t *testing.T, pool *pgxpool.Pool) id.Host {
	t.Helper()
	h := id.NewHost()
	if _, err := pool.Exec(t.Context(), `INSERT INTO hosts (id, team_id, type, name, status) VALUES ($1, $2, 'regular', 'h', 'online')`, h, id.PlatformTeamID); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestP2_ANewBaseReplacesTheNameNotTheRow(t *testing.T) {
	pool := pgtest.New(t)
	ctx := context.Background()
	b := &builder{pool: pool}
	s := template.NewService(templatepg.New(pool), hosts{{ID: builderHost(t, pool)}}, b, sources{})
	admin := principal.Principal{Kind: principal.KindUser, IsAdmin: true, UserID: id.NewUser(), UserName: "root"}
	team, user := teamtest.New(t, pool)
	build := func(digest string) template.Template {
		t.Helper()
		b.digest = digest
		got, err := s.BuildBase(ctx, admin, func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	old := build(strings.Repeat("aa", 32))
	now := build(strings.Repeat("bb", 32))
	if got, err := s.Resolve(ctx, team, "base"); err != nil || got.ID != now.ID || !got.Platform() {
		t.Errorf("base is %v (%v)", got.ID, err)
	}
	if got, err := s.ByID(ctx, old.ID); err != nil || got.ImageDigest != old.ImageDigest {
		t.Errorf("the old row: %+v %v", got, err)
	}
	if _, err := s.Get(ctx, user, old.ID.String()); !errs.Is(err, "template_not_found") {
		t.Errorf("the old row by its id: %v", err)
	}
	own := id.NewTemplate()
	if _, err := pool.Exec(ctx, `INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest) VALUES ($1, $2, 'base', 'ready', 'x', 'x')`, own, team); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Resolve(ctx, team, "base"); err != nil || got.ID != own {
		t.Errorf("the team's own does not shadow the platform's: %v (%v)", got.ID, err)
	}
	stranger := user
	stranger.TeamID = id.NewTeam()
	if _, err := s.Get(ctx, stranger, own.String()); !errs.Is(err, "template_not_found") {
		t.Errorf("another team's: %v", err)
	}
	if from, err := s.ImageSource(ctx, now, id.NewHost()); err != nil || from.URL != now.Artifact.UUID().String() || now.Artifact == old.Artifact {
		t.Errorf("the image comes from %v (%v)", from, err)
	}
	if list, err := s.List(ctx, user, page.Request{Limit: 50}); err != nil || len(list.Items) != 2 {
		t.Errorf("%d listed (%v)", len(list.Items), err)
	}
	if _, err := s.BuildBase(ctx, user, func(string) error { return nil }); !errs.Is(err, "admin_required") {
		t.Errorf("a user builds: %v", err)
	}
	b.broken = true
	if _, err := s.BuildBase(ctx, admin, func(string) error { return nil }); !errs.Is(err, "no_such_artifact") {
		t.Errorf("an image that was never put there: %v", err)
	}
	b.digest = "../../etc/passwd"
	if _, err := s.BuildBase(ctx, admin, func(string) error { return nil }); errs.CodeOf(err) != errs.CodeInternal {
		t.Errorf("a broken digest from a host: %v", err)
	}
}

func TestP2_BuildsThatEndAtOnceFollowOneAnother(t *testing.T) {
	pool := pgtest.New(t)
	ctx := context.Background()
	store := templatepg.New(pool)
	digest := content.Digest(strings.Repeat("aa", 32))
	image := id.NewArtifact()
	if err := store.BeginImage(ctx, artifact.New{ID: image, Team: id.PlatformTeamID, Kind: artifact.KindImage}); err != nil {
		t.Fatal(err)
	}
	put(ctx, pool, image.UUID().String())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			tpl := template.Template{ID: id.NewTemplate(), TeamID: id.PlatformTeamID, Name: "base", ImageDigest: digest, ManifestDigest: digest, Artifact: image}
			if _, err := store.Publish(ctx, tpl, audit.By(principal.System("test")).TemplateBuilt(tpl.TeamID, tpl.ID, tpl.Name, true)); err != nil {
				t.Errorf("a whole build was for nothing: %v", err)
			}
		})
	}
	wg.Wait()
	var living, all int
	if err := pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE deleted_at IS NULL), count(*) FROM templates`).Scan(&living, &all); err != nil || living != 1 || all != 8 {
		t.Errorf("%d of %d templates live (%v), want 1 of 8", living, all, err)
	}
}
