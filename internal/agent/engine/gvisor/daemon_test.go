package gvisor_test

import (
	"bytes"
	"context"
	"encoding/json"
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
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

// These tests run the real daemon as PID 1. Its root is this machine's, under
// an overlay that nothing written to outlives.

const bootSecret = "5eC2e7-of-the-source"

// daemonProgram builds the daemon into the world.
func (w *world) daemonProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(w.dir, "skerry-guest")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "skerry.dev/skerry/cmd/skerry-guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the daemon: %v: %s", err, out)
	}
	return path
}

// daemonSpec is an instance with the daemon as PID 1.
func (w *world) daemonSpec(t *testing.T, program string) engine.Spec {
	t.Helper()
	spec := w.spec(t)
	doc, err := json.Marshal(guestapi.Boot{InitSecret: bootSecret, Hostname: "rock", Nameserver: spec.Network.Gateway})
	if err != nil {
		t.Fatal(err)
	}
	spec.RootDir, spec.Args, spec.Stdin = "/", []string{program}, doc
	spec.Env = []string{"PATH=/usr/bin:/bin"}
	spec.Resources.MemoryBytes, spec.Resources.CPUMillis, spec.Resources.MaxProcesses = 512<<20, 2000, 60
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
	testkit.Eventually(t, 20*time.Second, "the daemon answers", func() bool {
		code, _, err := g.do("GET", guestapi.PathHealth, nil, "")
		return err == nil && code == http.StatusNoContent
	})
	return g
}

func (g *guest) do(method, path string, body []byte, secret string) (int, string, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set(guestapi.HeaderInit, secret)
	res, err := g.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	return res.StatusCode, string(out), err
}

func (g *guest) init(secret string, in guestapi.Init) int {
	g.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		g.t.Fatal(err)
	}
	code, _, err := g.do("POST", guestapi.PathInit, body, secret)
	if err != nil {
		g.t.Fatal(err)
	}
	return code
}

func (g *guest) metrics() (m guestapi.Metrics) {
	g.t.Helper()
	_, out, err := g.do("GET", guestapi.PathMetrics, nil, "")
	if err == nil {
		err = json.Unmarshal([]byte(out), &m)
	}
	if err != nil {
		g.t.Fatalf("metrics: %s %v", out, err)
	}
	return m
}

// said is what a command wrote and how it ended.
type said struct {
	out   string
	first uint64 // offset of the first byte
	lost  uint64
	end   *processpb.ProcessEvent_EndEvent
	err   error
}

func (s *said) take(e *processpb.ProcessEvent) {
	switch e := e.GetEvent().(type) {
	case *processpb.ProcessEvent_Data:
		if s.out == "" {
			s.first = e.Data.Offset
		}
		s.out += string(e.Data.GetStdout()) + string(e.Data.GetStderr())
	case *processpb.ProcessEvent_Gap:
		s.lost += e.Gap.LostBytes
	case *processpb.ProcessEvent_End:
		s.end = e.End
	}
}

// run runs a program to its end.
func (g *guest) run(cmd string, args ...string) said {
	g.t.Helper()
	no := false
	return g.follow(&processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &no}, nil)
}

func (g *guest) sh(script string) said { g.t.Helper(); return g.run("/bin/bash", "-c", script) }

// follow starts and reads until the end, or until enough says so.
func (g *guest) follow(req *processpb.StartRequest, enough func(said) bool) (out said) {
	ctx, cancel := context.WithCancel(g.t.Context())
	defer cancel()
	timer := time.AfterFunc(time.Minute, cancel)
	defer timer.Stop()
	s, err := g.proc.Start(ctx, req)
	if err != nil {
		return said{err: err}
	}
	defer s.Close()
	for s.Receive() {
		out.take(s.Msg().GetEvent())
		if enough != nil && enough(out) {
			return out
		}
	}
	out.err = s.Err()
	return out
}

// attach is follow for a command that runs, or did.
func (g *guest) attach(id string, after uint64, enough func(said) bool) (out said) {
	ctx, cancel := context.WithCancel(g.t.Context())
	defer cancel()
	timer := time.AfterFunc(time.Minute, cancel)
	defer timer.Stop()
	s, err := g.proc.Connect(ctx, &processpb.ConnectRequest{Process: execID(id), After: &after})
	if err != nil {
		return said{err: err}
	}
	defer s.Close()
	for s.Receive() {
		out.take(s.Msg().GetEvent())
		if enough != nil && enough(out) {
			return out
		}
	}
	out.err = s.Err()
	return out
}

func execID(id string) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_ExecId{ExecId: id}}
}

