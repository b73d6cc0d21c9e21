package hostpg_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/host/hostpg"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
	"skerry.dev/skerry/internal/testkit"
)

func ptr[T any](v T) *T { return &v }

// drainer is one server's loop.
func drainer(s *sandboxtest.Server) *sandbox.Drainer {
	return sandbox.NewDrainer(s.Service, slog.New(slog.DiscardHandler))
}

func (f *fleet) host(t *testing.T, h id.Host) host.Host {
	t.Helper()
	got, err := f.hosts.Get(context.Background(), f.admin, h)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestH12_DrainingIsAStatusThatOutlivesSilence(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	c := w.register(t, newMachine(t))
	by := w.caller(t, c)
	admin := principal.Principal{Kind: principal.KindUser, IsAdmin: true, UserID: id.NewUser()}
	store := hostpg.New(w.pool)
	generation := int64(1)
	step := func(what string, want host.Status, do func() error) host.Host {
		t.Helper()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		h, err := w.hosts.Get(ctx, admin, c.HostID)
		if err != nil || h.Status != want {
			t.Errorf("%s: %s (%v), want %s", what, h.Status, err, want)
		}
		return h
	}
	beat := func() error {
		return w.hosts.Heartbeat(ctx, by, host.Beat{Host: c.HostID, Generation: generation, Address: "10.0.0.7:7072", Version: "1"})
	}
	drain := func(within *time.Duration) func() error {
		return func() error { return second(w.hosts.Drain(ctx, admin, c.HostID, within)) }
	}
	undrain := func() error { return second(w.hosts.Undrain(ctx, admin, c.HostID)) }
	silent := func() error {
		return second(store.MarkStale(ctx, -time.Hour, "silent", func(h host.Host) audit.Entry {
			return audit.By(principal.System("test")).HostMarkedDown(h.TeamID, h.ID, "test")
		}))
	}
	if h := step("drained before it was ever there", host.StatusPending, drain(nil)); h.DrainRequestedAt == nil || h.DrainDeadlineAt != nil || !h.Drained() {
		t.Errorf("%+v", h)
	}
	step("it comes", host.StatusDraining, beat)
	step("undrain", host.StatusOnline, undrain)
	step("again changes nothing", host.StatusOnline, undrain)
	first := step("drain", host.StatusDraining, drain(ptr(time.Minute)))
	second := step("with another deadline", host.StatusDraining, drain(ptr(time.Hour)))
	if d := second.DrainDeadlineAt.Sub(*first.DrainDeadlineAt); d < 50*time.Minute || !second.DrainRequestedAt.Equal(*first.DrainRequestedAt) {
		t.Errorf("the deadline moved by %s, from %s to %s", d, first.DrainRequestedAt, second.DrainRequestedAt)
	}
	step("a heartbeat", host.StatusDraining, beat)
	if active, err := w.hosts.ListActiveHosts(ctx); err != nil || len(active) != 1 || !active[0].Online {
		t.Errorf("one that is draining is not looked at: %v (%v)", active, err)
	}
	step("silence", host.StatusUnreachable, silent)
	step("it is back", host.StatusDraining, beat)
	generation = 2
	step("its agent starts anew and is not there yet", host.StatusUnreachable, beat)
	w.agents.generation = 2
	step("it is there", host.StatusDraining, beat)
	step("silence", host.StatusUnreachable, silent)
	step("undrain out of reach", host.StatusUnreachable, undrain)
	step("it is back", host.StatusOnline, beat)
	for _, within := range []time.Duration{0, -time.Second, 31 * 24 * time.Hour} {
		if err := drain(&within)(); !errs.Is(err, "invalid_request") {
			t.Errorf("a deadline in %s: %v", within, err)
		}
	}
	if n := w.audited(t, "drain"); n != 3 {
		t.Errorf("%d entries of drain", n)
	}
	if n := w.audited(t, "undrain"); n != 3 {
		t.Errorf("%d entries of undrain", n)
	}
}

// Fifty sandboxes, time to pause some of them, two servers, and creates without
// end: each of the fifty answers or is durably paused, and no create ends up on
// the host that is emptied.
func TestST10_DrainingLeavesNothingHalfway(t *testing.T) {
	f := newFleet(t, 1024)
	servers := []*sandboxtest.Server{f.Serve(sandbox.Config{}), f.Serve(sandbox.Config{})}
	h := f.Hosts[0]
	var old []id.Sandbox
	for range 50 {
		old = append(old, f.create(t, servers[0]).ID)
	}
	other := f.AddHost(1024, 1024*1024)
	var pausing, most, refusals atomic.Int64
	f.Agents.Before = func(ctx context.Context, call string, x id.Sandbox) error {
		if call != "pause" {
			return ctx.Err()
		}
		n := pausing.Add(1)
		defer pausing.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if x.UUID()[15]%8 == 0 && refusals.Add(1) > 0 {
			return errs.FailedPrecondition("disk_full", "The host has no room for the state.")
		}
		select { // as long as saving takes
		case <-time.After(800 * time.Millisecond):
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var loops, creates sync.WaitGroup
	for _, s := range servers {
		loops.Go(func() { _ = drainer(s).Run(ctx) })
	}
	if _, err := f.hosts.Drain(ctx, f.admin, h, ptr(3*time.Second)); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var fresh []id.Sandbox
	refused := 0
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for i := range 250 {
		<-ticker.C
		creates.Go(func() {
			receipt, err := servers[i%2].Service.Create(ctx, f.User(), sandbox.CreateRequest{Template: "base"})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refused++
				if !errs.Is(err, "no_capacity") {
					t.Errorf("create: %v", err)
				}
				return
			}
			fresh = append(fresh, receipt.Sandbox)
		})
	}
	creates.Wait()
	testkit.Eventually(t, time.Minute, "nothing is under way", func() bool {
		return f.count(t, `SELECT count(*) FROM operations WHERE status = 'open'`) == 0
	})
	stop()
	loops.Wait()
	running, paused := 0, 0
	for _, x := range old {
		got := f.get(t, x)
		phase, incarnation := f.Agents.Phase(x)
		switch {
		case got.Status == sandbox.StatusRunning && phase == sandbox.PhaseRunning && incarnation == got.Incarnation:
			running++
		case got.Status == sandbox.StatusPaused && phase == sandbox.PhasePaused && got.PausedReason == sandbox.PausedDrain && f.Agents.HasState(*got.StateID):
			paused++
		default:
			t.Errorf("%s is %s, its host holds %s", x, got.Status, phase)
		}
	}
	for _, x := range fresh {
		if got := f.get(t, x); got.Status != sandbox.StatusRunning || got.Host.ID != other {
			t.Errorf("a new one is %s on %s", got.Status, got.Host.ID)
		}
	}
	got := f.host(t, h)
	t.Logf("%d run on, %d paused, at most %d at once, %d refused by the host; %d created elsewhere, %d refused",
		running, paused, most.Load(), refusals.Load(), len(fresh), refused)
	if paused == 0 || running == 0 || len(fresh) < 200 {
		t.Error("the deadline did not come in between, or nothing was created")
	}
	if most.Load() > 2*8 {
		t.Errorf("%d paused at once by two servers", most.Load())
	}
	if got.Status != host.StatusDraining || got.Drained() || got.Active != int64(running) || got.Sandboxes != 50 || got.Reserved.CPUMillis != int64(running)*1000 {
		t.Errorf("shown as %s, drained %t, %d of %d run, %d reserved", got.Status, got.Drained(), got.Active, got.Sandboxes, got.Reserved.CPUMillis)
	}
	if refusals.Load() > 0 && got.DrainError == "" {
		t.Error("why some could not be paused is not shown")
	}
}

func TestH12_AFailedPauseIsTriedAgainAndShown(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	ctx := t.Context()
	x, h := f.create(t, s), f.Hosts[0]
	broken := atomic.Bool{}
	broken.Store(true)
	f.Agents.Before = func(_ context.Context, call string, _ id.Sandbox) error {
		if call == "pause" && broken.Load() {
			return errs.FailedPrecondition("disk_full", "The host has no room for the state.")
		}
		return nil
	}
	d := drainer(s)
	pass := func() {
		t.Helper()
		if err := d.Pass(ctx); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 20*time.Second, "nothing is under way", func() bool {
			return f.count(t, `SELECT count(*) FROM operations WHERE status = 'open'`) == 0
		})
	}
	pauses := func() int { return f.count(t, `SELECT count(*) FROM operations WHERE kind = 'pause'`) }
	pass()
	if pauses() != 0 {
		t.Fatal("paused on a host that nobody drains")
	}
	if _, err := f.hosts.Drain(ctx, f.admin, h, nil); err != nil {
		t.Fatal(err)
	}
	last := 0.0
	for i := 1; i <= 4; i++ {
		pass()
		pass() // not due
		if n := pauses(); n != i {
			t.Fatalf("%d pauses, want %d", n, i)
		}
		var wait float64
		if err := f.Pool.QueryRow(ctx, `SELECT extract(epoch FROM retry_at - now()) FROM sandboxes WHERE id = $1`, x.ID).Scan(&wait); err != nil {
			t.Fatal(err)
		}
		if i <= 3 && wait < 1.5*last || wait < 20 || wait > 121 {
			t.Errorf("try %d: the next in %.0f s, after %.0f s", i, wait, last)
		}
		last = wait
		got := f.host(t, h)
		if got.Drained() || !strings.Contains(got.DrainError, "no room") || f.get(t, x.ID).Status != sandbox.StatusRunning {
			t.Errorf("drained %t, %q", got.Drained(), got.DrainError)
		}
		f.exec(t, `UPDATE sandboxes SET retry_at = now() - interval '1 s'`)
	}
	broken.Store(false)
	pass()
	got := f.host(t, h)
	if !got.Drained() || got.DrainError != "" || f.get(t, x.ID).PausedReason != sandbox.PausedDrain {
		t.Errorf("drained %t, %q, %+v", got.Drained(), got.DrainError, f.get(t, x.ID))
	}
	// What it holds stays with it; nothing starts there.
	if _, err := s.Service.Resume(ctx, f.User(), x.ID, nil, false, true); !errs.Is(err, "host_draining") {
		t.Errorf("resume: %v", err)
	}
	if _, err := s.Service.Fork(ctx, f.User(), x.ID, sandbox.ForkRequest{Count: 1}); !errs.Is(err, "host_draining") {
		t.Errorf("fork: %v", err)
	}
	if _, err := f.hosts.Undrain(ctx, f.admin, h); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Service.Resume(ctx, f.User(), x.ID, nil, false, true); err != nil {
		t.Fatalf("resume: %v", err)
	}
	before := pauses()
	pass()
	if pauses() != before {
		t.Error("drained on after the end of it")
	}
	// Past its deadline what runs runs on.
	if _, err := f.hosts.Drain(ctx, f.admin, h, ptr(time.Second)); err != nil {
		t.Fatal(err)
	}
	f.exec(t, `UPDATE hosts SET drain_deadline_at = now() - interval '1 s'`)
	pass()
	if got := f.host(t, h); pauses() != before || got.Active != 1 || got.Drained() {
		t.Errorf("%d are active, drained %t", got.Active, got.Drained())
	}
}

func TestH10_ListsSayWhatAHostHasAndHolds(t *testing.T) {
	f := newFleet(t, 16)
	s := f.Serve(sandbox.Config{})
	ctx := t.Context()
	h := f.Hosts[0]
	x := f.create(t, s)
	f.create(t, s)
	if _, err := s.Service.Pause(ctx, f.User(), x.ID, true, true); err != nil {
		t.Fatal(err)
	}
	family := id.NewHostRefreshToken()
	f.exec(t, `INSERT INTO host_refresh_tokens (id, host_id, public_key, token_hash, expires_at) VALUES ($1, $2, '', sha256($3), now() + interval '1 day')`, family, h, []byte(family.String()))
	if err := f.hosts.Heartbeat(ctx, principal.Principal{Kind: principal.KindHost, HostID: h, HostFamily: family}, host.Beat{
		Host: h, Generation: 1, Address: "127.0.0.1:1", Version: "1", Load: host.Load{Sandboxes: 1, CPUMillis: 700, MemoryBytes: 1 << 20, DiskFreeBytes: 1 << 30},
	}); err != nil {
		t.Fatal(err)
	}
	team, owner := teamtest.New(t, f.Pool)
	f.exec(t, `UPDATE teams SET is_byoc = true, name = 'Far' WHERE id = $1`, team)
	own, err := f.hosts.Create(ctx, owner, host.CreateRequest{Type: host.TypeBYOC, Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := f.hosts.List(ctx, f.admin, page.Request{Limit: 10})
	if err != nil || len(all.Items) != 2 || all.Items[0].TeamName != "Far" || all.Items[1].ID != h {
		t.Fatalf("%+v (%v)", all.Items, err)
	}
	// What all teams start from is built on the platform's own machines.
	builders := func() []host.Ref {
		t.Helper()
		list, err := f.hosts.ListBuilders(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	f.exec(t, `UPDATE hosts SET status = 'online' WHERE id = $1`, own.Host.ID)
	if list := builders(); len(list) != 1 || list[0].ID != h {
		t.Errorf("built on %v", list)
	}
	if _, err := f.hosts.Drain(ctx, f.admin, h, nil); err != nil {
		t.Fatal(err)
	}
	if list := builders(); len(list) != 0 {
		t.Errorf("built on %v", list)
	}
	for _, got := range []host.Host{all.Items[1], f.host(t, h)} {
		if got.Sandboxes != 2 || got.Active != 1 || got.Reserved != (host.Amounts{CPUMillis: 1000, MemoryMB: 512, DiskMB: 8192}) ||
			got.Capacity() != (host.Amounts{CPUMillis: 16000, MemoryMB: 16 * 1024, DiskMB: 1 << 20}) || got.Load.CPUMillis != 700 || got.Load.DiskFreeBytes != 1<<30 {
			t.Errorf("%+v", got)
		}
	}
	if mine, err := f.hosts.List(ctx, owner, page.Request{Limit: 10}); err != nil || len(mine.Items) != 1 || mine.Items[0].ID != own.Host.ID {
		t.Errorf("%+v (%v)", mine.Items, err)
	}
}

func TestH1_WhoMayManageHosts(t *testing.T) {
	f := newFleet(t, 16)
	ctx := t.Context()
	team, owner := teamtest.New(t, f.Pool)
	f.exec(t, `UPDATE teams SET is_byoc = true WHERE id = $1`, team)
	made, err := f.hosts.Create(ctx, owner, host.CreateRequest{Type: host.TypeBYOC, Name: "mine", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	member, stranger := owner, owner
	member.Role = principal.RoleMember
	stranger.TeamID = id.NewTeam()
	key := principal.Principal{Kind: principal.KindAPIKey, HasTeam: true, TeamID: team}
	for name, c := range map[string]struct {
		by      principal.Principal
		host    id.Host
		refused string
	}{
		"a member":                {member, made.Host.ID, "role_required"},
		"another team":            {stranger, made.Host.ID, "host_not_found"},
		"a key":                   {key, made.Host.ID, "session_required"},
		"an owner, regular host":  {owner, f.Hosts[0], "host_not_found"},
		"an admin, no such host":  {f.admin, id.NewHost(), "host_not_found"},
		"anonymous, no such host": {principal.Principal{Kind: principal.KindAnonymous}, id.NewHost(), "host_not_found"},
	} {
		for what, err := range map[string]error{
			"update":  second(f.hosts.Update(ctx, c.by, c.host, host.Update{Name: ptr("x")})),
			"drain":   second(f.hosts.Drain(ctx, c.by, c.host, nil)),
			"undrain": second(f.hosts.Undrain(ctx, c.by, c.host)),
			"preview": second(f.hosts.Preview(ctx, c.by, c.host, page.Request{Limit: 1})),
			"delete":  f.hosts.Delete(ctx, c.by, c.host, true),
		} {
			if !errs.Is(err, c.refused) {
				t.Errorf("%s by %s: %v, want %s", what, name, err, c.refused)
			}
		}
	}
	for name, u := range map[string]host.Update{
		"an empty name":   {Name: ptr(" ")},
		"a long name":     {Name: ptr(strings.Repeat("ä", 101))},
		"control letters": {Provider: ptr("a\x00b")},
		"an empty label":  {Labels: map[string]string{"": "x"}},
	} {
		if _, err := f.hosts.Update(ctx, owner, made.Host.ID, u); !errs.Is(err, "invalid_request") {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := f.hosts.Update(ctx, owner, made.Host.ID, host.Update{Name: ptr(strings.Repeat("ä", 100)), AvailabilityZone: ptr("z")})
	if err != nil || got.Name != strings.Repeat("ä", 100) || got.AvailabilityZone != "z" || got.Labels["a"] != "b" {
		t.Errorf("%+v (%v)", got, err)
	}
	if got, err = f.hosts.Update(ctx, owner, made.Host.ID, host.Update{Labels: map[string]string{}}); err != nil || len(got.Labels) != 0 {
		t.Errorf("%+v (%v)", got, err)
	}
	if got, err = f.hosts.Update(ctx, owner, made.Host.ID, host.Update{}); err != nil || got.AvailabilityZone != "z" {
		t.Errorf("%+v (%v)", got, err)
	}
	if n := f.count(t, `SELECT count(*) FROM audit_logs WHERE resource_type = 'host' AND action = 'update'`); n != 2 {
		t.Errorf("%d entries", n)
	}
	if err := f.hosts.Delete(ctx, owner, made.Host.ID, false); err != nil {
		t.Errorf("its owner: %v", err)
	}
}
