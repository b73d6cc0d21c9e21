package app_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/gen/guestrpc/filesystem/filesystemconnect"
	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

const gvisorMemory = 400 << 20

// sandbox boots the daemon as PID 1 of a real sandbox. Its root is this
// machine's, under an overlay that nothing written to outlives.
func sandbox(t *testing.T) *daemon {
	t.Helper()
	testkit.Root(t)
	runsc := testkit.Runsc(t)
	if _, err := exec.LookPath("ip"); err != nil {
		testkit.Missing(t, "gvisor", err.Error())
	}
	exe, err := program()
	if err != nil {
		t.Fatal(err)
	}
	var raw [8]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	ns, veth := "sgt"+id[:8], "sg"+id[:8]
	host, guest := fmt.Sprintf("10.213.%d.1", raw[0]), fmt.Sprintf("10.213.%d.2", raw[0])
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			testkit.Missing(t, "gvisor", fmt.Sprintf("ip %v: %s", args, out))
		}
	}
	ip("netns", "add", ns)
	t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", ns)
	t.Cleanup(func() { exec.Command("ip", "link", "del", veth).Run() })
	ip("addr", "add", host+"/30", "dev", veth)
	ip("link", "set", veth, "up")
	ip("-n", ns, "addr", "add", guest+"/30", "dev", "eth0")
	ip("-n", ns, "link", "set", "eth0", "up")
	ip("-n", ns, "link", "set", "lo", "up")

	dir, err := os.MkdirTemp("/var/tmp", "skerry-guest-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "skerry-guest")
	if err := os.WriteFile(inside, data, 0o755); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "bundle")
	for _, d := range []string{bundle, filepath.Join(dir, "state"), filepath.Join(dir, "disk")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	caps := strings.Fields("CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD CAP_NET_BIND_SERVICE CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT CAP_AUDIT_WRITE CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_SYS_TIME")
	spec := map[string]any{
		"ociVersion": "1.0.0", "hostname": "seal",
		"process": map[string]any{
			"args": []string{inside}, "cwd": "/", "env": []string{"PATH=/usr/bin:/bin"}, "user": map[string]int{"uid": 0, "gid": 0},
			"capabilities": map[string]any{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root":   map[string]any{"path": "/", "readonly": false},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []string{"size=64m"}}},
		"linux": map[string]any{
			"namespaces":  []map[string]any{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network", "path": "/var/run/netns/" + ns}},
			"cgroupsPath": "/skerry-test-" + id + "/sb",
			"resources":   map[string]any{"memory": map[string]int{"limit": gvisorMemory}, "pids": map[string]int{"limit": 4000}},
		},
	}
	data, err = json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, controller := range []string{"", "cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb", "systemd", "net_cls", "net_prio", "perf_event", "rdma", "misc"} {
			os.Remove(filepath.Join("/sys/fs/cgroup", controller, "skerry-test-"+id))
		}
	})
	flags := []string{
		"--root=" + filepath.Join(dir, "state"), "--network=sandbox", "--allow-suid", "--overlay2=root:dir=" + filepath.Join(dir, "disk") + ",size=1g",
		"--directfs=false", "--platform=systrap", "--host-uds=none",
	}
	cmd := exec.Command(runsc, append(flags, "run", "-bundle="+bundle, id)...)
	doc, err := json.Marshal(guestapi.Boot{InitSecret: secret, Hostname: "seal", Nameserver: host})
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(doc)
	var logged bytes.Buffer
	cmd.Stdout, cmd.Stderr = &logged, &logged
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		out, err := exec.Command(runsc, append(flags, "delete", "-force", id)...).CombinedOutput()
		<-exited
		t.Logf("deleted: %s %v; its log:\n%s", out, err, logged.String())
	})
	d := &daemon{
		t: t, url: "http://" + guest + ":49983", home: "/root",
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}},
	}
	t.Cleanup(d.http.CloseIdleConnections)
	testkit.Eventually(t, 60*time.Second, "the daemon in the sandbox answers", func() bool {
		res, err := (&http.Client{Timeout: 10 * time.Second, Transport: d.http.Transport}).Get(d.url + "/health")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusNoContent
	})
	giveHeadroom(t, "skerry-test-"+id+"/sb")
	d.proc = processconnect.NewProcessClient(d.http, d.url, connect.WithProtoJSON())
	d.fs = filesystemconnect.NewFilesystemClient(d.http, d.url, connect.WithProtoJSON())
	d.init(guestapi.Init{Timestamp: time.Now(), DefaultUser: "root", Hostname: "seal"})
	return d
}

