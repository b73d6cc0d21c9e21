package teampg_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/apikey/apikeypg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/control/team/teampg"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// crashing is the sandboxes' room of a server that dies right after a team's
// deletion was recorded.
type crashing struct{}

func (crashing) EndOfTeam(context.Context, id.Sandbox) error { return errors.New("the server is gone") }

// fleet is a team with sandboxes on a host that can be away.
type fleet struct {
	*sandboxtest.World
	server *sandboxtest.Server
	owner  principal.Principal
	team   id.Team
	away   atomic.Bool
	made   []id.Sandbox
}

func newFleet(t *testing.T, sandboxes int) *fleet {
	t.Helper()
	f := &fleet{World: sandboxtest.NewWorld(t, pgtest.New(t), 16, 16384)}
	f.Agents.Before = func(ctx context.Context, _ string, _ id.Sandbox) error {
		if f.away.Load() {
			return errs.Unavailable("host_unavailable", "The host is away.")
		}
		return ctx.Err()
	}
	f.server = f.Serve(sandbox.Config{})
	f.team, f.owner = teamtest.New(t, f.Pool)
	for range sandboxes {
		r, err := f.server.Service.Create(t.Context(), f.owner, sandbox.CreateRequest{Template: "base"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.server.Service.Await(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		f.made = append(f.made, r.Sandbox)
	}
	return f
}

func (f *fleet) teams(sandboxes team.Sandboxes) *team.Service {
	return team.NewService(teampg.New(f.Pool), sandboxes, account.NormalizeEmail, "https://x", clock.System{}, discard())
}

func (f *fleet) living(t *testing.T) (n int) {
	t.Helper()
	if err := f.Pool.QueryRow(t.Context(), `SELECT count(*) FROM sandboxes WHERE team_id = $1 AND ended_at IS NULL`, f.team).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestT2_ADeletedTeamsSandboxesEnd(t *testing.T) {
	f := newFleet(t, 3)
	other, err := f.server.Service.Create(t.Context(), f.User(), sandbox.CreateRequest{Template: "base"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.teams(f.server.Service).Delete(t.Context(), f.owner, f.team); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "all have ended", func() bool { return f.living(t) == 0 })
	for _, x := range f.made {
		got, err := f.Store.Get(t.Context(), x)
		if err != nil || got.Status != sandbox.StatusStopped || got.EndReason != sandbox.EndTeamDeleted || f.Agents.Has(x) {
			t.Errorf("%s %s (%v)", got.Status, got.EndReason, err)
		}
	}
	if got, err := f.server.Service.Lookup(t.Context(), other); err != nil || !got.Status.Live() {
		t.Errorf("another team's sandbox is %s (%v)", got.Status, err)
	}
	// Who still has an old answer to "which team" makes nothing in it.
	_, err = f.server.Service.Create(t.Context(), f.owner, sandbox.CreateRequest{Template: "base"})
	want(t, "create in a deleted team", err, "no_team")
}

// The server dies after the commit, and the host is away: the deletion stands,
// and another server finishes it when the host is back.
func TestT2_DeletionIsFinishedAfterACrashAndWhenTheHostIsBack(t *testing.T) {
	f := newFleet(t, 3)
	f.away.Store(true)
	start := time.Now()
	if err := f.teams(crashing{}).Delete(t.Context(), f.owner, f.team); err != nil {
		t.Fatalf("the deletion is not answered: %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the answer took %s", d)
	}
	if n := f.living(t); n != 3 {
		t.Fatalf("%d are living", n)
	}
	// Two servers sweep at once, as they do.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := f.teams(f.server.Service).Pass(t.Context()); err != nil {
				t.Errorf("sweep: %v", err)
			}
		})
	}
	wg.Wait()
	for _, x := range f.made {
		if got, err := f.Store.Get(t.Context(), x); err != nil || got.Status != sandbox.StatusStopping || got.Incarnation != 2 {
			t.Errorf("with the host away: %s, incarnation %d (%v)", got.Status, got.Incarnation, err)
		}
	}
	f.away.Store(false)
	testkit.Eventually(t, 90*time.Second, "all have ended", func() bool { return f.living(t) == 0 })
	for _, x := range f.made {
		if f.Agents.Has(x) {
			t.Errorf("%s runs on", x)
		}
	}
}

// One sandbox that cannot be ended holds up no other, and is tried again.
func TestT2_TheSweepGoesOnPastWhatFails(t *testing.T) {
	f := newFleet(t, 3)
	flaky := &failing{inner: f.server.Service, first: f.made[0]}
	if err := f.teams(flaky).Delete(t.Context(), f.owner, f.team); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the others have ended", func() bool { return f.living(t) == 1 })
	flaky.mended.Store(true)
	if err := f.teams(flaky).Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the last has ended", func() bool { return f.living(t) == 0 })
}

type failing struct {
	inner  *sandbox.Service
	first  id.Sandbox
	mended atomic.Bool
}

func (f *failing) EndOfTeam(ctx context.Context, x id.Sandbox) error {
	if x == f.first && !f.mended.Load() {
		return errors.New("not now")
	}
	return f.inner.EndOfTeam(ctx, x)
}

func TestID01_ADeletedTeamsKeysAndLinksEndWithIt(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	keys := apikey.NewService(apikeypg.New(w.pool), clock.System{}, discard())
	k, err := keys.Create(ctx, w.admin, apikey.CreateRequest{Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	w.invite(t, w.owner, team.InviteRequest{})
	if err := w.teams.Delete(ctx, w.owner, w.team); err != nil {
		t.Fatal(err)
	}
	_, err = keys.AuthenticateKey(ctx, k.Secret)
	want(t, "its key", err, "invalid_api_key")
	if living, err := keys.LivingKeys(ctx, []id.APIKey{k.Key.ID}); err != nil || len(living) != 0 {
		t.Errorf("its streams go on: %v (%v)", living, err)
	}
	if n := w.count(t, `SELECT (SELECT count(*) FROM team_api_keys WHERE team_id = $1 AND revoked_at IS NULL)
		+ (SELECT count(*) FROM team_invitations WHERE team_id = $1 AND revoked_at IS NULL)`, w.team); n != 0 {
		t.Errorf("%d keys and invitations are open", n)
	}
	_, err = keys.Create(ctx, w.owner, apikey.CreateRequest{Name: "late"})
	want(t, "a new key", err, "no_team")
	if got := w.actions(t, w.team); !cmp.Equal(got, []string{"api_key.create", "invitation.create", "team.delete"}) {
		t.Errorf("audited %v", got)
	}
}

// Whatever is made while the team goes is made before, and ends with it.
func TestID01_NothingIsMadeInATeamThatGoes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	keys := apikey.NewService(apikeypg.New(w.pool), clock.System{}, discard())
	for round := range testkit.Scaled(200, 10) {
		going, owner := teamtest.New(t, w.pool)
		admin := teamtest.Join(t, w.pool, going, principal.RoleAdmin)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { _, _ = keys.Create(ctx, admin, apikey.CreateRequest{Name: "k"}) })
			wg.Go(func() { _, _ = w.teams.Invite(ctx, admin, going, team.InviteRequest{}) })
		}
		wg.Go(func() {
			if err := w.teams.Delete(ctx, owner, going); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if n := w.count(t, `SELECT (SELECT count(*) FROM team_api_keys WHERE team_id = $1 AND revoked_at IS NULL)
			+ (SELECT count(*) FROM team_invitations WHERE team_id = $1 AND revoked_at IS NULL)`, going); n != 0 {
			t.Fatalf("round %d: %d are left", round, n)
		}
	}
}
