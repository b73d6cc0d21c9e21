package browser

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"skerry.dev/skerry/internal/control/oauth/oauthtest"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/instance"
)

var (
	sharedOnce sync.Once
	shared     *world
	sharedErr  error
)

// world is the installation that all tests share, and the browser in front of it.
type world struct {
	*instance.Instance
	email, password string // the platform admin's
	stage           *stage
	issuer          *oauthtest.Server // of identities
	stopIssuer      func()
	rack            *rack // another machine, when there is one
}

// skerry returns the world, started on first use.
func skerry(t *testing.T) *world {
	t.Helper()
	testkit.Root(t)
	if _, err := exec.LookPath("node"); err != nil {
		testkit.Missing(t, "chromium", "no Node.js to drive it")
	}
	if _, err := exec.LookPath("chromium"); err != nil {
		testkit.Missing(t, "chromium", "run tools/deps.sh test")
	}
	sharedOnce.Do(func() { shared, sharedErr = begin() })
	if sharedErr != nil {
		t.Fatalf("begin: %v", sharedErr)
	}
	return shared
}

func begin() (*world, error) {
	issuer, stopIssuer, err := oauthtest.Start()
	if err != nil {
		return nil, err
	}
	in, err := instance.New(context.Background(),
		"SKERRY_AUTH_LIMIT=0",                                                // one address is everybody here
		"SKERRY_GITHUB_CLIENT_ID=tests", "SKERRY_GITHUB_CLIENT_SECRET=tests", // there is a button; nobody presses it
		"SKERRY_OIDC_ISSUER="+issuer.URL, "SKERRY_OIDC_CLIENT_ID="+oauthtest.Client, "SKERRY_OIDC_CLIENT_SECRET="+oauthtest.Secret, "SKERRY_OIDC_NAME=Company",
	)
	if in == nil {
		stopIssuer()
		return nil, err
	}
	w := &world{Instance: in, issuer: issuer, stopIssuer: stopIssuer}
	if err == nil {
		w.email, w.password, err = admin(in.Data)
	}
	if err == nil {
		w.stage, err = newStage(nil, strings.TrimPrefix(in.URL, "http://"), strings.TrimPrefix(issuer.URL, "http://"))
	}
	if err != nil {
		return nil, errors.Join(err, w.end())
	}
	return w, nil
}

// admin reads who may do everything.
func admin(data string) (email, password string, err error) {
	file, err := os.Open(filepath.Join(data, "credentials.env"))
	if err != nil {
		return "", "", err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		switch value = strings.Trim(value, `"'`); name {
		case "SKERRY_ADMIN_EMAIL":
			email = value
		case "SKERRY_ADMIN_PASSWORD":
			password = value
		}
	}
	if email == "" || password == "" {
		return "", "", errors.New("the installation names no admin")
	}
	return email, password, nil
}

func (w *world) end() error {
	var err error
	if current != nil {
		err = current.close()
	}
	if w.stage != nil {
		err = errors.Join(err, w.stage.close())
	}
	err = errors.Join(err, w.clear(), w.Purge())
	w.stopIssuer()
	return err
}

// alone plays a script while no other runs: it measures, or cuts lines.
func alone(t *testing.T, script string) {
	t.Helper()
	skerry(t).play(t, script)
}

// beside plays a script while others run.
func beside(t *testing.T, script string) {
	t.Helper()
	t.Parallel()
	skerry(t).play(t, script)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if err := shared.end(); err != nil {
			fmt.Fprintln(os.Stderr, "end:", err)
			code = 1
		}
	}
	os.Exit(code)
}
