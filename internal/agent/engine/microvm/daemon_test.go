package microvm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

// These tests run the real daemon, in a layer of its own over a small root of
// this machine's programs.

const daemonPath = "/usr/lib/skerry/skerry-guest"

// layers are the daemon's directory over an image of the programs.
func (w *world) layers(t *testing.T) []string {
	t.Helper()
	top, bottom := filepath.Join(w.dir, "top"), filepath.Join(w.dir, "bottom")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(top, filepath.Dir(daemonPath)), 0o755))
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(top, daemonPath), "skerry.dev/skerry/cmd/skerry-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v: %s", err, out)
	}
	for _, dir := range []string{"etc", "root", "tmp", "usr/bin", "bin"} {
		must(os.MkdirAll(filepath.Join(bottom, dir), 0o755))
	}
	must(os.Chmod(filepath.Join(bottom, "tmp"), 0o1777))
	must(os.WriteFile(filepath.Join(bottom, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/bash\n"), 0o644))
	copied := map[string]bool{}
	for _, program := range []string{"/bin/bash", "/usr/bin/cat", "/usr/bin/sleep", "/usr/bin/date"} {
		libs, err := exec.Command("ldd", program).Output()
		must(err)
		for _, path := range append(regexp.MustCompile(`/\S+`).FindAllString(string(libs), -1), program) {
			if copied[path] {
				continue
			}
			copied[path] = true
			b, err := os.ReadFile(path)
			must(err)
			must(os.MkdirAll(filepath.Dir(filepath.Join(bottom, path)), 0o755))
			must(os.WriteFile(filepath.Join(bottom, path), b, 0o755))
		}
	}
	if out, err := exec.Command("mkfs.erofs", "-T0", bottom+".erofs", bottom).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return []string{top, bottom + ".erofs"}
}

func (w *world) daemonSpec(t *testing.T, images []string, secret string) engine.Spec {
	t.Helper()
	spec := w.spec(t)
	doc, err := json.Marshal(guestapi.Boot{InitSecret: secret, Hostname: "rock", Nameserver: spec.Network.Gateway, MaxProcesses: 60})
	if err != nil {
		t.Fatal(err)
	}
	spec.RootLayers, spec.Args, spec.Stdin = images, []string{daemonPath}, doc
	spec.Env = []string{"PATH=/usr/bin:/bin"}
	return spec
}

// guest talks to the daemon of an instance.
type guest struct {
	t    *testing.T
	http *http.Client
	proc processconnect.ProcessClient
}

func newGuest(t *testing.T, e engine.Engine, h engine.Handle) *guest {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return e.Dial(ctx, h, guestapi.DefaultPort)
		},
	}}
	t.Cleanup(c.CloseIdleConnections)
	g := &guest{t: t, http: c, proc: processconnect.NewProcessClient(c, "http://guest", connect.WithProtoJSON())}
	testkit.Eventually(t, 30*time.Second, "the daemon answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+guestapi.PathHealth, nil)
		if err != nil {
			return false
		}
		res, err := c.Do(req)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	})
	return g
}

func (g *guest) init(secret, life string) {
	g.t.Helper()
	body, err := json.Marshal(guestapi.Init{Timestamp: time.Now(), LifecycleID: life, DefaultUser: "root"})
	if err != nil {
		g.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, "http://guest"+guestapi.PathInit, bytes.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set(guestapi.HeaderInit, secret)
	res, err := g.http.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		g.t.Fatalf("init: %s", res.Status)
	}
}

// sh runs a script to its end and returns what it wrote.
func (g *guest) sh(script string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	no := false
	s, err := g.proc.Start(ctx, &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", script}}, Stdin: &no})
	if err != nil {
		g.t.Fatalf("%s: %v", script, err)
	}
	defer s.Close()
	var out strings.Builder
	ended := false
	for s.Receive() {
		switch e := s.Msg().GetEvent().GetEvent().(type) {
		case *processpb.ProcessEvent_Data:
			out.Write(e.Data.GetStdout())
			out.Write(e.Data.GetStderr())
		case *processpb.ProcessEvent_End:
			ended = true
			if e.End.GetExitCode() != 0 {
				g.t.Errorf("%s: %v: %s", script, e.End, out.String())
			}
		}
	}
	if err := s.Err(); err != nil || !ended {
		g.t.Fatalf("%s: %v", script, err)
	}
	return strings.TrimSpace(out.String())
}

// The real daemon is PID 1, hands on what a container has, and lives through a
// pause with all it runs.
func TestS6_TheDaemonInAMachine(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	images := w.layers(t)
	const secret = "a secret for the daemon"
	spec := w.daemonSpec(t, images, secret)
	h := start(t, e, spec)
	g := newGuest(t, e, h)
	g.init(secret, "life 1")
	if got := g.sh("echo $(</proc/sys/kernel/hostname) $UID $(</proc/1/comm)"); got != "rock 0 skerry-guest" {
		t.Errorf("inside: %q", got)
	}
	// What the daemon keeps to itself is not in what it starts.
	const container = "00000000a80425fb"
	status := g.sh("while read k v; do [[ $k == Cap[BEP]* ]] && echo $k $v; done < /proc/self/status; true")
	for line := range strings.Lines(status) {
		key, mask, _ := strings.Cut(strings.TrimSpace(line), " ")
		got, err := strconv.ParseUint(mask, 16, 64)
		most, _ := strconv.ParseUint(container, 16, 64)
		if err != nil || got&^most != 0 {
			t.Errorf("%s %s is more than %s", key, mask, container)
		}
	}
	if leak := g.sh("cat /proc/cmdline /proc/mounts; echo /dev/*"); strings.Contains(leak, secret) || strings.Contains(leak, "/dev/vd") {
		t.Errorf("the guest sees %s", leak)
	}
	// Something runs, and goes on counting in the copy.
	g.sh("(n=0; while :; do echo $((n++)) > /root/count; sleep 0.1; done) > /dev/null 2>&1 & echo started; echo kept > /root/note")
	dir := t.TempDir()
	testkit.Eventually(t, 20*time.Second, "it counts", func() bool { return g.sh("cat /root/count") != "" })
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	copied := w.daemonSpec(t, images, "not read by a copy")
	r, err := e.Prepare(t.Context(), copied)
	if err == nil {
		r, err = e.Restore(t.Context(), r, dir)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := e.Destroy(ctx, copied.ID); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, e, r)
	g.init(secret, "life 2")
	if got := g.sh("cat /root/note"); got != "kept" {
		t.Errorf("the disk of the copy: %q", got)
	}
	count := func() int {
		n, err := strconv.Atoi(g.sh("cat /root/count"))
		if err != nil {
			return -1
		}
		return n
	}
	was := count()
	testkit.Eventually(t, 20*time.Second, "the copy goes on counting", func() bool { return count() > was })
	now, err := strconv.ParseFloat(g.sh("date +%s.%N"), 64)
	if off := time.Since(time.UnixMicro(int64(now * 1e6))); err != nil || off > 2*time.Second || off < -500*time.Millisecond {
		t.Errorf("the clock inside is %s off (%v)", off, err)
	}
	if peer := copied.Network.Gateway; g.sh(fmt.Sprintf("(exec 3<>/dev/tcp/%s/9) 2>&1 | cat", peer)) == "" {
		t.Error("a closed port of the gateway answered")
	}
}