// replayed is a request whose output can be read again.
func replayed(id, script string) *processpb.StartRequest {
	no := false
	return &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", script}}, Stdin: &no, ExecId: id, Replay: true,
	}
}

// sqliteWriter commits one row after the other, in WAL mode, and says when each
// is safe; sqliteReader says what a database holds.
const (
	sqliteWriter = `exec python3 -u -c '
import sqlite3, os
c = sqlite3.connect("/root/wal.db", isolation_level=None)
c.execute("PRAGMA journal_mode=WAL"); c.execute("PRAGMA synchronous=FULL"); c.execute("PRAGMA wal_autocheckpoint=20")
c.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, b BLOB)")
n = c.execute("SELECT COALESCE(MAX(n), 0) FROM t").fetchone()[0]
while True:
    n += 1
    c.execute("INSERT INTO t VALUES (?, ?)", (n, os.urandom(3000)))
    print(n)
'`
	sqliteReader = `python3 -c '
import sqlite3
c = sqlite3.connect("/root/wal.db")
print(c.execute("PRAGMA integrity_check").fetchone()[0], *c.execute("SELECT COUNT(*), MAX(n) FROM t").fetchone())
'`
)

// database reads the database of an instance.
func (g *guest) database() (rows, newest int) {
	g.t.Helper()
	o := g.sh(sqliteReader)
	var state string
	if _, err := fmt.Sscan(o.out, &state, &rows, &newest); err != nil || state != "ok" || rows != newest {
		g.t.Errorf("the database: %q %v", o.out, o.err)
	}
	return rows, newest
}

// lastLine is the number in the last whole line.
func lastLine(s string) int {
	lines := strings.Split(s, "\n")
	if len(lines) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(lines[len(lines)-2])
	return n
}

// The whole of what a restore must bring back and change, on two copies of one
// checkpoint.
func TestS6_TwoCopiesOfABusySandbox(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	program := w.daemonProgram(t)
	source := w.daemonSpec(t, program)
	h, err := e.Prepare(t.Context(), source)
	if err == nil {
		h, err = e.Start(t.Context(), h)
	}
	t.Cleanup(func() { destroyInstance(t, e, source.ID) })
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, e, h)
	config := guestapi.Init{
		Timestamp: time.Now(), LifecycleID: "life 1", DefaultUser: "root", MaxProcesses: 60,
		EnvVars: map[string]string{"OF_THE_SOURCE": "1", "BOTH": "source"},
	}
	if code := g.init(bootSecret, config); code != http.StatusNoContent {
		t.Fatalf("init: %d", code)
	}
	if o := g.sh("echo 10.1.1.1 mine >> /etc/hosts"); o.err != nil {
		t.Fatal(o.err)
	}
	before := g.follow(replayed("counter", "n=0; while :; do echo $((n++)); sleep 0.02; done"), func(o said) bool { return lastLine(o.out) > 10 })
	rows := g.follow(replayed("sqlite", sqliteWriter), func(o said) bool { return lastLine(o.out) > 20 })
	if before.err != nil || rows.err != nil {
		t.Fatal(before.err, rows.err)
	}
	if o := g.follow(replayed("done", "echo bye; exit 3"), nil); o.end.GetExitCode() != 3 {
		t.Fatal(o)
	}
	const limit = 12 * time.Second
	limited := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	s, err := g.proc.Start(ctx, replayed("limited", "echo go; sleep 1000"))
	if err != nil || !s.Receive() {
		t.Fatal(err)
	}
	_ = s.Close()
	defer cancel()
	oom := g.sh("echo an event of the source; exec python3 -c 'b = bytearray(2 << 30)'")
	t.Logf("event: %q", oom.out)
	<-time.After(2 * time.Second)

	diskDir, dir := t.TempDir(), t.TempDir()
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: diskDir, LeaveRunning: true, DiskOnly: true}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	used := time.Since(limited)
	t.Logf("checkpoint %s; the limited command had %s of %s", time.Since(began), used, limit)
	destroyInstance(t, e, source.ID)
	<-time.After(limit) // by every clock inside, its time is over

	copies := make([]*lived, 2)
	var wg sync.WaitGroup
	for i := range copies {
		spec := w.daemonSpec(t, program)
		spec.Hostname, spec.Stdin = "ignored", nil
		c := &lived{name: fmt.Sprintf("copy-%d", i), spec: spec, secret: fmt.Sprintf("secret of copy %d", i)}
		copies[i] = c
		t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
		wg.Go(func() {
			began := time.Now()
			c.h, c.err = e.Prepare(t.Context(), spec)
			if c.err == nil {
				c.h, c.err = e.Restore(t.Context(), c.h, dir)
			}
			c.at, c.took = time.Now(), time.Since(began)
		})
	}
	wg.Wait()
	for _, c := range copies {
		if c.err != nil {
			t.Fatal(c.err)
		}
	}
	for _, c := range copies {
		wg.Go(func() { c.look(t, e, config, before, rows, limit-used) })
	}
	wg.Wait()
	if a, b := copies[0].random, copies[1].random; a == "" || a == b {
		t.Errorf("randomness of the copies: %q and %q", a, b)
	} else {
		for i, x := range strings.Fields(a) {
			if slices.Contains(strings.Fields(b), x) {
				t.Errorf("value %d of the copies is the same: %s", i, x)
			}
		}
	}

	// The disk alone: another boot with the same files.
	spec := w.daemonSpec(t, program)
	h, err = e.Prepare(t.Context(), spec)
	if err == nil {
		h, err = e.Restore(t.Context(), h, diskDir)
	}
	t.Cleanup(func() { destroyInstance(t, e, spec.ID) })
	if err != nil {
		t.Fatal(err)
	}
	g = newGuest(t, e, h)
	if code := g.init(bootSecret, config); code != http.StatusNoContent {
		t.Fatalf("init of the disk's copy: %d", code)
	}
	if _, newest := g.database(); newest < lastLine(rows.out) {
		t.Errorf("row %d was safe, the newest in the disk's copy is %d", lastLine(rows.out), newest)
	}
	if o := g.sh("cat /etc/hosts; ps -e | wc -l"); !strings.Contains(o.out, "10.1.1.1 mine\n") || !strings.Contains(o.out, "127.0.1.1 rock\n") {
		t.Errorf("the disk's copy: %q", o.out)
	}
}

