package app_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	fspb "skerry.dev/skerry/gen/guestrpc/filesystem"
	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

func (d *daemon) metrics() guestapi.Metrics {
	d.t.Helper()
	res, body := d.do("GET", "/metrics", nil)
	var m guestapi.Metrics
	if err := json.Unmarshal(body, &m); err != nil || res.StatusCode != http.StatusOK {
		d.t.Fatalf("metrics: %d %s", res.StatusCode, body)
	}
	return m
}

// idles waits until nothing counts as use any more.
func (d *daemon) idles() {
	d.t.Helper()
	testkit.Eventually(d.t, 10*time.Second, "it is idle", func() bool { return d.metrics().IdleMS > 0 })
}

func TestS6_TheInitSecretIsReplacedAtOnceAndForGood(t *testing.T) {
	d := ready(t)
	now := time.Now()
	first := guestapi.Init{Timestamp: now, LifecycleID: "1", EnvVars: map[string]string{"A": "1"}}
	d.init(first)
	// Also with a clock that stands earlier than before: a copy may be on another
	// machine.
	second := guestapi.Init{
		Timestamp: now.Add(-time.Hour), LifecycleID: "2", NewInitSecret: "second", AccessToken: token,
		EnvVars: map[string]string{"B": "2"},
	}
	if got := d.initWith(secret, second); got != http.StatusNoContent {
		t.Fatalf("the new secret: %d", got)
	}
	for name, in := range map[string]guestapi.Init{"replay": first, "same again": second, "newer": {Timestamp: now.Add(time.Hour), NewInitSecret: "third"}} {
		if got := d.initWith(secret, in); got != http.StatusUnauthorized {
			t.Errorf("%s with the old secret: %d", name, got)
		}
	}
	for _, path := range []string{"/events", "/tunnel?port=1"} {
		if res, _ := d.do("GET", path, nil, "X-Skerry-Init", secret); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with the old secret: %d", path, res.StatusCode)
		}
	}
	// RS-07: exactly what was given, nothing of before.
	if _, body := d.do("GET", "/envs", nil, "X-Access-Token", token); string(bytes.TrimSpace(body)) != `{"B":"2"}` {
		t.Errorf("environment %s", body)
	}
	if res, _ := d.do("GET", "/envs", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the access token: %d", res.StatusCode)
	}
	// The answer was lost: it is said again, with the new secret.
	if got := d.initWith("second", second); got != http.StatusNoContent {
		t.Errorf("repeated: %d", got)
	}
	// A late one of the same life changes nothing.
	late := second
	late.Timestamp, late.EnvVars = second.Timestamp.Add(-time.Second), map[string]string{"C": "3"}
	if got := d.initWith("second", late); got != http.StatusNoContent {
		t.Errorf("late: %d", got)
	}
	if _, body := d.do("GET", "/envs", nil, "X-Access-Token", token); strings.Contains(string(body), "C") {
		t.Errorf("environment %s", body)
	}
}

// Of many who bring a new secret with the same old one, one is right.
func TestS6_OneOfManyReplacesTheSecret(t *testing.T) {
	d := ready(t)
	const n = 16
	codes := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			codes[i] = d.initWith(secret, guestapi.Init{Timestamp: time.Now(), NewInitSecret: fmt.Sprint("secret ", i)})
		})
	}
	wg.Wait()
	won := slices.Index(codes, http.StatusNoContent)
	if won < 0 || slices.Contains(codes[won+1:], http.StatusNoContent) {
		t.Fatalf("answers %v", codes)
	}
	for i := range n {
		want := http.StatusUnauthorized
		if i == won {
			want = http.StatusNoContent
		}
		if got := d.initWith(fmt.Sprint("secret ", i), guestapi.Init{Timestamp: time.Now()}); got != want {
			t.Errorf("secret %d of %d: %d", i, won, got)
		}
	}
}

