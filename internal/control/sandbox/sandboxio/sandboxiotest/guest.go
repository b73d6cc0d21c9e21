// Package sandboxiotest is what the tests of sandboxio and its HTTP side share:
// the real guest daemon on loopback, and a way to it that breaks on demand.
package sandboxiotest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// Token is the access token that the guests of tests demand.
const Token = "skerry-test-token"

const (
	initSecret = "a-secret-of-tests"
	// UserUID is the account "user" of a test's guest.
	UserUID = 54321
)

// Program builds the guest daemon once for all tests of a package.
type Program struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Path builds the daemon when that was not done yet.
func (p *Program) Path() (string, error) {
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "skerry-sandboxio-"); p.err != nil {
			return
		}
		if p.err = os.Chmod(p.dir, 0o755); p.err != nil {
			return
		}
		p.path = filepath.Join(p.dir, "skerry-guest")
		cmd := exec.Command("go", "build", "-o", p.path, "skerry.dev/skerry/cmd/skerry-guest")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("building the guest daemon: %w: %s", err, out)
		}
	})
	return p.path, p.err
}

// Remove deletes the program; for the end of TestMain.
func (p *Program) Remove() {
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// Guest is a running daemon.
type Guest struct {
	Addr string
	Home string // of user
	PID  int
}

// Start runs a configured daemon until the test ends.
func (p *Program) Start(t testing.TB) *Guest {
	t.Helper()
	testkit.Root(t)
	path, err := p.Path()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
	g := &Guest{Home: filepath.Join(dir, "home")}
	must(t, os.Mkdir(g.Home, 0o755))
	must(t, os.Chown(g.Home, UserUID, UserUID))
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	must(t, os.WriteFile(passwd, fmt.Appendf(nil, "root:x:0:0::/root:/bin/bash\nuser:x:%d:%d::%s:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/sh\n", UserUID, UserUID, g.Home), 0o644))
	must(t, os.WriteFile(group, fmt.Appendf(nil, "root:x:0:\nuser:x:%d:\n", UserUID), 0o644))
	doc, err := json.Marshal(map[string]any{
		"boot":   map[string]any{"init_secret": initSecret, "memory_reserve_percent": -1},
		"listen": "127.0.0.1:0", "passwd": passwd, "group": group,
	})
	must(t, err)
	cmd := exec.Command(path, "serve")
	cmd.Stdin = bytes.NewReader(doc)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	g.PID = cmd.Process.Pid
	addr, logged := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(logged)
		found := regexp.MustCompile(`addr=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := found.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case addr <- m[1]:
				default:
				}
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		<-logged
		if err := cmd.Wait(); err != nil {
			t.Errorf("the guest daemon ended with %v", err)
		}
	})
	select {
	case g.Addr = <-addr:
	case <-logged:
		t.Fatal("the guest daemon did not start")
	case <-time.After(20 * time.Second):
		t.Fatal("the guest daemon does not serve")
	}
	body, err := json.Marshal(map[string]any{"accessToken": Token, "envVars": map[string]string{"FROM_SANDBOX": "yes"}})
	must(t, err)
	req, err := http.NewRequest(http.MethodPost, "http://"+g.Addr+"/init", bytes.NewReader(body))
	must(t, err)
	req.Header.Set("X-Skerry-Init", initSecret)
	link := NewLink(g.Addr)
	defer link.Close()
	res, err := link.RoundTrip(req)
	must(t, err)
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Fatalf("init answered %s", res.Status)
	}
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