// lived is a copy and what was seen of it.
type lived struct {
	name, secret string
	spec         engine.Spec
	h            engine.Handle
	at           time.Time // when Restore returned
	took         time.Duration
	random       string
	err          error
}

// look asks a copy for everything. It runs beside those of the others.
func (c *lived) look(t *testing.T, e engine.Engine, config guestapi.Init, before, rows said, left time.Duration) {
	g := newGuest(t, e, c.h)
	ready := time.Since(c.at)
	in := config
	in.LifecycleID, in.NewInitSecret, in.Hostname, in.Nameserver = c.name, c.secret, c.name, c.spec.Network.Gateway
	in.EnvVars = map[string]string{"BOTH": "copy", "MINE": c.name}
	in.Timestamp = time.Now()
	if code := g.init(bootSecret, in); code != http.StatusNoContent {
		t.Errorf("%s: init %d", c.name, code)
		return
	}
	t.Logf("%s: restored in %s, answers %s later, its own after %s", c.name, c.took, ready, time.Since(c.at))
	if code := g.init(bootSecret, config); code != http.StatusUnauthorized {
		t.Errorf("%s: the source's secret: %d", c.name, code)
	}

	// RS-01, before anything else runs.
	asked := time.Now()
	o := g.run("/bin/date", "+%s.%N")
	seconds, _ := strconv.ParseFloat(strings.TrimSpace(o.out), 64)
	if inside := time.Unix(0, int64(seconds*1e9)); inside.Before(asked.Add(-500*time.Millisecond)) || inside.After(time.Now().Add(500*time.Millisecond)) {
		t.Errorf("%s: its clock says %s at %s", c.name, inside, asked)
	}
	// S-6, RS-03: its own name and resolver; what its user wrote stays.
	o = g.sh("hostname; cat /etc/hostname; cat /etc/hosts; cat /etc/resolv.conf")
	for _, want := range []string{c.name + "\n" + c.name + "\n", "127.0.1.1 " + c.name + "\n", "10.1.1.1 mine\n", "nameserver " + c.spec.Network.Gateway + "\n"} {
		if !strings.Contains(o.out, want) {
			t.Errorf("%s: no %q in %q", c.name, want, o.out)
		}
	}
	if strings.Contains(o.out, "rock") || strings.Count(o.out, "nameserver") != 1 {
		t.Errorf("%s: the source's name or resolver: %q", c.name, o.out)
	}
	// RS-07: exactly that environment.
	o = g.run("/usr/bin/env")
	var names []string
	for line := range strings.Lines(o.out) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "SKERRY_EXEC_ID=") {
			names = append(names, line)
		}
	}
	slices.Sort(names)
	want := []string{
		"BOTH=copy", "E2B_SANDBOX=true", "HOME=/root", "LOGNAME=root", "MINE=" + c.name,
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "USER=root",
	}
	if !slices.Equal(names, want) {
		t.Errorf("%s: environment %q", c.name, names)
	}
	// RS-02: the kernel's, a new interpreter's and the daemon's own.
	id := g.sh("echo $SKERRY_EXEC_ID")
	o = g.sh(`head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo; python3 -c 'import random, uuid, ssl; print(random.random(), uuid.uuid4(), uuid.uuid1().clock_seq, ssl.RAND_bytes(16).hex())'; mktemp -u`)
	c.random = id.out + o.out
	if len(strings.Fields(c.random)) < 7 {
		t.Errorf("%s: randomness %q", c.name, c.random)
	}

	// What ran goes on, and is found by its id and offset.
	after := before.first + uint64(len(before.out))
	next := lastLine(before.out) + 1
	o = g.attach("counter", after, func(o said) bool { return lastLine(o.out) > next+100 })
	if o.err != nil || o.lost != 0 || o.first != after {
		t.Errorf("%s: the counter: first %d of %d, lost %d, %v", c.name, o.first, after, o.lost, o.err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(o.out, "\n"), "\n") {
		if line != strconv.Itoa(next+i) && i < 100 {
			t.Errorf("%s: the counter goes on with %q, not %d", c.name, line, next+i)
			break
		}
	}
	if o = g.attach("done", 0, nil); o.out != "bye\n" || o.end.GetExitCode() != 3 {
		t.Errorf("%s: the one that had ended: %+v", c.name, o)
	}
	acked := lastLine(rows.out)
	o = g.attach("sqlite", uint64(len(rows.out)), func(o said) bool { return lastLine(o.out) > acked+20 })
	if rows, _ := g.database(); rows < lastLine(o.out) || o.lost != 0 {
		t.Errorf("%s: %d rows, %d were safe; lost %d, %v", c.name, rows, lastLine(o.out), o.lost, o.err)
	}

	// Its time limit is what was left of it.
	o = g.attach("limited", 0, nil)
	if at := time.Since(c.at); o.end == nil || at < left-2*time.Second || at > left+4*time.Second {
		t.Errorf("%s: the limited command ended %s after the resume, %s were left: %+v", c.name, at, left, o)
	}
	c.fence(t, g)
	c.secretStays(t, g, in)
}

