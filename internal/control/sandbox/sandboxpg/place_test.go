package sandboxpg_test

import (
	"context"
	"slices"
	"testing"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestH13_LabelsAndArchitectureDecide(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	w.AddHost(8, 8192)
	w.AddHost(8, 8192)
	plain, zoned, arm := w.Hosts[0], w.Hosts[1], w.Hosts[2]
	exec(t, w, `UPDATE hosts SET arch = 'amd64'`)
	exec(t, w, `UPDATE hosts SET labels = '{"zone": "a", "disk": "nvme"}' WHERE id = $1`, zoned)
	exec(t, w, `UPDATE hosts SET labels = '{"zone": "a"}', arch = 'arm64' WHERE id = $1`, arm)
	exec(t, w, `UPDATE templates SET arch = 'amd64'`)
	s := w.Serve(sandbox.Config{})
	req := request()
	for range 4 {
		if x := create(t, w, s, req); x.Host.ID == arm {
			t.Error("on a host of another architecture")
		}
		req.HostLabels = map[string]string{"zone": "a"}
		if x := create(t, w, s, req); x.Host.ID != zoned {
			t.Errorf("a label counted for nothing: %s, not %s nor %s", x.Host.ID, plain, arm)
		}
		req.HostLabels = nil
	}
	req.HostLabels = map[string]string{"zone": "b"}
	_, err := s.Service.Create(context.Background(), w.User(), req)
	if !errs.Is(err, "no_capacity") {
		t.Fatalf("nothing has the label, and it says %v", err)
	}
	counts, _ := errs.As(err).Details["hosts"].(map[string]int)
	if counts["labels"] != 2 || counts["arch"] != 1 || len(counts) != 2 {
		t.Errorf("explained by %v", errs.As(err).Details)
	}
	many := request()
	many.HostLabels = map[string]string{}
	for range 17 {
		many.HostLabels[id.NewHost().String()] = "x"
	}
	if _, err := s.Service.Create(context.Background(), w.User(), many); errs.CodeOf(err) != errs.CodeInvalid {
		t.Errorf("seventeen labels: %v", err)
	}
}

func TestH13_ACustomersTeamIsOnItsOwnHostsAndOnlyThere(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192)
	own := w.AddHost(8, 8192)
	customer := w.NewTeam()
	exec(t, w, `UPDATE teams SET is_byoc = true WHERE id = $1`, customer)
	exec(t, w, `UPDATE hosts SET type = 'byoc', team_id = $1 WHERE id = $2`, customer, own)
	s := w.Serve(sandbox.Config{})
	for range 3 {
		r, err := s.Service.Create(context.Background(), w.UserOf(customer), request())
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, w, r.Sandbox); got.Host.ID != own {
			t.Error("a customer's sandbox is on a host of the platform")
		}
		if x := create(t, w, s, request()); x.Host.ID == own {
			t.Error("another team's sandbox is on the customer's host")
		}
	}
	exec(t, w, `UPDATE hosts SET status = 'unreachable' WHERE id = $1`, own)
	if _, err := s.Service.Create(context.Background(), w.UserOf(customer), request()); !errs.Is(err, "no_capacity") {
		t.Errorf("with its own host away: %v", err)
	}
}

// An image on one of three hosts: it is found there first, and all creates
// succeed where there is room.
func TestSC04_WhereTheImageLiesIsAPreferenceAndNoMore(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 64, 10*1024)
	w.AddHost(64, 10*1024)
	w.AddHost(64, 10*1024)
	w.Scheduler = scheduler.BinPackScheduler{Overcommit: sandboxtest.Overcommit()}
	s := w.Serve(sandbox.Config{})
	var digest string
	if err := w.Pool.QueryRow(context.Background(), `SELECT image_digest FROM templates`).Scan(&digest); err != nil {
		t.Fatal(err)
	}
	with := w.Hosts[2]
	exec(t, w, `INSERT INTO host_images (host_id, image_digest) VALUES ($1, $2)`, with, digest)
	req := request()
	req.MemoryMB = p(int64(1024))
	got := map[id.Host]int{}
	for i := range 30 {
		x := create(t, w, s, req)
		got[x.Host.ID]++
		if i < 10 && x.Host.ID != with {
			t.Errorf("create %d went where the image is not", i)
		}
	}
	for _, h := range w.Hosts {
		if got[h] != 10 {
			t.Errorf("a host has %d of 30", got[h])
		}
	}
	if n := tally(t, w, `host_images`); n != 3 {
		t.Errorf("%d hosts are known to have the image", n)
	}
}

func TestH13_TheExplanationIsBounded(t *testing.T) {
	w := sandboxtest.NewWorld(t, pgtest.New(t), 1, 64)
	for range 40 {
		w.AddHost(1, 64)
	}
	s := w.Serve(sandbox.Config{})
	admin := w.User()
	admin.IsAdmin = true
	_, err := s.Service.Create(context.Background(), admin, request())
	why, _ := errs.As(err).Details["hosts"].([]scheduler.Refusal)
	if !errs.Is(err, "no_capacity") || len(why) == 0 || len(why) > 20 {
		t.Fatalf("%v with %d refusals", err, len(why))
	}
	if slices.ContainsFunc(why, func(r scheduler.Refusal) bool { return r.Reason != "memory" || r.Message == "" || r.Host == "" }) {
		t.Errorf("refusals %+v", why)
	}
	_, err = s.Service.Create(context.Background(), w.User(), request())
	if counts, _ := errs.As(err).Details["hosts"].(map[string]int); counts["memory"] != 41 {
		t.Errorf("a member sees %v", errs.As(err).Details)
	}
}
