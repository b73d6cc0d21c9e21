package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/control/app"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/sdk"
)

const (
	rootEmail = "root@example.org"
	password  = "a long password"
)

// shell is one person's command line at a real server.
type shell struct {
	url  string
	home string // of the config file
	env  map[string]string
}

// outcome is what a command left behind.
type outcome struct {
	stdout, stderr string
	code           int
}

// newServer runs a server with an admin on a database of its own.
func newServer(t *testing.T) (url string) {
	t.Helper()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	database := pgtest.Empty(t)
	_, secret := keyring.NewSecret()
	cfg := app.Config{DatabaseURL: database, Secret: secret, Listen: free(), AgentListen: free(), SandboxListen: free(), Store: t.TempDir()}.Defaults(t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	testkit.Eventually(t, 30*time.Second, "the server is ready", func() bool {
		answer, err := http.Get(cfg.URL + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	})
	if err := app.EnsureAdmin(t.Context(), database, secret, rootEmail, password); err != nil {
		t.Fatal(err)
	}
	return cfg.URL
}

func newShell(t *testing.T, url string) *shell {
	t.Helper()
	return &shell{url: url, home: t.TempDir(), env: map[string]string{}}
}

func (s *shell) config() string { return filepath.Join(s.home, "skerry", "config.json") }

// at runs a command with these ends; it is what main does.
func (s *shell) at(t *testing.T, stdin *os.File, stdout, stderr io.Writer, args ...string) int {
	t.Helper()
	e := &Env{
		Context: t.Context(), Stdin: stdin, Stdout: stdout, Stderr: stderr, Version: "test", ConfigFile: s.config(),
		Getenv: func(name string) string { return s.env[name] },
	}
	var program struct {
		Globals
		Commands
		Admin AdminCommands `cmd:""`
	}
	parser, err := kong.New(&program, kong.Exit(func(int) { t.Error("the parser exits") }))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(append(args, "--url", s.url))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return ExitUsage
	}
	return Report(stderr, parsed.Run(e, &program.Globals))
}

func (s *shell) run(t *testing.T, args ...string) outcome {
	t.Helper()
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var stdout, stderr bytes.Buffer
	code := s.at(t, stdin, &stdout, &stderr, args...)
	return outcome{stdout.String(), stderr.String(), code}
}

// must runs a line that succeeds.
func (s *shell) must(t *testing.T, args ...string) string {
	t.Helper()
	o := s.run(t, args...)
	if o.code != 0 {
		t.Fatalf("skerry %s: exit code %d: %s", strings.Join(args, " "), o.code, o.stderr)
	}
	return o.stdout
}

// fails runs a line that does not.
func (s *shell) fails(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	if o := s.run(t, args...); o.code != code || !strings.Contains(o.stderr, says) {
		t.Errorf("skerry %s: exit code %d, want %d with %q: %s", strings.Join(args, " "), o.code, code, says, o.stderr)
	}
}

// login logs in with a password, which the shell then forgets.
func (s *shell) login(t *testing.T, email string) {
	t.Helper()
	s.env["SKERRY_PASSWORD"] = password
	s.must(t, "login", "--email", email)
	delete(s.env, "SKERRY_PASSWORD")
}

func (s *shell) kept(t *testing.T) (k kept) {
	t.Helper()
	raw, err := os.ReadFile(s.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &k); err != nil {
		t.Fatal(err)
	}
	return k
}

func (s *shell) keep(t *testing.T, k kept) {
	t.Helper()
	if err := (&Env{ConfigFile: s.config()}).keep(k); err != nil {
		t.Fatal(err)
	}
}

// stale makes the kept token one that has just ended.
func (s *shell) stale(t *testing.T) kept {
	t.Helper()
	k := s.kept(t)
	k.ExpiresAt = time.Now().Add(-time.Second)
	s.keep(t, k)
	return k
}

// call calls the API as whoever the shell is logged in as.
func (s *shell) call(t *testing.T, method, path string, body any, into any) int {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if _, err := os.Stat(s.config()); err == nil {
		r.Header.Set("Authorization", "Bearer "+s.kept(t).Token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if into != nil {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
	return answer.StatusCode
}

func (s *shell) signup(t *testing.T, email, name string) {
	t.Helper()
	if status := s.call(t, http.MethodPost, "/v1/auth/signup", map[string]string{"email": email, "password": password, "name": name}, nil); status != http.StatusCreated {
		t.Fatalf("sign-up: %d", status)
	}
}

func (s *shell) sessions(t *testing.T) int {
	t.Helper()
	var list struct{ Items []any }
	s.call(t, http.MethodGet, "/v1/me/sessions", nil, &list)
	return len(list.Items)
}

func TestA13_ALoginIsKeptAndGoesOn(t *testing.T) {
	url := newServer(t)
	s := newShell(t, url)
	s.fails(t, exitNotAllowed, "skerry login", "key", "list")
	s.fails(t, ExitUsage, "no terminal", "login")
	s.fails(t, ExitUsage, "SKERRY_PASSWORD", "login", "--email", rootEmail)
	s.env["SKERRY_PASSWORD"] = "another password"
	s.fails(t, exitNotAllowed, "invalid_credentials", "login", "--email", rootEmail)

	s.login(t, rootEmail)
	info, err := os.Stat(s.config())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the session lies in a file of mode %v, %v", info.Mode(), err)
	}
	s.must(t, "key", "list")
	s.must(t, "sandbox", "list") // no key is needed either
	if n := s.sessions(t); n != 1 {
		t.Errorf("%d sessions after a login, want 1", n)
	}

	t.Run("when the token ends", func(t *testing.T) {
		before := s.stale(t)
		s.must(t, "key", "list")
		if now := s.kept(t); now.Refresh == before.Refresh || !now.fresh() {
			t.Errorf("kept %+v", now)
		}
	})
	t.Run("after a death before the new token was kept", func(t *testing.T) {
		before := s.stale(t)
		s.must(t, "key", "list")
		s.keep(t, before)
		s.must(t, "key", "list")
	})
	t.Run("in many programs at once", func(t *testing.T) {
		s.stale(t)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if o := s.run(t, "key", "list"); o.code != 0 {
					t.Errorf("exit code %d: %s", o.code, o.stderr)
				}
			})
		}
		all.Wait()
	})
	t.Run("a second login ends the first", func(t *testing.T) {
		former := s.kept(t)
		s.login(t, rootEmail)
		client, err := sdk.New(url, sdk.WithToken(former.Token))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Me(t.Context()); err == nil {
			t.Error("the former session goes on")
		}
		if n := s.sessions(t); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
	})
	t.Run("under another address it is refused at once", func(t *testing.T) {
		other := newShell(t, strings.Replace(url, "127.0.0.1", "localhost", 1))
		other.env["SKERRY_PASSWORD"] = password
		other.fails(t, exitFailed, "SKERRY_URL", "login", "--email", rootEmail)
		if n := s.sessions(t); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
	})
	t.Run("until the server ends it", func(t *testing.T) {
		var list struct{ Items []struct{ ID string } }
		s.call(t, http.MethodGet, "/v1/me/sessions", nil, &list)
		if status := s.call(t, http.MethodDelete, "/v1/me/sessions/"+list.Items[0].ID, nil, nil); status != http.StatusNoContent {
			t.Fatalf("ending it: %d", status)
		}
		s.stale(t)
		s.fails(t, exitNotAllowed, "has ended", "key", "list")
		if _, err := os.Stat(s.config()); err == nil {
			t.Error("what will never work again is kept")
		}
	})
	t.Run("or logout", func(t *testing.T) {
		s.login(t, rootEmail)
		former := s.stale(t)
		s.must(t, "logout")
		if _, err := os.Stat(s.config()); err == nil {
			t.Error("it is still kept")
		}
		client, err := sdk.New(url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Refresh(t.Context(), former.Refresh); !sdk.Is(err, "invalid_refresh_token") {
			t.Errorf("the session goes on: %v", err)
		}
		s.fails(t, exitNotAllowed, "skerry login", "key", "list")
		s.must(t, "logout")
	})
}

// terminal opens a pseudo-terminal and returns the program's end.
func terminal(t *testing.T) *os.File {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return slave
}

// TestA13_LoginInTheBrowser: who has no password, or does not want to type it
// here, approves in a browser.
func TestA13_LoginInTheBrowser(t *testing.T) {
	url := newServer(t)
	browser := newShell(t, url)
	browser.login(t, rootEmail)
	for name, tt := range map[string]struct {
		args    []string
		stdin   func(*testing.T) *os.File
		approve bool
		code    int
	}{
		"on a terminal": {[]string{"login"}, terminal, true, 0},
		"without one":   {[]string{"login", "--device", "-o", "json"}, devNull, true, 0},
		"denied":        {[]string{"login", "--device"}, devNull, false, exitNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShell(t, url)
			shown, says := io.Pipe()
			var stdout bytes.Buffer
			code := make(chan int, 1)
			stdin := tt.stdin(t)
			go func() {
				code <- s.at(t, stdin, &stdout, says, tt.args...)
				says.Close()
			}()
			lines := bufio.NewScanner(shown)
			userCode := ""
			for userCode == "" && lines.Scan() {
				if found := regexp.MustCompile(`^Open (http\S+)/login/device\?code=(\w{4}-\w{4}) `).FindStringSubmatch(lines.Text()); found != nil && found[1] == url {
					userCode = found[2]
				}
			}
			var asked struct {
				Name string `json:"client_name"`
			}
			if browser.call(t, http.MethodGet, "/v1/auth/device/"+userCode, nil, &asked); !strings.HasPrefix(asked.Name, "skerry") {
				t.Errorf("the browser says that %q asks", asked.Name)
			}
			browser.call(t, http.MethodPost, "/v1/auth/device/"+userCode, map[string]bool{"approve": tt.approve}, nil)
			rest, err := io.ReadAll(shown)
			if err != nil {
				t.Error(err)
			}
			if got := <-code; got != tt.code {
				t.Fatalf("exit code %d, want %d: %s", got, tt.code, rest)
			}
			if tt.approve {
				if !strings.Contains(stdout.String(), rootEmail) {
					t.Errorf("says %s", &stdout)
				}
				s.must(t, "key", "list")
				s.must(t, "logout")
			}
		})
	}
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