// fence shows that the copy's kernel still refuses what is beyond the limit.
func (c *lived) fence(t *testing.T, g *guest) {
	o := g.sh(`exec python3 -c '
import threading, time
n = 0
try:
    while n < 2000:
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        n += 1
finally:
    print("threads", n, flush=True)
    time.sleep(30)
'`)
	// The guard may end it before it can say how far it came.
	n := 20
	if at := strings.Index(o.out, "threads"); at >= 0 {
		_, _ = fmt.Sscanf(o.out[at:], "threads %d", &n)
	}
	if n < 20 || n > 128 || o.end == nil || o.end.GetExited() {
		t.Errorf("%s: %+v", c.name, o)
	}
	if o := g.sh("exit 7"); o.end.GetExitCode() != 7 {
		t.Errorf("%s: nothing runs any more: %+v", c.name, o)
	}
}

// secretStays kills the daemon, whose successor must know the new secret alone;
// and what the source told is not told by the copy.
func (c *lived) secretStays(t *testing.T, g *guest, in guestapi.Init) {
	if _, err := g.proc.SendSignal(t.Context(), &processpb.SendSignalRequest{Process: execID("sqlite"), Signal: processpb.Signal_SIGNAL_SIGKILL}); err != nil {
		t.Error(err)
	}
	if _, err := g.proc.SendSignal(t.Context(), &processpb.SendSignalRequest{Process: execID("counter"), Signal: processpb.Signal_SIGNAL_SIGKILL}); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, 10*time.Second, "it is idle", func() bool { return g.metrics().IdleMS > 0 })
	if idle := g.metrics().IdleMS; idle > 10_000 {
		t.Errorf("%s: idle for %d ms: the time it was not there counts", c.name, idle)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+guestapi.PathEvents, nil)
	req.Header.Set(guestapi.HeaderInit, c.secret)
	res, err := g.http.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	events, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if strings.Contains(string(events), guestapi.EventOOMKill) {
		t.Errorf("%s tells of its source: %s", c.name, events)
	}

	g.sh(`for p in /proc/[0-9]*; do case "$(tr '\0' ' ' < $p/cmdline)" in "skerry-guest serve "*) kill -9 ${p#/proc/};; esac; done`)
	testkit.Eventually(t, 10*time.Second, "a daemon with the new secret", func() bool {
		body, _ := json.Marshal(in)
		code, _, err := g.do("POST", guestapi.PathInit, body, c.secret)
		return err == nil && code == http.StatusNoContent
	})
	if code := g.init(bootSecret, in); code != http.StatusUnauthorized {
		t.Errorf("%s: a restarted daemon answers the source's secret with %d", c.name, code)
	}
}