// giveHeadroom raises the host's limit above what the guest was told, as the
// engine does: the guard acts before the kernel, but not in no time.
func giveHeadroom(t *testing.T, group string) {
	t.Helper()
	limit := []byte(strconv.Itoa(gvisorMemory + 160<<20))
	for _, file := range []string{"/sys/fs/cgroup/memory/" + group + "/memory.limit_in_bytes", "/sys/fs/cgroup/" + group + "/memory.max"} {
		if err := os.WriteFile(file, limit, 0); err == nil {
			return
		}
	}
	t.Fatal("the sandbox's cgroup was not found")
}

// events collects what the sandbox tells the host.
func (d *daemon) events(ctx context.Context) func(kind string) *guestapi.Event {
	d.t.Helper()
	req, err := http.NewRequestWithContext(ctx, "GET", d.url+"/events", nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("X-Skerry-Init", secret)
	res, err := d.http.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	var mu sync.Mutex
	var all []guestapi.Event
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewScanner(res.Body)
		for lines.Scan() {
			var e guestapi.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				mu.Lock()
				all = append(all, e)
				mu.Unlock()
			}
		}
	}()
	d.t.Cleanup(func() { res.Body.Close(); <-done })
	return func(kind string) *guestapi.Event {
		mu.Lock()
		defer mu.Unlock()
		for i, e := range all {
			if e.Kind == kind {
				all = append(all[:i], all[i+1:]...)
				return &e
			}
		}
		return nil
	}
}

