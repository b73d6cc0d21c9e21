package app

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/team/teamtest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/pg/pgtest"
)

// TestP1_TheStoreRefusesWhoMustNotHaveIt: over the agents' own listener, each with
// its certificate: another host's address, another team's artifact, an address
// after its time, and a host whose access was just taken away.
func TestP1_TheStoreRefusesWhoMustNotHaveIt(t *testing.T) {
	ctx := t.Context()
	database := pgtest.Empty(t)
	_, words := keyring.NewSecret()
	s := start(t, database, words, t.TempDir())
	const email, password = "root@example.org", "a long password"
	if err := EnsureAdmin(ctx, database, words, email, password); err != nil {
		t.Fatal(err)
	}
	var login struct {
		Token string `json:"token"`
	}
	s.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": email, "password": password}, http.StatusOK, &login)
	pool, err := pg.Open(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	join := func() (*fakeHost, id.Host) {
		var made struct {
			Token string `json:"registration_token"`
			CA    string `json:"ca_sha256"`
		}
		s.do(t, http.MethodPost, "/v1/hosts", login.Token, map[string]string{"type": "regular"}, http.StatusCreated, &made)
		h := newFakeHost(t, s.agentURL, made.CA)
		h.join(t, made.Token)
		known, err := id.ParseHost(h.creds.HostID)
		if err != nil {
			t.Fatal(err)
		}
		return h, known
	}
	a, idA := join()
	b, idB := join()
	c, idC := join()
	team, _ := teamtest.New(t, pool)
	other, _ := teamtest.New(t, pool)
	if _, err := pool.Exec(ctx, `UPDATE hosts SET type = 'byoc', team_id = $1 WHERE id = $2`, other, idC); err != nil {
		t.Fatal(err)
	}

	secret, err := keyring.ParseSecret(words)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := transfer.NewSigner(secret.Derive("artifact-grants"), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	rows := artifactpg.New(pool)
	service := artifact.NewService(rows, signer, secret, s.agentURL)
	made := artifact.New{ID: id.NewArtifact(), Team: team, Kind: artifact.KindState, Host: idA}
	if err := pg.InTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error { return artifactpg.Begin(ctx, tx, made) }); err != nil {
		t.Fatal(err)
	}
	to, err := service.Source(ctx, made.ID, idA, artifact.Write)
	if err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(memory, bytes.Repeat([]byte("what nobody else may read "), 400000), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(h *fakeHost) error {
		_, err := transfer.Upload(ctx, transfer.Clients{Control: h.client}, to, []transfer.File{{Name: "memory", Path: memory}}, content.MediaTypeState, transfer.Options{})
		return err
	}
	if err := put(b); !errs.Is(err, "wrong_host") {
		t.Errorf("a host puts what another one was told to: %v", err)
	}
	if err := put(a); err != nil {
		t.Fatal(err)
	}
	fetch := func(h *fakeHost, from content.Source) error {
		want := transfer.Want{MediaType: content.MediaTypeState}
		return transfer.Fetch(ctx, transfer.Clients{Control: h.client}, from, want, transfer.At("memory", filepath.Join(t.TempDir(), "memory")), transfer.Options{})
	}
	refused := func(what, reason string, h *fakeHost, from content.Source) {
		t.Helper()
		if err := fetch(h, from); !errs.Is(err, reason) {
			t.Errorf("%s: %v, want %s", what, err, reason)
		}
	}
	forA, err := service.Source(ctx, made.ID, idA, artifact.Read)
	if err != nil {
		t.Fatal(err)
	}
	forB, err := service.Source(ctx, made.ID, idB, artifact.Read)
	if err != nil {
		t.Fatal(err)
	}
	if err := fetch(b, forB); err != nil {
		t.Errorf("a host that may have it: %v", err)
	}
	refused("another host's address", "wrong_host", b, forA)
	if _, err := service.Source(ctx, made.ID, idC, artifact.Read); !errs.Is(err, "no_such_artifact") {
		t.Errorf("a team's own host is given another team's: %v", err)
	}
	forged := content.Source{URL: signer.ReadURL(s.agentURL, made.ID, idC, time.Hour), Key: forA.Key}
	refused("another team's artifact, with a good address", "no_such_artifact", c, forged)
	late := content.Source{URL: signer.ReadURL(s.agentURL, made.ID, idB, -time.Second), Key: forB.Key}
	refused("an address after its time", "grant_expired", b, late)
	refused("an address to put under", "wrong_grant", a, to)
	if _, err := pool.Exec(ctx, `UPDATE host_refresh_tokens SET revoked_at = now() WHERE host_id = $1`, idB); err != nil {
		t.Fatal(err)
	}
	refused("a host whose access was taken away, with an address from before", "no_such_artifact", b, forB)
	if _, err := pool.Exec(ctx, `UPDATE hosts SET status = 'deleted', deleted_at = now() WHERE id = $1`, idA); err != nil {
		t.Fatal(err)
	}
	refused("a deleted host", "no_such_artifact", a, forA)
}