// What was connected before a restore has nobody at its other end; what runs
// goes on, and is found again by its id and the offset.
func TestRS05_ANewLifeEndsConnectionsAndNothingElse(t *testing.T) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	two := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer two.CloseIdleConnections()
	for name, client := range map[string]*http.Client{"http1": nil, "http2": two} {
		t.Run(name, func(t *testing.T) {
			d := ready(t)
			d.init(guestapi.Init{Timestamp: time.Now(), LifecycleID: "1"})
			if client == nil {
				client = &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
			}
			req := sh("echo first; read -r line < $HOME/go; echo $line; exit 5")
			id := "kept-" + name
			req.ExecId, req.Replay = id, true
			if o := d.run(ctxFor(t), sh("mkfifo $HOME/go")); o.end.GetExitCode() != 0 {
				t.Fatal(o.stderr.String())
			}
			o := &outcome{}
			_, exec := d.begin(ctxFor(t), req)
			for o.stdout.String() != "first\n" && exec.Receive() {
				o.take(exec.Msg().Event)
			}
			watch, err := d.fs.WatchDir(ctxFor(t), &fspb.WatchDirRequest{Path: d.home})
			if err != nil || !watch.Receive() {
				t.Fatal(err, watch.Err())
			}
			defer watch.Close()
			ereq, _ := http.NewRequestWithContext(ctxFor(t), "GET", d.url+"/events", nil)
			ereq.Header.Set("X-Skerry-Init", secret)
			events, err := d.http.Do(ereq)
			if err != nil {
				t.Fatal(err)
			}
			defer events.Body.Close()
			tunnel := d.tunnel(t)
			idle := d.raw(t)
			if d.metrics().IdleMS != 0 {
				t.Error("idle with all that open")
			}

			in, _ := json.Marshal(guestapi.Init{Timestamp: time.Now(), LifecycleID: "2", NewInitSecret: "fresh"})
			ireq, _ := http.NewRequestWithContext(ctxFor(t), "POST", d.url+"/init", bytes.NewReader(in))
			ireq.Header.Set("X-Skerry-Init", secret)
			res, err := client.Do(ireq)
			if err != nil {
				t.Fatalf("the one who said so was cut off: %v", err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusNoContent {
				t.Fatal(res.Status)
			}
			// All end now, not when somebody writes.
			for exec.Receive() {
				t.Error("more from the stream of before")
			}
			if exec.Err() == nil {
				t.Error("the exec's stream ended as if all was well")
			}
			for watch.Receive() {
				continue
			}
			if watch.Err() == nil {
				t.Error("the watch ended as if all was well")
			}
			if _, err := io.ReadAll(events.Body); err == nil {
				t.Error("the events ended as if all was well")
			}
			for what, c := range map[string]net.Conn{"tunnel": tunnel, "idle connection": idle} {
				_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
					t.Errorf("the %s lives: %v", what, err)
				}
			}

			// The command never noticed.
			if got := d.metrics().IdleMS; got != 0 {
				t.Errorf("idle for %d ms with a command running", got)
			}
			if w := d.run(ctxFor(t), sh("echo second > $HOME/go")); w.end.GetExitCode() != 0 {
				t.Fatal(w.stderr.String())
			}
			for range 2 { // also when it has ended
				after := uint64(len("first\n"))
				rest := d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byExec(id), After: &after})
				if rest.err != nil || rest.stdout.String() != "second\n" || rest.first != after || rest.lost != 0 || rest.end.GetExitCode() != 5 {
					t.Errorf("reattached: %+v %q", rest, rest.stdout.String())
				}
			}
		})
	}
}

// raw is an idle connection that has spoken once.
func (d *daemon) raw(t *testing.T) net.Conn {
	t.Helper()
	u, err := url.Parse(d.url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusNoContent {
		t.Fatal(res, err)
	}
	return c
}

// tunnel goes to a server that says nothing and closes when its client does.
func (d *daemon) tunnel(t *testing.T) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	u, err := url.Parse(d.url)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /tunnel?port=%d HTTP/1.1\r\nHost: x\r\nX-Skerry-Init: %s\r\nConnection: Upgrade\r\nUpgrade: skerry-tunnel\r\n\r\n", ln.Addr().(*net.TCPAddr).Port, secret)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, "101") {
		t.Fatal(line, err)
	}
	return c
}

