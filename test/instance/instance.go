// Package instance runs the whole product on this machine for tests and
// benchmarks, as `skerry up` starts it, and speaks to it from outside: the API
// with a key, and the command line.
package instance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// longVar set to 1 runs every test at its full counts; unset they run at about
// a twentieth.
const longVar = "SKERRY_TEST_LONG"

// Scaled returns full in long runs, short otherwise.
func Scaled(full, short int) int {
	if os.Getenv(longVar) == "1" {
		return full
	}
	return short
}

// Instance is one running Skerry.
type Instance struct {
	Data  string // its data directory
	Root  string // of the checkout
	URL   string
	Key   string
	Token string // the admin's session
	// Sandboxes is the address behind which ports of sandboxes are, whatever the
	// host's name.
	Sandboxes string
	// Metrics and AgentMetrics are where server and agent are watched.
	Metrics, AgentMetrics string

	env  []string
	up   *exec.Cmd
	exit chan error
	log  *os.File
}

// New starts a fresh instance on free ports and a data directory of its own,
// with further settings as NAME=value.
func New(ctx context.Context, settings ...string) (*Instance, error) {
	root, err := Checkout()
	if err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp("", "skerry-e2e-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(data, 0o711); err != nil {
		return nil, err
	}
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	in := &Instance{
		Data: data, Root: root, URL: "http://127.0.0.1:" + strconv.Itoa(ports[0]),
		Sandboxes: "127.0.0.1:" + strconv.Itoa(ports[5]),
		Metrics:   "http://127.0.0.1:" + strconv.Itoa(ports[3]), AgentMetrics: "http://127.0.0.1:" + strconv.Itoa(ports[4]),
	}
	in.env = append(os.Environ(),
		"SKERRY_DATA="+data,
		"SKERRY_LISTEN=127.0.0.1:"+strconv.Itoa(ports[0]),
		"SKERRY_AGENT_LISTEN=127.0.0.1:"+strconv.Itoa(ports[1]),
		"SKERRY_HOST_LISTEN=127.0.0.1:"+strconv.Itoa(ports[2]),
		"SKERRY_SANDBOX_LISTEN="+in.Sandboxes,
		"SKERRY_METRICS_LISTEN=127.0.0.1:"+strconv.Itoa(ports[3]),
		"SKERRY_AGENT_METRICS_LISTEN=127.0.0.1:"+strconv.Itoa(ports[4]),
		"SKERRY_WARM_POOL=off", // what is counted, and what is timed, begins with nothing
	)
	in.env = append(in.env, settings...)
	if err := in.Start(ctx); err != nil {
		return in, err
	}
	return in, nil
}

// Start runs `skerry up` and waits until it says that it is ready.
func (in *Instance) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(in.Data, "up.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	in.log = log
	in.up = exec.Command(filepath.Join(in.Root, "bin", "skerry"), "up")
	in.up.Env, in.up.Dir, in.up.Stdout, in.up.Stderr = in.env, in.Root, log, log
	in.up.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := in.up.Start(); err != nil {
		return err
	}
	in.exit = make(chan error, 1)
	go func(cmd *exec.Cmd, exit chan<- error) { exit <- cmd.Wait() }(in.up, in.exit)

	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	for {
		if in.ready(ctx) {
			return nil
		}
		select {
		case err := <-in.exit:
			return fmt.Errorf("it ended: %v\n%s", err, in.tail())
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w\n%s", ctx.Err(), in.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ready reports whether the API answers, the base template is ready and the
// host is online.
func (in *Instance) ready(ctx context.Context) bool {
	credentials, err := os.ReadFile(filepath.Join(in.Data, "credentials.env"))
	if err != nil {
		return false
	}
	values := map[string]string{}
	for scanner := bufio.NewScanner(bytes.NewReader(credentials)); scanner.Scan(); {
		if key, value, ok := strings.Cut(scanner.Text(), "="); ok {
			values[strings.TrimPrefix(key, "export ")] = strings.Trim(value, `"'`)
		}
	}
	in.Key = values["SKERRY_API_KEY"]
	if in.Key == "" {
		return false
	}
	var template struct{ Status string }
	status, err := in.Try(ctx, "GET", "/v1/templates/base", nil, &template)
	if err != nil || status != 200 || template.Status != "ready" {
		return false
	}
	var login struct{ Token string }
	status, err = in.Try(ctx, "POST", "/v1/auth/login", map[string]string{
		"email": values["SKERRY_ADMIN_EMAIL"], "password": values["SKERRY_ADMIN_PASSWORD"],
	}, &login)
	if err != nil || status != 200 {
		return false
	}
	in.Token = login.Token
	var hosts struct{ Items []struct{ Status string } }
	status, err = in.Try(ctx, "GET", "/v1/hosts", nil, &hosts)
	return err == nil && status == 200 && len(hosts.Items) == 1 && hosts.Items[0].Status == "online"
}

// Set changes settings, as NAME=value, for the next Start.
func (in *Instance) Set(settings ...string) { in.env = append(in.env, settings...) }

// Stop ends `skerry up` as Ctrl-C does and waits for it.
func (in *Instance) Stop() error {
	if in.up == nil {
		return nil
	}
	_ = in.up.Process.Signal(syscall.SIGINT)
	select {
	case err := <-in.exit:
		in.up = nil
		var exited *exec.ExitError
		if errors.As(err, &exited) && exited.ExitCode() > 0 {
			return fmt.Errorf("skerry up exited with %d\n%s", exited.ExitCode(), in.tail())
		}
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("skerry up did not stop\n%s", in.tail())
	}
}

// Purge stops the instance and removes everything it made.
func (in *Instance) Purge() error {
	stopErr := in.Stop()
	out, err := in.CLI("down", "--purge", "--yes").CombinedOutput()
	if err != nil {
		return errors.Join(stopErr, fmt.Errorf("skerry down --purge: %w\n%s", err, out))
	}
	return errors.Join(stopErr, os.RemoveAll(in.Data))
}

// CLI is the command line on this instance.
func (in *Instance) CLI(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(in.Root, "bin", "skerry"), args...)
	cmd.Dir = in.Root
	cmd.Env = append(append([]string{}, in.env...), "SKERRY_URL="+in.URL, "SKERRY_API_KEY="+in.Key)
	return cmd
}

func (in *Instance) tail() string {
	raw, _ := os.ReadFile(filepath.Join(in.Data, "up.log"))
	if len(raw) > 8000 {
		raw = raw[len(raw)-8000:]
	}
	return string(raw)
}

// Request makes an authenticated request; what people alone may do goes with the
// admin's session, all else with the API key.
func (in *Instance) Request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, in.URL+path, body)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(personal(), func(prefix string) bool { return strings.HasPrefix(path, prefix) }) {
		req.Header.Set("Authorization", "Bearer "+in.Token)
	} else if !strings.HasPrefix(path, "/v1/auth") {
		req.Header.Set("X-API-Key", in.Key)
	}
	return req, nil
}