func TestGVisor_TheDaemonInARealSandbox(t *testing.T) {
	d := sandbox(t)
	seen := d.events(ctxFor(t))

	t.Run("S14 identity and capabilities", func(t *testing.T) {
		o := d.run(ctxFor(t), sh("hostname; cat /etc/hosts; grep CapBnd /proc/self/status; cat /proc/1/environ /proc/1/mem; ls -l /proc/1/fd /proc/2/fd"))
		if !strings.HasPrefix(o.stdout.String(), "seal\n") || !strings.Contains(o.stdout.String(), "127.0.1.1 seal") || !strings.Contains(o.stdout.String(), "00000000a80405fb") {
			t.Errorf("%s", o.stdout.String())
		}
		t.Logf("from inside: %s%s", o.stdout.String(), o.stderr.String())
	})

	t.Run("S14 root cannot change the program of PID 1", func(t *testing.T) {
		o := d.run(ctxFor(t), sh(`read -r -d '' exe < /proc/1/cmdline
chmod 755 $exe; echo x >> $exe; rm -f $exe; mv $exe $exe.old; umount $exe; mount -o remount,rw $exe
unshare -Urm sh -c "umount $exe; umount -l $exe; chmod 755 $exe; echo x >> $exe"; cmp $exe /proc/self/exe >/dev/null; tail -c 2 $exe | od -c`))
		if s := o.stdout.String(); strings.Contains(s, "x  \\n") || !strings.Contains(s, "0000002") {
			t.Errorf("%s", s)
		}
		t.Logf("%s", o.stderr.String())
	})

	t.Run("a program begins with clean signals", func(t *testing.T) {
		// By the way that this kernel knows by our patch, or the daemon resets each
		// handler by a call of its own.
		dir, err := os.MkdirTemp("/var/tmp", "skerry-guest-clone-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "tests"), "../process")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		o := d.run(ctxFor(t), sh("cd "+dir+" && ./tests -test.v -test.run '^(TestTheChildIsClean|TestAProgramThatDoesNotStart)$'"))
		if out := o.stdout.String(); o.end.GetExitCode() != 0 || strings.Contains(out, "SKIP") || !strings.Contains(out, "PASS: TestTheChildIsClean") {
			t.Fatalf("%s%s", out, o.stderr.String())
		}
	})

	t.Run("spawn latency", func(t *testing.T) {
		d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/true"}})
		const n = 50
		began := time.Now()
		for range n {
			if o := d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/true"}}); o.end.GetExitCode() != 0 {
				t.Fatalf("%+v", o)
			}
		}
		t.Logf("start to end of /bin/true: %s", time.Since(began)/n)
	})

	t.Run("S8 exact output and exit", func(t *testing.T) {
		o := d.run(ctxFor(t), sh("head -c 50000000 /dev/zero; echo x >&2; exit 6"))
		if o.err != nil || o.stdout.Len() != 50_000_000 || o.stderr.String() != "x\n" || o.end.GetExitCode() != 6 {
			t.Errorf("%d bytes, %+v, %v", o.stdout.Len(), o.end, o.err)
		}
		// A child that keeps the output open does not hold up the end.
		o = d.run(ctxFor(t), sh("sleep 777 & echo now"))
		if o.err != nil || o.stdout.String() != "now\n" {
			t.Errorf("%+v", o)
		}
		if o := d.run(ctxFor(t), sh("pkill -9 -x sleep && echo was there")); o.stdout.String() != "was there\n" {
			t.Errorf("the child did not outlive its command: %q %q", o.stdout.String(), o.stderr.String())
		}
	})

	t.Run("SX-05 kill takes the tree", func(t *testing.T) {
		for round := range 5 {
			pid, s := d.begin(ctxFor(t), sh(`sleep 777 & (sleep 777 &) ; setsid sleep 777 & (setsid bash -c 'trap "" TERM; (setsid sleep 777 &); sleep 777; true' &) ; sleep 0.3; echo up; wait`))
			if !s.Receive() {
				t.Fatal(s.Err())
			}
			began := time.Now()
			if _, err := d.proc.SendSignal(ctxFor(t), &processpb.SendSignalRequest{Process: byPID(pid), Signal: processpb.Signal_SIGNAL_SIGKILL}); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			o := d.run(ctxFor(t), sh(`for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done | grep -c '^sleep 777'; grep -l '^State:.Z' /proc/[0-9]*/status`))
			if o.stdout.String() != "0\n" {
				t.Errorf("round %d: %q left", round, o.stdout.String())
			}
			t.Logf("killed in %s", took)
		}
	})

	t.Run("S8 terminal", func(t *testing.T) {
		req := sh(`trap 'stty size' WINCH; stty size; while :; do read -t 0.1 x && break; done; exit 4`)
		req.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: 90, Rows: 30}}
		pid, s := d.begin(ctxFor(t), req)
		o := &outcome{}
		resized, ended := false, false
		for s.Receive() {
			o.take(s.Msg().Event)
			if !resized && strings.Contains(o.pty.String(), "30 90") {
				resized = true
				if _, err := d.proc.Update(ctxFor(t), &processpb.UpdateRequest{Process: byPID(pid), Pty: &processpb.PTY{Size: &processpb.PTY_Size{Cols: 120, Rows: 40}}}); err != nil {
					t.Fatal(err)
				}
			}
			if !ended && strings.Contains(o.pty.String(), "40 120") {
				ended = true
				in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte("\n")}}
				if _, err := d.proc.SendInput(ctxFor(t), &processpb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if o.end.GetExitCode() != 4 || !ended {
			t.Errorf("%q, %+v, %v", o.pty.String(), o.end, s.Err())
		}
	})

	t.Run("S9 metadata and kernel files", func(t *testing.T) {
		res, body := d.do("POST", query("path", "/root/meta"), strings.NewReader("x"), "Content-Type", octets, "X-Metadata-A", "b")
		if res.StatusCode != 200 {
			t.Errorf("%d %s", res.StatusCode, body)
		}
		if _, body := d.do("GET", query("path", "/proc/meminfo"), nil); !bytes.Contains(body, []byte("MemAvailable")) {
			t.Errorf("%q", body)
		}
		_, body = d.do("GET", "/metrics", nil)
		t.Logf("metrics %s", body)
	})

	t.Run("S15 the largest process is ended before the sandbox is", func(t *testing.T) {
		for round := range 3 {
			o := d.run(ctxFor(t), sh(`python3 -c '
b = []
while True: b.append(bytearray(1 << 20))
'; echo ended $?`))
			if o.err != nil || !strings.Contains(o.stdout.String(), "ended 137") {
				t.Fatalf("round %d: %q %q %v", round, o.stdout.String(), o.stderr.String(), o.err)
			}
			var e *guestapi.Event
			testkit.Eventually(t, 30*time.Second, "the event", func() bool { e = seen(guestapi.EventOOMKill); return e != nil })
			t.Logf("%+v", *e)
		}
	})

	t.Run("S14 a fork bomb meets the process limit", func(t *testing.T) {
		d.init(guestapi.Init{Timestamp: time.Now(), DefaultUser: "root", MaxProcesses: 60})
		for _, bomb := range []string{
			`f() { f | f & }; f; sleep 1000`,
			`trap "" HUP TERM; f() { f | f & }; f; sleep 1000`,
			`cat > /tmp/bomb <<'END'
#!/bin/bash
trap "" HUP TERM
setsid /tmp/bomb &
setsid /tmp/bomb &
wait
END
chmod +x /tmp/bomb; /tmp/bomb; sleep 1000`,
		} {
			ctx, cancel := context.WithCancel(ctxFor(t))
			timer := time.AfterFunc(time.Minute, cancel)
			o := d.run(ctx, sh(bomb))
			timer.Stop()
			cancel()
			if o.err != nil || o.end.GetExitCode() != -1 {
				t.Fatalf("%s: %+v", bomb, o)
			}
			var e *guestapi.Event
			testkit.Eventually(t, 30*time.Second, "the event", func() bool { e = seen(guestapi.EventProcessLimit); return e != nil })
			t.Logf("%+v", *e)
			testkit.Eventually(t, 60*time.Second, "it is over", func() bool {
				var m guestapi.Metrics
				_, body := d.do("GET", "/metrics", nil)
				return json.Unmarshal(body, &m) == nil && m.Processes <= 3
			})
		}
		testkit.Eventually(t, 30*time.Second, "commands run again", func() bool {
			return d.run(ctxFor(t), sh("true")).end.GetExited()
		})
	})

	t.Run("S14 the kernel refuses what goes beyond the fence", func(t *testing.T) {
		d.init(guestapi.Init{Timestamp: time.Now(), DefaultUser: "root", MaxProcesses: 60})
		// The fence has room for 92: the first thread of the program, two threads of
		// the daemon that start programs, and these.
		const room = 92 - 3
		// A round that the guard ended before the refusal says nothing.
		refused := false
		for range 60 {
			o := d.run(ctxFor(t), sh(`mkdir -p /tmp/pids && mount -t cgroup -o pids none /tmp/pids && echo mounted; exec python3 -c '
import os, threading, time
try:
    while True:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        os.write(1, b"+")
except RuntimeError:
    os.write(1, b"refused")
time.sleep(600)
'`))
			started, no := strings.CutSuffix(o.stdout.String(), "refused")
			if strings.Trim(started, "+") != "" || len(started) > room || no && len(started) < room || o.end.GetExited() {
				t.Fatalf("%q %q %+v", o.stdout.String(), o.stderr.String(), o.end)
			}
			testkit.Eventually(t, 30*time.Second, "the event", func() bool {
				e := seen(guestapi.EventProcessLimit)
				return e != nil && strings.HasPrefix(e.Cmd, "python3") && e.Limit == 92
			})
			testkit.Eventually(t, 30*time.Second, "commands run again", func() bool {
				return d.run(ctxFor(t), sh("true")).end.GetExited()
			})
			if refused = no; refused {
				break
			}
		}
		if !refused {
			t.Error("no thread was ever refused")
		}
	})

	if t.Failed() {
		return // a dead sandbox answers nothing, not even a refusal
	}
	t.Run("the daemon is restarted with its configuration", func(t *testing.T) {
		d.init(guestapi.Init{Timestamp: time.Now(), DefaultUser: "root", EnvVars: map[string]string{"KEPT": "yes"}})
		d.run(ctxFor(t), sh(`for p in /proc/[0-9]*; do case "$(tr '\0' ' ' < $p/cmdline)" in "skerry-guest serve "*) kill -9 ${p#/proc/};; esac; done`))
		testkit.Eventually(t, 30*time.Second, "the configuration is back", func() bool {
			req, _ := http.NewRequest("GET", d.url+"/envs", nil)
			res, err := (&http.Client{Timeout: 10 * time.Second, Transport: d.http.Transport}).Do(req)
			if err != nil {
				return false
			}
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			return strings.Contains(string(body), "KEPT")
		})
		if d.events(ctxFor(t)); d.run(ctxFor(t), sh("exit 2")).end.GetExitCode() != 2 {
			t.Error("commands do not run after the restart")
		}
	})
}