// TL-04: looking is no use.
func TestTL04_PassiveCallsDoNotCount(t *testing.T) {
	d := ready(t)
	d.run(ctxFor(t), sh("true"))
	d.idles()
	ctx, cancel := context.WithCancel(ctxFor(t))
	defer cancel()
	ereq, _ := http.NewRequestWithContext(ctx, "GET", d.url+"/events", nil)
	ereq.Header.Set("X-Skerry-Init", secret)
	events, err := d.http.Do(ereq)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	last := d.metrics().IdleMS
	for range 20 {
		d.do("GET", "/health", nil)
		d.do("GET", "/envs", nil)
		d.init(guestapi.Init{Timestamp: time.Now(), AccessToken: token})
		d.do("GET", "/files?path=/etc/passwd", nil)                                           // refused
		d.do("POST", "/files?path=/tmp/x", strings.NewReader("x"), "X-Access-Token", "wrong") // refused
		d.do("POST", "/process.Process/Start", nil)                                           // refused
		d.do("GET", "/tunnel?port=1", nil)                                                    // refused
		d.init(guestapi.Init{Timestamp: time.Now()})
		if _, err := d.proc.List(ctxFor(t), &processpb.ListRequest{}); err != nil {
			t.Fatal(err)
		}
		now := d.metrics().IdleMS
		if now < last {
			t.Fatalf("idle for %d ms, then for %d", last, now)
		}
		last = now
	}
	if last < 10 {
		t.Errorf("idle for %d ms", last)
	}
}

// TL-05: work is use, for as long as it lasts and no longer.
func TestTL05_WorkCounts(t *testing.T) {
	d := ready(t)
	// busyThen looks while something goes on, and after its end.
	busyThen := func(name string, end func()) {
		t.Helper()
		for range 5 {
			if idle := d.metrics().IdleMS; idle != 0 {
				t.Errorf("%s: idle for %d ms", name, idle)
			}
			<-time.After(10 * time.Millisecond)
		}
		end()
		d.idles()
		if idle := d.metrics().IdleMS; idle > 5000 {
			t.Errorf("%s: idle for %d ms right after", name, idle)
		}
	}
	kill := func(pid int) {
		if _, err := d.proc.SendSignal(ctxFor(t), &processpb.SendSignalRequest{Process: byPID(pid), Signal: processpb.Signal_SIGNAL_SIGKILL}); err != nil {
			t.Error(err)
		}
	}

	pid, s := d.begin(ctxFor(t), sh("sleep 1000"))
	busyThen("silent command with a reader", func() { kill(pid); s.Close() })

	ctx, cancel := context.WithCancel(ctxFor(t))
	pid, s = d.begin(ctx, sh("sleep 1000"))
	cancel()
	s.Close()
	busyThen("silent command nobody reads", func() { kill(pid) })

	terminal := sh("sleep 1000")
	terminal.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: 80, Rows: 24}}
	pid, s = d.begin(ctxFor(t), terminal)
	busyThen("terminal", func() { kill(pid); s.Close() })

	ctx, cancel = context.WithCancel(ctxFor(t))
	watch, err := d.fs.WatchDir(ctx, &fspb.WatchDirRequest{Path: d.home})
	if err != nil || !watch.Receive() {
		t.Fatal(err)
	}
	busyThen("open stream", func() { cancel(); watch.Close() })

	c := d.tunnel(t)
	busyThen("tunnel", func() { c.Close() })

	body, w := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { d.do("POST", query("path", d.home+"/slow"), body, "Content-Type", octets) })
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 5*time.Second, "the upload is seen", func() bool { return d.metrics().IdleMS == 0 })
	busyThen("slow upload", func() { w.Close(); wg.Wait() })

	// File calls: the count begins again with each.
	for name, call := range map[string]func(){
		"stat":     func() { _, _ = d.fs.Stat(ctxFor(t), &fspb.StatRequest{Path: d.home}) },
		"download": func() { d.do("GET", query("path", d.home+"/slow"), nil) },
	} {
		testkit.Eventually(t, 10*time.Second, "some idleness", func() bool { return d.metrics().IdleMS > 50 })
		call()
		if idle := d.metrics().IdleMS; idle > 50 {
			t.Errorf("%s: idle for %d ms", name, idle)
		}
	}

	// What a command leaves behind is no command.
	if o := d.run(ctxFor(t), sh("sleep 30 >/dev/null 2>&1 & disown")); o.end.GetExitCode() != 0 {
		t.Fatal(o.err)
	}
	d.idles()
	if o := d.run(ctxFor(t), sh("setsid sleep 30 & true")); o.end.GetExitCode() != 0 { // holds its output open
		t.Fatal(o.err)
	}
	d.idles()
	d.run(ctxFor(t), sh("pkill -u "+fmt.Sprint(userUID)+" -x sleep"))
}
