package sandboxpg_test

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// look is one pass over a host.
func look(t testing.TB, w *sandboxtest.World, s *sandboxtest.Server, h id.Host) {
	t.Helper()
	if err := s.Reconciler.ReconcileHost(context.Background(), w.Ref(h)); err != nil {
		t.Fatalf("reconcile: %v", err)
	}
}

func exec(t testing.TB, w *sandboxtest.World, sql string, args ...any) {
	t.Helper()
	if _, err := w.Pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func tally(t testing.TB, w *sandboxtest.World, sql string, args ...any) (n int) {
	t.Helper()
	if err := w.Pool.QueryRow(context.Background(), `SELECT count(*) FROM `+sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// told is how often the trail says that a host did something.
func told(t testing.TB, w *sandboxtest.World, h id.Host, action string) int {
	t.Helper()
	return tally(t, w, `audit_logs WHERE resource_type = 'host' AND resource_id = $1 AND action = $2`, h.String(), action)
}

func strays(t testing.TB, s *sandboxtest.Server, h id.Host) []sandbox.Stray {
	t.Helper()
	all, err := s.Service.Strays(context.Background(), h, page.Request{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	return all.Items
}

func TestH8_WhatNobodyKnowsIsPausedKeptAndThenDestroyed(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	h := w.Hosts[0]
	known := create(t, w, s, request())
	stranger, own := id.NewSandbox(), id.NewSandbox()
	w.Agents.Put(h, sandbox.Instance{Sandbox: stranger, Incarnation: 3, Phase: sandbox.PhaseRunning})
	w.Agents.Put(h, sandbox.Instance{Sandbox: own, Incarnation: 1, Phase: sandbox.PhaseRunning, Unknown: true}) // its agent's to end
	look(t, w, s, h)
	if got := strays(t, s, h); len(got) != 0 {
		t.Fatalf("at the first look: %+v", got)
	}
	var lost atomic.Bool
	lost.Store(true)
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "pause" && lost.CompareAndSwap(true, false) {
			return errs.Unavailable("host_unavailable", "The answer is lost.")
		}
		return ctx.Err()
	}
	for range 3 { // the pause is asked for again, and is the same
		look(t, w, s, h)
	}
	got := strays(t, s, h)
	if len(got) != 1 || got[0].Sandbox != stranger || got[0].Kind != sandbox.StrayUnknown || got[0].PausedAt == nil || got[0].DestroyAt == nil {
		t.Fatalf("strays %+v", got)
	}
	if left := time.Until(*got[0].DestroyAt); left < 7*24*time.Hour-time.Minute || left > 7*24*time.Hour+time.Minute {
		t.Errorf("it goes in %s", left)
	}
	if phase, _ := w.Agents.Phase(stranger); phase != sandbox.PhasePaused || w.Agents.Pauses(stranger) != 1 {
		t.Errorf("it is %q, paused %d times", phase, w.Agents.Pauses(stranger))
	}
	if phase, _ := w.Agents.Phase(own); phase != sandbox.PhaseRunning {
		t.Errorf("what the agent's journal does not know is %q", phase)
	}
	if found, paused := told(t, w, h, "stray_found"), told(t, w, h, "stray_quarantine"); found != 1 || paused > 1 {
		t.Errorf("the trail says found %d times and paused %d times", found, paused)
	}
	// Its time is over; the process dies between its end and that of its state.
	exec(t, w, `UPDATE host_strays SET destroy_at = now() WHERE sandbox_id = $1`, stranger)
	var fails atomic.Bool
	fails.Store(true)
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "delete_state" && fails.CompareAndSwap(true, false) {
			return errs.Unavailable("host_unavailable", "Died here.")
		}
		return ctx.Err()
	}
	if err := s.Reconciler.ReconcileHost(context.Background(), w.Ref(h)); err == nil {
		t.Error("a pass that could not finish says it did")
	}
	if w.Agents.Has(stranger) || w.Agents.States() != 1 {
		t.Errorf("after the death it is there: %v, with %d states", w.Agents.Has(stranger), w.Agents.States())
	}
	look(t, w, s, h)
	if w.Agents.States() != 0 || len(strays(t, s, h)) != 0 || told(t, w, h, "stray_destroy") != 1 {
		t.Errorf("%d states, strays %+v", w.Agents.States(), strays(t, s, h))
	}
	if x := get(t, w, known.ID); x.Status != sandbox.StatusRunning || !w.Agents.Has(known.ID) {
		t.Errorf("the known one is %s", x.Status)
	}
}

func TestH8_AnAdminHasAStrayDestroyedAtOnce(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	h := w.Hosts[0]
	stranger := id.NewSandbox()
	w.Agents.Put(h, sandbox.Instance{Sandbox: stranger, Incarnation: 1, Phase: sandbox.PhaseRunning})
	by := principal.Principal{Kind: principal.KindUser, UserID: id.NewUser(), UserName: "Root", IsAdmin: true}
	if err := s.Service.DestroyStray(context.Background(), by, h, stranger); !errs.Is(err, "stray_not_found") {
		t.Errorf("before it is one: %v", err)
	}
	for range 2 {
		look(t, w, s, h)
	}
	for range 2 { // harmless
		if err := s.Service.DestroyStray(context.Background(), by, h, stranger); err != nil {
			t.Fatal(err)
		}
	}
	look(t, w, s, h)
	if w.Agents.Has(stranger) || w.Agents.States() != 0 || len(strays(t, s, h)) != 0 {
		t.Errorf("there: %v, states %d, strays %+v", w.Agents.Has(stranger), w.Agents.States(), strays(t, s, h))
	}
	if told(t, w, h, "stray_give_up") == 0 || told(t, w, h, "stray_destroy") != 1 {
		t.Error("the trail does not say who and what")
	}
}

// A stray whose row is there again, as when the newer database was restored
// after all, is none, however due it was.
func TestH8_AStrayThatIsKnownAgainIsLeftInPeace(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	h := w.Hosts[0]
	x := create(t, w, s, request())
	exec(t, w, `INSERT INTO host_strays (host_id, sandbox_id, incarnation, kind, phase, state_id, destroy_at) VALUES ($1, $2, 1, 'unknown', 'running', $3, now() - interval '1 h')`, h, x.ID, id.NewSnapshot())
	w.Agents.Put(h, sandbox.Instance{Sandbox: id.NewSandbox(), Incarnation: 1, Phase: sandbox.PhaseRunning}) // so that strays are looked at
	for range 4 {
		look(t, w, s, h)
	}
	if got := get(t, w, x.ID); got.Status != sandbox.StatusRunning || !w.Agents.Has(x.ID) {
		t.Errorf("it is %s, on its host: %v", got.Status, w.Agents.Has(x.ID))
	}
	for _, st := range strays(t, s, h) {
		if st.Sandbox == x.ID {
			t.Error("it is a stray still")
		}
	}
}

func TestHI07_ClaimsToAnothersSandboxesChangeNothing(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	x := create(t, w, s, request())
	liar := w.AddHost(8, 8192)
	before := get(t, w, x.ID)
	w.Agents.Put(liar, sandbox.Instance{Sandbox: x.ID, Incarnation: 9, Phase: sandbox.PhaseExited, EndReason: "killed"})
	for range 5 {
		look(t, w, s, liar)
	}
	for seq := range int64(5) {
		exited := sandbox.Report{Seq: seq + 1, Kind: sandbox.ReportExited, Sandbox: x.ID, Incarnation: seq + 1, At: time.Now(), Data: map[string]any{"reason": "killed"}}
		if err := s.Service.Report(ctx, liar, 1, []sandbox.Report{exited, exited}); err != nil {
			t.Fatal(err)
		}
		if err := s.Service.Samples(ctx, liar, []sandbox.Sample{{Sandbox: x.ID, Figures: sandbox.Figures{At: time.Now(), CPUMillis: 1}}}); err != nil {
			t.Fatal(err)
		}
	}
	if after := get(t, w, x.ID); after.Status != before.Status || after.Incarnation != before.Incarnation || !after.UpdatedAt.Equal(before.UpdatedAt) {
		t.Errorf("the row was %+v and is %+v", before, after)
	}
	if n := told(t, w, liar, "claim_foreign"); n != 1 {
		t.Errorf("the trail has %d claims, want one a day", n)
	}
	got := strays(t, s, liar)
	if len(got) != 1 || got[0].Kind != sandbox.StrayForeign || got[0].DestroyAt != nil || got[0].PausedAt != nil {
		t.Errorf("strays %+v", got)
	}
	exec(t, w, `UPDATE host_strays SET told_at = now() - interval '25 hours'`)
	look(t, w, s, liar)
	if n := told(t, w, liar, "claim_foreign"); n != 2 {
		t.Errorf("after a day the trail has %d claims", n)
	}
	// Giving it up tells the host that claims it, and no other.
	if err := s.Service.DestroyStray(ctx, principal.Principal{Kind: principal.KindUser, IsAdmin: true}, liar, x.ID); err != nil {
		t.Fatal(err)
	}
	var destroyed atomic.Int64
	w.Agents.Before = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "destroy" {
			destroyed.Add(1)
		}
		return ctx.Err()
	}
	look(t, w, s, liar)
	if destroyed.Load() != 1 || !w.Agents.Has(x.ID) || get(t, w, x.ID).Status != sandbox.StatusRunning {
		t.Errorf("%d destroys; the sandbox is there: %v", destroyed.Load(), w.Agents.Has(x.ID))
	}
}

// A host may claim as much as it likes: what is noted of it is bounded.
func TestHI07_ClaimsAreBounded(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	h := w.Hosts[0]
	for i := range 1500 {
		w.Agents.Put(h, sandbox.Instance{Sandbox: id.NewSandbox(), Incarnation: int64(i + 1), Phase: sandbox.PhaseExited})
	}
	for range 3 {
		look(t, w, s, h)
	}
	if n := tally(t, w, `host_strays`); n < 500 || n > 1000 {
		t.Errorf("%d are noted", n)
	}
	if n := told(t, w, h, "stray_found"); n != sandbox.MostTales {
		t.Errorf("the trail has %d", n)
	}
	more := told(t, w, h, "claims_more")
	if more < 1 || more > 5 {
		t.Errorf("the trail was told %d times that it is more", more)
	}
	seen := map[id.Sandbox]bool{}
	p := page.Request{Limit: 100}
	for {
		got, err := s.Service.Strays(context.Background(), h, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range got.Items {
			if seen[x.Sandbox] {
				t.Fatal("listed twice: " + x.Sandbox.String() + " at " + strconv.Itoa(len(seen)))
			}
			seen[x.Sandbox] = true
		}
		if p.Cursor = got.NextCursor; p.Cursor == "" {
			break
		}
	}
	if len(seen) != tally(t, w, `host_strays`) {
		t.Errorf("%d are listed", len(seen))
	}
}

// A host that invents others at each look fills its team's trail no further; the
// next day counts anew, and what people do is recorded all the same.
func TestHI07_InventedStraysDoNotFloodTheTrail(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	s := w.Serve(sandbox.Config{})
	ctx := context.Background()
	store := sandboxpg.New(w.Pool)
	h := w.Hosts[0]
	invent := func(n int) (last id.Sandbox, heard int) {
		t.Helper()
		claims := make([]sandbox.Stray, n)
		for i := range claims {
			claims[i] = sandbox.Stray{Sandbox: id.NewSandbox(), Incarnation: 1, Kind: sandbox.StrayUnknown, Phase: sandbox.PhaseRunning, State: id.NewSnapshot()}
		}
		noted, err := store.NoteStrays(ctx, h, claims)
		if err != nil || len(noted) != n {
			t.Fatalf("%d noted: %v", len(noted), err)
		}
		for _, x := range noted {
			if x.New {
				heard++
			}
		}
		last = noted[0].Sandbox
		if err := store.StrayPaused(ctx, h, last, func(team id.Team) audit.Entry {
			return audit.By(principal.System("reconcile")).HostStrayQuarantined(team, h, last)
		}); err != nil {
			t.Fatal(err)
		}
		return last, heard
	}
	entries := func() int {
		return tally(t, w, `audit_logs WHERE resource_type = 'host' AND resource_id = $1`, h.String())
	}
	heard := 0
	const looks, each = 30, 100
	for range looks {
		_, n := invent(each)
		heard += n
		if err := store.Reconciled(ctx, h, nil, true); err != nil { // it holds none of them any more
			t.Fatal(err)
		}
	}
	// 200 by themselves, and how much it is at 200, 400, 800 and 1600.
	if n, want := entries(), sandbox.MostTales+4; n != want {
		t.Errorf("%d entries for %d claims, want %d", n, looks*each, want)
	}
	if heard >= looks*each || heard < sandbox.MostTales-looks {
		t.Errorf("%d are new to the trail", heard)
	}
	var told int
	if err := w.Pool.QueryRow(ctx, `SELECT max((metadata ->> 'told')::int) FROM audit_logs WHERE action = 'claims_more' AND resource_id = $1`, h.String()).Scan(&told); err != nil || told < 8*sandbox.MostTales {
		t.Errorf("the trail knows of %d: %v", told, err)
	}
	last, _ := invent(1)
	before := entries()
	if err := s.Service.DestroyStray(ctx, principal.Principal{Kind: principal.KindUser, IsAdmin: true}, h, last); err != nil {
		t.Fatal(err)
	}
	if n := entries() - before; n != 1 {
		t.Errorf("what an admin did is recorded %d times", n)
	}
	exec(t, w, `UPDATE host_tales SET day = day - 1`)
	if _, n := invent(10); n != 10 {
		t.Errorf("%d of 10 are told the next day", n)
	}
}

// Tokens and credentials that were over long ago go, but for the newest of each
// host: a deleted host's agent is told so whenever it comes.
func TestHI03_VoidCredentialsGoAfterAMonth(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	store := sandboxpg.New(w.Pool)
	h, other := w.Hosts[0], w.AddHost(8, 8192)
	token := func(h id.Host, days int, column string) {
		exec(t, w, `INSERT INTO host_registration_tokens (id, host_id, token_hash, created_at, expires_at, used_at)
			VALUES (gen_random_uuid(), $1, sha256(convert_to(gen_random_uuid()::text, 'UTF8')), now() - make_interval(days => $2), now() - make_interval(days => $2) + interval '1 hour', $3)`,
			h, days, map[bool]*time.Time{true: new(time.Time)}[column == "used"])
	}
	family := func(h id.Host, days int, void bool) {
		exec(t, w, `INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, created_at, expires_at, revoked_at)
			VALUES (gen_random_uuid(), $1, '', sha256(convert_to(gen_random_uuid()::text, 'UTF8')), now() - make_interval(days => $2), now(),
				CASE WHEN $3 THEN now() - make_interval(days => $2) END)`, h, days, void)
	}
	for _, days := range []int{90, 40, 20} { // of these the oldest two go
		token(h, days, "used")
		family(h, days, true)
	}
	family(h, 50, false) // lives
	token(other, 90, "") // the newest of its host
	family(other, 90, true)
	x := create(t, w, w.Serve(sandbox.Config{}), request())
	gone := w.AddHost(1, 1024)
	exec(t, w, `UPDATE hosts SET status = 'deleted', deleted_at = now() WHERE id = $1`, gone)
	for _, at := range []id.Host{h, gone} {
		exec(t, w, `INSERT INTO departures (sandbox_id, host_id, incarnation, state_id) VALUES ($1, $2, 1, gen_random_uuid())`, x.ID, at)
	}
	for range 2 {
		if _, err := store.PruneHosts(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
	}
	for table, want := range map[string][2]int{"host_registration_tokens": {1, 1}, "host_refresh_tokens": {2, 1}} {
		got := [2]int{tally(t, w, table+` WHERE host_id = $1`, h), tally(t, w, table+` WHERE host_id = $1`, other)}
		if got != want {
			t.Errorf("%s: %v are left, want %v", table, got, want)
		}
	}
	if here, there := tally(t, w, `departures WHERE host_id = $1`, h), tally(t, w, `departures WHERE host_id = $1`, gone); here != 1 || there != 0 {
		t.Errorf("%d departures from a host are left, %d from a deleted one", here, there)
	}
	if n, err := store.PruneHosts(t.Context(), 1); err != nil || n != 0 {
		t.Errorf("%d more went: %v", n, err)
	}
}
