package artifactpg_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

func (w *world) service() *artifact.Service {
	w.t.Helper()
	secret, _ := keyring.NewSecret()
	return w.serviceOf(secret)
}

func (w *world) serviceOf(secret keyring.Secret) *artifact.Service {
	w.t.Helper()
	signer, err := transfer.NewSigner(secret.Derive("grants"), clock.System{})
	if err != nil {
		w.t.Fatal(err)
	}
	return artifact.NewService(w.rows, signer, secret, "https://x/")
}

// ready is an artifact of the team's that host has put there.
func (w *world) ready(team id.Team, kind artifact.Kind, host id.Host) id.Artifact {
	w.t.Helper()
	a := id.NewArtifact()
	err := w.begin(context.Background(), artifact.New{ID: a, Team: team, Kind: kind, Host: host})
	if err == nil {
		err = w.upload(context.Background(), a, host, whole, []byte("of "+a.String()))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// TestP1_WhoMayHaveWhat: a host gets what is for it and nothing else; what was
// refused as an address is refused by the ledger too, and at once when its
// credentials are void.
func TestP1_WhoMayHaveWhat(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	other, _ := teamtest.New(t, w.pool)
	regular, own, others, deleted, revoked := w.host(id.PlatformTeamID), w.host(w.team), w.host(other), w.host(id.PlatformTeamID), w.host(id.PlatformTeamID)
	s := w.service()
	platform := w.ready(id.PlatformTeamID, artifact.KindImage, regular)
	state := w.ready(w.team, artifact.KindState, regular)
	image := w.ready(w.team, artifact.KindImage, regular)
	ownState := w.ready(w.team, artifact.KindState, own)
	ownImage := w.ready(w.team, artifact.KindImage, own)
	ownEngine := w.ready(w.team, artifact.KindEngine, own)
	w.exec(`UPDATE hosts SET status = 'deleted', deleted_at = now() WHERE id = $1`, deleted)
	w.exec(`UPDATE host_refresh_tokens SET revoked_at = now() WHERE host_id = $1`, revoked)
	all := []id.Artifact{platform, state, image, ownState, ownImage, ownEngine}
	for _, test := range []struct {
		name string
		host id.Host
		may  []id.Artifact
	}{
		{"the control plane", id.Host{}, all},
		{"a regular host", regular, []id.Artifact{platform, state, image, ownState}},
		{"the team's own host", own, all},
		{"another team's host", others, []id.Artifact{platform}},
		{"a deleted host", deleted, nil},
		{"a host whose credentials are void", revoked, nil},
		{"a host nobody knows", id.NewHost(), nil},
	} {
		var may []id.Artifact
		for _, a := range all {
			_, err := s.Source(ctx, a, test.host, artifact.Read)
			_, ledger := w.rows.Ready(ctx, a, test.host)
			if (err == nil) != (ledger == nil) {
				t.Errorf("%s: the address says %v, the ledger %v", test.name, err, ledger)
			}
			if err == nil {
				may = append(may, a)
			} else if !errs.Is(err, "no_such_artifact") || !errs.Is(ledger, "no_such_artifact") {
				t.Errorf("%s: %v, %v", test.name, err, ledger)
			}
		}
		if diff := cmp.Diff(fmt.Sprint(test.may), fmt.Sprint(may)); diff != "" {
			t.Errorf("%s:\n%s", test.name, diff)
		}
	}
}

// TestP1_WhoMayPutWhat: an upload is one host's, and nobody's when it is over.
func TestP1_WhoMayPutWhat(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	mine, another := w.host(id.PlatformTeamID), w.host(id.PlatformTeamID)
	s := w.service()
	a := id.NewArtifact()
	if err := w.begin(ctx, artifact.New{ID: a, Team: w.team, Kind: artifact.KindState, Host: mine}); err != nil {
		t.Fatal(err)
	}
	chunk := []byte("a chunk")
	refused := func(what string, host id.Host) {
		t.Helper()
		_, address := s.Source(ctx, a, host, artifact.Write)
		_, upload := w.rows.Upload(ctx, a, host)
		_, claim := w.rows.Claim(ctx, a, host, []transfer.Piece{{Digest: content.DigestOf(chunk), Size: int64(len(chunk))}})
		_, _, wanted := w.rows.Wanted(ctx, a, host, content.DigestOf(chunk))
		_, name := w.rows.Name(ctx, a, host, content.DigestOf(chunk))
		complete := w.rows.Complete(ctx, a, host, manifestOf(chunk), content.DigestOf(chunk))
		for i, err := range []error{address, upload, claim, wanted, name, complete} {
			if !errs.Is(err, "upload_gone") {
				t.Errorf("%s, call %d: %v", what, i, err)
			}
		}
	}
	refused("another host", another)
	refused("the control plane", id.Host{})
	if _, err := s.Source(ctx, a, mine, artifact.Write); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Source(ctx, a, mine, artifact.Read); !errs.Is(err, "no_such_artifact") {
		t.Errorf("half of it is read: %v", err)
	}
	// What was not announced, or not put, does not count.
	if _, _, err := w.rows.Wanted(ctx, a, mine, content.DigestOf(chunk)); !errs.Is(err, "chunk_not_claimed") {
		t.Errorf("an unannounced chunk: %v", err)
	}
	m := manifestOf(chunk)
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.rows.Name(ctx, a, mine, content.DigestOf(raw)); err != nil {
		t.Fatal(err)
	}
	if err := w.rows.Complete(ctx, a, mine, m, content.DigestOf(raw)); !errs.Is(err, "chunks_missing") {
		t.Errorf("complete without its chunk: %v", err)
	}
	w.exec(`UPDATE host_refresh_tokens SET revoked_at = now() WHERE host_id = $1`, mine)
	refused("a host whose credentials are void", mine)
	w.exec(`UPDATE host_refresh_tokens SET revoked_at = NULL WHERE host_id = $1`, mine)
	if err := w.upload(ctx, a, mine, whole, chunk); err != nil {
		t.Fatal(err)
	}
	if err := w.rows.Complete(ctx, a, mine, m, content.DigestOf(raw)); err != nil {
		t.Errorf("said again: %v", err)
	}
	if err := w.rows.Complete(ctx, a, another, m, content.DigestOf(raw)); !errs.Is(err, "upload_gone") {
		t.Errorf("said again by another: %v", err)
	}
}

// TestS16_EachTeamHasAKeyOfItsOwn: made once, whoever asks first, and readable
// under the platform's secret alone.
// The key of a team that was deleted goes once nothing is left that it opens.
func TestS16_AKeyGoesWithItsTeam(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	h := w.host(id.PlatformTeamID)
	a := w.ready(w.team, artifact.KindState, h)
	if _, err := w.service().Source(ctx, a, h, artifact.Read); err != nil {
		t.Fatal(err)
	}
	keys := func() int { return w.count(`SELECT count(*) FROM team_keys`) }
	w.settle()
	w.exec(`UPDATE teams SET deleted_at = now() WHERE id = $1`, w.team)
	w.settle()
	if keys() != 1 {
		t.Fatal("the key of what is still there is gone")
	}
	if err := w.drop(ctx, a); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if n := w.blobsOf(); keys() != 0 || n != 0 {
		t.Errorf("%d keys and %d blobs are left of a deleted team", keys(), n)
	}
}

func TestS16_EachTeamHasAKeyOfItsOwn(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	secret, _ := keyring.NewSecret()
	h := w.host(id.PlatformTeamID)
	a := w.ready(w.team, artifact.KindState, h)
	var mu sync.Mutex
	keys := map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		s := w.serviceOf(secret)
		wg.Go(func() {
			src, err := s.Source(ctx, a, h, artifact.Read)
			if err != nil || len(src.Key) != content.ContentKeyBytes {
				t.Errorf("key of %d bytes, %v", len(src.Key), err)
			}
			mu.Lock()
			defer mu.Unlock()
			keys[string(src.Key)] = true
		})
	}
	wg.Wait()
	if len(keys) != 1 {
		t.Errorf("%d servers-at-once made as many keys", len(keys))
	}
	other, _ := teamtest.New(t, w.pool)
	src, err := w.serviceOf(secret).Source(ctx, w.ready(other, artifact.KindState, h), h, artifact.Read)
	if err != nil || keys[string(src.Key)] {
		t.Errorf("another team's key is the same (%v)", err)
	}
	src, err = w.serviceOf(secret).Source(ctx, w.ready(id.PlatformTeamID, artifact.KindImage, h), h, artifact.Read)
	if err != nil || len(src.Key) != 0 {
		t.Errorf("the platform's is secret (%v)", err)
	}
	if _, err := w.service().Source(ctx, a, h, artifact.Read); !errs.Is(err, "wrong_secret") {
		t.Errorf("under another secret: %v", err)
	}
	var sealed []byte
	if err := w.pool.QueryRow(ctx, `SELECT sealed FROM team_keys WHERE team_id = $1`, w.team).Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	w.exec(`UPDATE team_keys SET sealed = $1 WHERE team_id = $2`, sealed, other)
	if _, err := w.serviceOf(secret).Source(ctx, w.ready(other, artifact.KindState, h), h, artifact.Read); err == nil {
		t.Error("a key opens in another team's row")
	}
}
