// Package e2b drives the whole product with E2B's published JavaScript client,
// as it comes from the registry: real sandboxes, plain HTTP, and nothing of the
// client changed but what its environment says.
package e2b

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/instance"
)

// installed returns the directory with the pinned client in its node_modules.
func installed(t *testing.T, root string) string {
	t.Helper()
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			testkit.Missing(t, "node", err.Error())
		}
	}
	dir := filepath.Join(root, ".cache", "e2b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var wanted []byte
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o644); err != nil {
			t.Fatal(err)
		}
		wanted = append(wanted, raw...)
	}
	stamp := filepath.Join(dir, "installed")
	if have, err := os.ReadFile(stamp); err == nil && bytes.Equal(have, wanted) {
		return dir
	}
	cmd := exec.CommandContext(t.Context(), "npm", "ci", "--loglevel=error")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		testkit.Missing(t, "npm", "cannot fetch the client: "+err.Error()+"\n"+string(out))
	}
	if err := os.WriteFile(stamp, wanted, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// stranger makes a key of another team.
func stranger(t *testing.T, in *instance.Instance) string {
	t.Helper()
	call := func(path, token string, body map[string]string, into any) {
		t.Helper()
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, in.URL+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			t.Fatalf("%s: %s", path, res.Status)
		}
		if err := json.NewDecoder(res.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	var session struct {
		Token string `json:"token"`
	}
	call("/v1/auth/signup", "", map[string]string{"email": "stranger@example.org", "password": "a long password", "name": "S"}, &session)
	var key struct {
		Key string `json:"key"`
	}
	call("/v1/api-keys", session.Token, map[string]string{"name": "k"}, &key)
	return key.Key
}

// asTheirs is a key as clients that check the form want it.
func asTheirs(key string) string { return "e2b_" + strings.TrimPrefix(key, "skerry_") }

func TestS11_TheirPublishedClientRunsUnchanged(t *testing.T) {
	testkit.Root(t)
	in, err := instance.New(t.Context(), "SKERRY_SIGNUP=open")
	if in != nil {
		t.Cleanup(func() {
			if err := in.Purge(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	modules, other := installed(t, in.Root), stranger(t, in)
	for _, name := range []string{
		"e2b",    // speaks the second version of create and connect
		"e2b-v1", // the first
	} {
		t.Run(name, func(t *testing.T) {
			drive(t, "E2B_API_KEY="+asTheirs(in.Key), "E2B_API_URL="+in.URL, "E2B_SANDBOX_URL=http://"+in.Sandboxes,
				"DRIVE_MODULES="+modules, "DRIVE_PACKAGE="+name, "DRIVE_STRANGER="+asTheirs(other))
		})
	}
}

// drive runs the script; each of its steps is a test.
func drive(t *testing.T, settings ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "drive.mjs")
	cmd.Env = append(os.Environ(), settings...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	steps := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var step struct {
			Name, Error string
			MS          int64
		}
		if err := json.Unmarshal(lines.Bytes(), &step); err != nil {
			t.Errorf("not a step: %q", lines.Text())
			continue
		}
		steps++
		t.Run(step.Name, func(t *testing.T) {
			t.Logf("%d ms", step.MS)
			if step.Error != "" {
				t.Error(step.Error)
			}
		})
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the client ended with %v\n%s", err, stderr.String())
	}
	if steps < 20 && os.Getenv("DRIVE_ONLY") == "" {
		t.Errorf("only %d steps were taken\n%s", steps, stderr.String())
	}
}
