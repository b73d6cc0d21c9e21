package sandboxpg_test

import (
	"context"
	"testing"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Whoever waits for the first sandbox of a template on a host sees how far its
// image is; later ones do not ask, and a transfer that fails is the start's to try.
func TestP1_AnImageThatComesIsShown(t *testing.T) {
	w, s := travellers(t)
	exec(t, w, `DELETE FROM hosts WHERE id = $1`, w.Hosts[1])
	image := id.NewArtifact()
	exec(t, w, `INSERT INTO artifacts (id, team_id, kind, status, manifest_digest, ready_at) VALUES ($1, $2, 'image', 'ready', 'x', now())`, image, id.PlatformTeamID)
	seen := ""
	broken := false
	w.Agents.After = func(ctx context.Context, call string, _ id.Sandbox) error {
		if call == "fetch" {
			if err := w.Pool.QueryRow(ctx, `SELECT coalesce(max(progress->>'what'), '') FROM operations WHERE status = 'open'`).Scan(&seen); err != nil {
				t.Error(err)
			}
			if broken {
				return errs.Unavailable("store_unavailable", "Not now.")
			}
		}
		return ctx.Err()
	}
	for i, want := range []int{0, 1, 1, 2} {
		switch i {
		case 1: // it is in the store now, and new to the host
			exec(t, w, `UPDATE templates SET artifact_id = $1`, image)
			exec(t, w, `DELETE FROM host_images`)
		case 3:
			exec(t, w, `DELETE FROM host_images`)
			broken = true
		}
		if x := create(t, w, s, request()); x.Status != sandbox.StatusRunning {
			t.Errorf("start %d: %s", i, x.Status)
		}
		if n := w.Agents.Transfers("image"); n != want {
			t.Errorf("start %d: %d images were asked for, want %d", i, n, want)
		}
	}
	if seen != "image" {
		t.Errorf("who waited saw %q", seen)
	}
}