// personal are the paths that an API key does not open.
func personal() []string {
	return []string{"/v1/hosts", "/v1/api-keys", "/v1/me", "/v1/teams", "/v1/admin", "/v1/auth/switch-team"}
}

// Waiting is how many instances wait on the host for a sandbox, Wanted how many
// are to wait, of all templates and sizes; zero while nobody says so.
func (in *Instance) Waiting() int { return figure(in.AgentMetrics, "skerry_agent_warm_instances") }

// Wanted is explained at Waiting.
func (in *Instance) Wanted() int { return figure(in.Metrics, `skerry_warm_instances{state="wanted"}`) }

func figure(at, name string) (n int) {
	res, err := http.Get(at + "/metrics")
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, _ = strconv.Atoi(rest)
		}
	}
	return n
}

// Try calls the API once. A non-nil out is filled from a 2xx answer; otherwise
// the answer is in the error.
func (in *Instance) Try(ctx context.Context, method, path string, in2, out any) (int, error) {
	var body io.Reader
	if in2 != nil {
		raw, err := json.Marshal(in2)
		if err != nil {
			return 0, err
		}
		body = bytes.NewReader(raw)
	}
	req, err := in.Request(ctx, method, path, body)
	if err != nil {
		return 0, err
	}
	if in2 != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return res.StatusCode, err
	}
	if res.StatusCode >= 300 {
		return res.StatusCode, fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, raw)
	}
	if out != nil {
		return res.StatusCode, json.Unmarshal(raw, out)
	}
	return res.StatusCode, nil
}

// Must is try for calls that have to succeed.
func (in *Instance) Must(t testing.TB, method, path string, body, out any) {
	t.Helper()
	if _, err := in.Try(t.Context(), method, path, body, out); err != nil {
		t.Fatal(err)
	}
}

// Sandbox is the part of the API's answer that the tests read.
type Sandbox struct {
	ID        string
	Status    string
	EndReason string `json:"end_reason"`
	Engine    string
	Actions   []string
}

// ExecResult is how a command ended.
type ExecResult struct {
	Stdout    string
	Stderr    string
	ExitCode  int  `json:"exit_code"`
	TimedOut  bool `json:"timed_out"`
	Truncated bool
}

// Create starts a sandbox from base and removes it at the end of the test.
func (in *Instance) Create(t testing.TB, options map[string]any) Sandbox {
	t.Helper()
	request := map[string]any{"template": "base"}
	for key, value := range options {
		request[key] = value
	}
	var made Sandbox
	in.Must(t, "POST", "/v1/sandboxes", request, &made)
	t.Cleanup(func() {
		if _, err := in.Try(context.Background(), "DELETE", "/v1/sandboxes/"+made.ID, nil, nil); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	if made.Status != "running" {
		t.Fatalf("created sandbox is %q, want running", made.Status)
	}
	return made
}

// Sh runs a shell line in a sandbox and fails unless the call itself works.
func (in *Instance) Sh(t testing.TB, id, line string) ExecResult {
	t.Helper()
	var result ExecResult
	in.Must(t, "POST", "/v1/sandboxes/"+id+"/exec", map[string]any{"cmd": line}, &result)
	return result
}

// BuildProgram builds a Go program that runs inside sandboxes and returns it.
func BuildProgram(dir string) ([]byte, error) {
	out, err := os.MkdirTemp("", "skerry-program-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(out)
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", filepath.Join(out, "program"), dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", dir, err, said)
	}
	return os.ReadFile(filepath.Join(out, "program"))
}

// Checkout is the root of the checkout that holds the working directory, once it
// is built.
func Checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the checkout")
		}
		dir = parent
	}
	if _, err := os.Stat(filepath.Join(dir, "bin", "skerry")); err != nil {
		return "", errors.New("bin/skerry is missing: run make build first")
	}
	return dir, nil
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
