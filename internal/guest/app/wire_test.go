package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/guestrpc/filesystem/filesystemconnect"
	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/initd"
	"skerry.dev/skerry/internal/testkit"
)

const (
	secret  = "5eC2e7"
	token   = "skerry-example-token-0001"
	userUID = 54321
)

// program builds the real program once for all tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skerry-guest-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "skerry-guest")
	cmd := exec.Command("go", "build", "-o", path, "skerry.dev/skerry/cmd/skerry-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// daemon is a running skerry-guest that serves on loopback.
type daemon struct {
	t    *testing.T
	url  string
	home string
	pid  int
	proc processconnect.ProcessClient
	fs   filesystemconnect.FilesystemClient
	http *http.Client
}

// boot starts a daemon and leaves it without configuration.
func boot(t *testing.T) *daemon {
	t.Helper()
	testkit.Root(t)
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, userUID, userUID); err != nil {
		t.Fatal(err)
	}
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	accounts := fmt.Sprintf("root:x:0:0::/root:/bin/bash\nuser:x:%d:%d::%s:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/sh\n", userUID, userUID, home)
	for name, text := range map[string]string{passwd: accounts, group: fmt.Sprintf("root:x:0:\nuser:x:%d:\nextra:x:54399:user\n", userUID)} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := json.Marshal(initd.Document{
		Boot: guestapi.Boot{InitSecret: secret, MemoryReservePercent: -1}, Listen: "127.0.0.1:0", Passwd: passwd, Group: group,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "serve")
	cmd.Stdin = bytes.NewReader(doc)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	addr := make(chan string, 1)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		lines := bufio.NewScanner(stderr)
		found := regexp.MustCompile(`addr=(\S+)`)
		for lines.Scan() {
			if m := found.FindStringSubmatch(lines.Text()); m != nil {
				addr <- m[1]
			}
			t.Log(lines.Text())
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		<-logged
		if err := cmd.Wait(); err != nil {
			t.Errorf("the daemon ended with %v", err)
		}
		timer.Stop()
	})
	d := &daemon{t: t, home: home, pid: cmd.Process.Pid, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}}
	select {
	case a := <-addr:
		d.url = "http://" + a
	case <-time.After(time.Minute):
		t.Fatal("the daemon did not say where it listens")
	}
	t.Cleanup(d.http.CloseIdleConnections)
	d.proc = processconnect.NewProcessClient(d.http, d.url, connect.WithProtoJSON(), connect.WithAcceptCompression("gzip", nil, nil))
	d.fs = filesystemconnect.NewFilesystemClient(d.http, d.url, connect.WithProtoJSON(), connect.WithAcceptCompression("gzip", nil, nil))
	return d
}

// ready boots a daemon and configures it without an access token.
func ready(t *testing.T) *daemon {
	t.Helper()
	d := boot(t)
	d.init(guestapi.Init{Timestamp: time.Now()})
	return d
}

func (d *daemon) init(in guestapi.Init) {
	d.t.Helper()
	if got := d.initWith(secret, in); got != http.StatusNoContent {
		d.t.Fatalf("init answered %d", got)
	}
}

func (d *daemon) initWith(secret string, in guestapi.Init) int {
	d.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		d.t.Fatal(err)
	}
	res, _ := d.do("POST", "/init", bytes.NewReader(body), "X-Skerry-Init", secret)
	return res.StatusCode
}

// do sends a request with headers given as name and value in turn, and reads
// the whole answer.
func (d *daemon) do(method, path string, body io.Reader, headers ...string) (*http.Response, []byte) {
	d.t.Helper()
	req, err := http.NewRequest(method, d.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := d.http.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return res, data
}

// as returns a context in which RPCs act as a user.
func as(ctx context.Context, user string) context.Context {
	ctx, info := connect.NewClientContext(ctx)
	req, _ := http.NewRequest("GET", "/", nil)
	req.SetBasicAuth(user, "")
	info.RequestHeader().Set("Authorization", req.Header.Get("Authorization"))
	return ctx
}

// outcome is all that a stream brought.
type outcome struct {
	pid            int
	execID         string
	stdout, stderr bytes.Buffer
	pty            bytes.Buffer
	end            *processpb.ProcessEvent_EndEvent
	lost           uint64
	first          uint64 // offset of the first data event
	afterEnd       bool
	err            error
}

func (o *outcome) take(e *processpb.ProcessEvent) {
	if o.end != nil {
		o.afterEnd = true
	}
	switch e := e.GetEvent().(type) {
	case *processpb.ProcessEvent_Start:
		o.pid, o.execID = int(e.Start.Pid), e.Start.ExecId
	case *processpb.ProcessEvent_Data:
		if o.stdout.Len()+o.stderr.Len()+o.pty.Len() == 0 {
			o.first = e.Data.Offset
		}
		o.stdout.Write(e.Data.GetStdout())
		o.stderr.Write(e.Data.GetStderr())
		o.pty.Write(e.Data.GetPty())
	case *processpb.ProcessEvent_End:
		o.end = e.End
	case *processpb.ProcessEvent_Gap:
		o.lost += e.Gap.LostBytes
	}
}

// sh is a request that runs a shell script without input.
func sh(script string) *processpb.StartRequest {
	no := false
	return &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", script}}, Stdin: &no}
}

// run follows a start to its end.
func (d *daemon) run(ctx context.Context, req *processpb.StartRequest) *outcome {
	o := &outcome{}
	s, err := d.proc.Start(ctx, req)
	if err != nil {
		o.err = err
		return o
	}
	defer s.Close()
	for s.Receive() {
		o.take(s.Msg().Event)
	}
	o.err = s.Err()
	return o
}

// begin starts and returns when the start event came; the stream is then left
// to the caller.
func (d *daemon) begin(ctx context.Context, req *processpb.StartRequest) (int, *connect.ServerStreamForClient[processpb.StartResponse]) {
	d.t.Helper()
	s, err := d.proc.Start(ctx, req)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { s.Close() })
	if !s.Receive() {
		d.t.Fatalf("no start event: %v", s.Err())
	}
	pid := int(s.Msg().GetEvent().GetStart().GetPid())
	if pid == 0 {
		d.t.Fatalf("the first message is %v", s.Msg())
	}
	return pid, s
}

func byPID(pid int) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: uint32(pid)}}
}

func byExec(id string) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_ExecId{ExecId: id}}
}

// attach follows Connect to the end, and says when it has begun.
func (d *daemon) attach(ctx context.Context, req *processpb.ConnectRequest, begun ...func()) *outcome {
	o := &outcome{}
	s, err := d.proc.Connect(ctx, req)
	if err != nil {
		o.err = err
		return o
	}
	defer s.Close()
	for s.Receive() {
		o.take(s.Msg().Event)
		for _, tell := range begun {
			tell()
		}
		begun = nil
	}
	o.err = s.Err()
	return o
}

func ctxFor(t *testing.T) context.Context {
	t.Helper()
	// A cancellation without deadline: a deadline would become the command's.
	ctx, cancel := context.WithCancel(context.Background())
	timer := time.AfterFunc(2*time.Minute, cancel)
	t.Cleanup(func() { timer.Stop(); cancel() })
	return ctx
}

func wantCode(t *testing.T, err error, code connect.Code, text string) {
	t.Helper()
	if connect.CodeOf(err) != code || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("got %v, want %s with %q", err, code, text)
	}
}
