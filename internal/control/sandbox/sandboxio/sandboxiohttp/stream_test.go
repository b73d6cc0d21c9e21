package sandboxiohttp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiohttp"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiotest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

func TestS8_StreamGivesExactBytesThenTheExitThen1000(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"printf out; printf '\\xff\\x00' >&2; exit 5"}`)
	start := c.want("start")
	if start.ExecID == "" || start.PID == 0 {
		t.Errorf("start: %s", start.Text)
	}
	o := c.drain(0)
	if o.text(1) != "out" || o.text(2) != "\xff\x00" || o.exit == nil || o.exit.ExitCode != 5 || o.exit.Status != "exit status 5" || o.close != websocket.StatusNormalClosure {
		t.Errorf("got %q %q %+v %d %v", o.text(1), o.text(2), o.exit, o.close, o.errors)
	}
	c = w.open("/exec/stream", `{"cmd":"kill -KILL $$"}`)
	c.want("start")
	if o := c.drain(0); o.exit == nil || o.exit.ExitCode != 137 || o.exit.Status != "signal: killed" {
		t.Errorf("a killed command: %s", o.exit.Text)
	}
	c = w.open("/exec/stream", `{"cmd":"sleep 600","timeout_sec":0.5}`)
	c.want("start")
	if o := c.drain(0); o.exit == nil || o.exit.ExitCode != 137 || !strings.Contains(string(o.exit.Text), "time limit") {
		t.Errorf("a timeout: %+v", o.exit)
	}
}

// SX-02 in full is 100 MB; this is 1/5 of it, through the terminal-free stream.
func TestSX02_ManyBytesKeepTheirHash(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"head -c 20000000 /dev/urandom | tee /tmp/sx02-$$ | cat; sha256sum < /tmp/sx02-$$ | cut -c1-64 >&2; rm /tmp/sx02-$$"}`)
	c.want("start")
	o := c.drain(0)
	if got := fmt.Sprintf("%x\n", sha256.Sum256([]byte(o.text(1)))); got != o.text(2) || o.next != 20_000_065 {
		t.Errorf("%d bytes with hash %s, want %s", o.next, got, o.text(2))
	}
}

func TestS8_InputSignalsResizeAndTheEndOfInput(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"cat; echo end","stdin":true}`)
	c.want("start")
	if err := c.input([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	c.send(`{"type":"close_stdin"}`)
	if o := c.drain(0); o.text(1) != "hello\nend\n" || len(o.errors) > 0 {
		t.Errorf("got %q, %v", o.text(1), o.errors)
	}
	for name, code := range map[string]int{"SIGHUP": 129, "SIGINT": 130, "SIGQUIT": 131, "SIGKILL": 137, "SIGTERM": 143, "SIGUSR1": 138, "SIGUSR2": 140} {
		c := w.open("/exec/stream", `{"cmd":"sleep","args":["600"]}`)
		c.want("start")
		c.send(`{"type":"signal","signal":"` + name + `"}`)
		if o := c.drain(0); o.exit == nil || o.exit.ExitCode != code {
			t.Errorf("%s: %+v %v", name, o.exit, o.errors)
		}
	}
}

func TestS8_WrongMessagesDoNotEndTheStream(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"read x; echo got $x","stdin":true}`)
	c.want("start")
	for _, text := range []string{`{"type":"signal","signal":"SIGSEGV"}`, `{"type":"dance"}`, `[]`, `no json`, `{"type":"resize","cols":80}`, `{"type":"close_stdin","cols":1}`, `{"type":"signal","signal":"SIGTERM","x":1}`} {
		c.send(text)
		if m := c.want("error"); m.code() != "bad_message" {
			t.Errorf("%s: %s", text, m.Text)
		}
	}
	if err := c.conn.Write(t.Context(), websocket.MessageBinary, []byte{1, 'x'}); err != nil {
		t.Fatal(err)
	}
	if m := c.want("error"); m.code() != "bad_message" {
		t.Errorf("a binary message of another kind: %s", m.Text)
	}
	c.send(`{"type":"resize","cols":80,"rows":24}`)
	if m := c.want("error"); m.code() != "no_terminal" {
		t.Errorf("a resize without terminal: %s", m.Text)
	}
	if err := c.input([]byte("it\n")); err != nil {
		t.Fatal(err)
	}
	if o := c.drain(0); o.text(1) != "got it\n" || o.exit == nil {
		t.Errorf("got %q %v", o.text(1), o.errors)
	}
}

func TestS8_AFirstMessageAtFaultIsTold(t *testing.T) {
	w := newWorld(t)
	hasty := newWorld(t, func(o *sandboxiohttp.Options, _ *sandboxio.Options) { o.FirstMessage = 300 * time.Millisecond })
	for first, want := range map[string]struct {
		code  string
		close websocket.StatusCode
	}{
		`{}`:                             {"invalid_request", 1008},
		`{"cmd":"x","foo":1}`:            {"bad_message", 1008},
		`{"cmd":"x"} {}`:                 {"bad_message", 1008},
		`{"cmd":"x","after":1}`:          {"bad_message", 1008},
		`{"attach":"a","cmd":"x"}`:       {"bad_message", 1008},
		`{"attach":"a/b"}`:               {"invalid_request", 1008},
		`{"cmd":"x","timeout_sec":0}`:    {"invalid_request", 1008},
		`{"cmd":"x","tty":{"cols":0}}`:   {"invalid_request", 1008},
		`{"cmd":"x","user":"ghost"}`:     {"invalid_user", 1008},
		`{"cmd":"x","cwd":"/nowhere"}`:   {"invalid_cwd", 1008},
		`{"cmd":"no-such","args":[]}`:    {"command_not_found", 1008},
		`{"attach":"nothing-like-it"}`:   {"exec_not_found", 1011},
		"":                               {"bad_message", 1008}, // never comes
		"\xff{\"cmd\":\"not even text\"": {"bad_message", 1008},
	} {
		var c *client
		if first == "" {
			c = hasty.dial("/exec/stream")
		} else {
			c = w.open("/exec/stream", first)
		}
		o := c.drain(0)
		if len(o.errors) != 1 || o.errors[0] != want.code || o.close != want.close || o.exit != nil {
			t.Errorf("%q: %v, closed with %d; want %+v", first, o.errors, o.close, want)
		}
	}
}

func TestS8_ATerminalHasItsDefaultsAndSizes(t *testing.T) {
	w := newWorld(t)
	c := w.open("/pty", `{"cmd":"stty size; echo $TERM $LANG; tty -s && echo tty"}`)
	c.want("start")
	if o := c.drain(0); o.text(3) != "24 80\r\nxterm-256color C.UTF-8\r\ntty\r\n" {
		t.Errorf("defaults: %q %v", o.text(3), o.errors)
	}
	c = w.open("/exec/stream", `{"cmd":"stty size","tty":{"cols":111,"rows":33}}`)
	c.want("start")
	if o := c.drain(0); o.text(3) != "33 111\r\n" {
		t.Errorf("a tty on exec/stream: %q", o.text(3))
	}
	c = w.open("/pty", `{}`)
	c.want("start")
	if err := c.input([]byte("echo $((6*7)); exit 3\n")); err != nil {
		t.Fatal(err)
	}
	if o := c.drain(0); !strings.Contains(o.text(3), "42\r\n") || o.exit == nil || o.exit.ExitCode != 3 {
		t.Errorf("the login shell: %q %+v", o.text(3), o.exit)
	}
	c = w.open("/pty", `{"cmd":"cat"}`)
	c.want("start")
	c.send(`{"type":"close_stdin"}`)
	if m := c.want("error"); m.code() != "has_terminal" && m.code() != "input_closed" {
		t.Errorf("close_stdin of a terminal: %s", m.Text)
	}
	if err := c.input([]byte{4}); err != nil {
		t.Fatal(err)
	}
	if o := c.drain(0); o.exit == nil || o.exit.ExitCode != 0 {
		t.Errorf("the byte 4: %+v", o.exit)
	}
}

func TestSX06_ALargePasteIntoATerminalKeepsItsHash(t *testing.T) {
	w := newWorld(t)
	c := w.open("/pty", `{"cmd":"stty raw -echo; echo go; head -c 10000000 | sha256sum | cut -c1-64"}`)
	c.want("start")
	if m := c.want("output"); !strings.HasPrefix(string(m.Data), "go") {
		t.Fatalf("got %q", m.Data)
	}
	paste := bytes.Repeat([]byte("0123456789"), 1_000_000)
	sent := make(chan error, 1)
	go func() {
		for rest := paste; len(rest) > 0; {
			n := min(len(rest), 1<<20-1)
			if err := c.input(rest[:n]); err != nil {
				sent <- err
				return
			}
			rest = rest[n:]
		}
		sent <- nil
	}()
	var got strings.Builder
	for !strings.Contains(got.String(), "\n") {
		m := c.want("output")
		got.Write(m.Data)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(paste)); strings.TrimSpace(got.String()) != want {
		t.Errorf("got %s, want %s", got.String(), want)
	}
}

func TestSX06_ManyResizesAmidInputEndAtTheLast(t *testing.T) {
	w := newWorld(t)
	c := w.open("/pty", `{"cmd":"stty -echo; echo go; read end; stty size"}`)
	c.want("start")
	c.want("output")
	for i := range 1000 {
		c.send(fmt.Sprintf(`{"type":"resize","cols":%d,"rows":%d}`, 1+i%300, 1+i%77))
		if err := c.input([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	c.send(`{"type":"resize","cols":222,"rows":55}`)
	if err := c.input([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if o := c.drain(4); !strings.Contains(o.text(3), "55 222") || len(o.errors) > 0 {
		t.Errorf("got %q, %v", o.text(3), o.errors)
	}
}

func TestSX06_AKillOvertakesInputThatNobodyReads(t *testing.T) {
	w := newWorld(t)
	kill := func(inputs int) time.Duration {
		c := w.open("/exec/stream", `{"cmd":"echo go; sleep 600","stdin":true}`)
		c.want("start")
		c.want("output")
		for range inputs {
			if err := c.input(make([]byte, 1_000_000)); err != nil {
				t.Fatal(err)
			}
		}
		// Told in the order of the messages, so that all input is there by then.
		c.send(`{"type":"dance"}`)
		c.want("error")
		at := time.Now()
		c.send(`{"type":"signal","signal":"SIGKILL"}`)
		if o := c.drain(3); o.exit == nil || o.exit.ExitCode != 137 {
			t.Errorf("got %+v %v", o.exit, o.errors)
		}
		return time.Since(at)
	}
	// Half of the second passes by design; a busy machine gets back what it takes
	// for a kill with nothing before it.
	testkit.Promise(t, time.Second, "the kill", func() time.Duration {
		took := kill(10) // many times what the pipe takes
		if took > time.Second {
			took -= kill(0)
		}
		return took
	})
}

func TestSX04_ReattachReplaysWithAGapAndKeepsTheResult(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"printf first; read x; head -c 3000000 /dev/zero; echo last >&2; exit 4","stdin":true}`)
	id := c.want("start").ExecID
	if m := c.want("output"); string(m.Data) != "first" {
		t.Fatalf("got %q", m.Data)
	}
	if err := c.input([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	_ = c.conn.CloseNow() // a client that leaves does not kill
	var o outcome
	testkit.Eventually(t, 30*time.Second, "the command has ended and its result is kept", func() bool {
		c = w.open("/exec/stream", fmt.Sprintf(`{"attach":%q,"after":5}`, id))
		c.want("start")
		o = c.drain(5)
		return o.exit != nil
	})
	if o.exit.ExitCode != 4 || o.text(2) != "last\n" || o.next != 5+3_000_000+5 {
		t.Errorf("after: exit %+v, end %d, lost %d", o.exit, o.next, o.lost)
	}
	for range 2 { // as often as wanted
		c = w.open("/pty", fmt.Sprintf(`{"attach":%q}`, id))
		c.want("start")
		again := c.drain(0)
		if again.lost == 0 || again.lost < 1_900_000 || again.exit == nil || again.exit.ExitCode != 4 || again.next != o.next {
			t.Errorf("again: lost %d of %d, %+v", again.lost, again.next, again.exit)
		}
	}
}

func TestSX01_AStreamSurvivesCutsAndAnAgentRestartWithZeroBytesLost(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"for i in $(seq 3000); do echo line$i; sleep 0.001; done; exit 6"}`)
	c.want("start")
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				w.link.Down(false)
				return
			case <-tick.C:
				w.link.Down(n%3 == 1) // for a while nobody is there at all
				w.link.Cut()
			}
		}
	}()
	o := c.drain(0)
	close(stop)
	<-done
	var want strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&want, "line%d\n", i+1)
	}
	if o.text(1) != want.String() || o.exit == nil || o.exit.ExitCode != 6 || o.lost != 0 {
		t.Errorf("%d of %d bytes, lost %d, exit %+v, errors %v", o.next, want.Len(), o.lost, o.exit, o.errors)
	}
}

func TestSX02_ALinkThatStaysDownIsAnErrorAndNeverAnExit(t *testing.T) {
	w := newWorld(t, func(_ *sandboxiohttp.Options, o *sandboxio.Options) { o.ResumeWindow = 400 * time.Millisecond })
	c := w.open("/exec/stream", `{"cmd":"echo go; sleep 600"}`)
	c.want("start")
	c.want("output")
	w.link.Down(true)
	w.link.Cut()
	if o := c.drain(3); o.exit != nil || len(o.errors) != 1 || o.errors[0] != "sandbox_unreachable" || o.close != websocket.StatusInternalError {
		t.Errorf("got %+v %v %d", o.exit, o.errors, o.close)
	}
}

func TestS8_ASandboxThatEndsClosesItsStreamsWithinASecond(t *testing.T) {
	testkit.Promise(t, time.Second, "the end", func() time.Duration {
		w := newWorld(t)
		c := w.open("/exec/stream", `{"cmd":"echo go; sleep 600"}`)
		c.want("start")
		c.want("output")
		at := time.Now()
		w.targets.End()
		if o := c.drain(3); o.exit != nil || len(o.errors) != 1 || o.errors[0] != "sandbox_ended" || o.close != 4001 {
			t.Errorf("got %+v %v %d", o.exit, o.errors, o.close)
		}
		return time.Since(at)
	})
}

func TestA9_AStreamEndsWithTheAccessOfItsCaller(t *testing.T) {
	testkit.Promise(t, time.Second, "the end", func() time.Duration {
		w := newWorld(t)
		c := w.open("/exec/stream", `{"cmd":"echo go; sleep 600"}`)
		c.want("start")
		c.want("output")
		at := time.Now()
		w.refuse(errs.Unauthenticated("access_ended", "Log in again."))
		if o := c.drain(3); o.exit != nil || len(o.errors) != 1 || o.errors[0] != "access_ended" || o.close != websocket.StatusPolicyViolation {
			t.Errorf("got %+v %v %d", o.exit, o.errors, o.close)
		}
		return time.Since(at)
	})
}

func TestS8_ARestartOfTheServerTellsClientsToAttachAgain(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"echo go; sleep 600"}`)
	c.want("start")
	c.want("output")
	go w.handlers.Close()
	if o := c.drain(3); o.exit != nil || o.close != websocket.StatusServiceRestart {
		t.Errorf("got %+v %v %d", o.exit, o.errors, o.close)
	}
}

func TestLL08_AFrameThatIsTooLargeIsClosedWith1009(t *testing.T) {
	w := newWorld(t)
	for _, size := range []int{1<<20 + 1, 64 << 20} {
		c := w.open("/exec/stream", `{"cmd":"cat","stdin":true}`)
		c.want("start")
		go func() { _ = c.input(make([]byte, size)) }()
		if o := c.drain(0); o.close != websocket.StatusMessageTooBig {
			t.Errorf("%d bytes: closed with %d", size, o.close)
		}
	}
}

func TestLL08_ForeignOriginsAreRefused(t *testing.T) {
	w := newWorld(t)
	own := strings.Split(strings.TrimPrefix(w.url, "http://"), "/")[0]
	for origin, want := range map[string]int{
		"http://" + own: 101, "https://friend.example": 101, "": 101,
		"https://evil.example": 403, "null": 403, "http://friend.example": 403, "http://" + own + ".evil.example": 403, "http://evil.example/" + own: 403,
	} {
		header := http.Header{}
		if origin != "" {
			header.Set("Origin", origin)
		}
		conn, res, err := websocket.Dial(t.Context(), w.url+"/exec/stream", &websocket.DialOptions{Subprotocols: []string{"skerry.exec.v1"}, HTTPHeader: header})
		if res == nil || res.StatusCode != want {
			t.Errorf("%q: %v, %v, want %d", origin, res, err, want)
		}
		if err == nil {
			_ = conn.CloseNow()
		}
	}
}

func TestS8_WhatIsNoStreamIsRefusedBeforeIt(t *testing.T) {
	w := newWorld(t, func(o *sandboxiohttp.Options, _ *sandboxio.Options) { o.MaxStreams = 1 })
	res, err := http.Get(w.url + "/exec/stream")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 400 {
		t.Errorf("no WebSocket: %s", res.Status)
	}
	if _, res, err := websocket.Dial(t.Context(), w.url+"/exec/stream", nil); err == nil || res.StatusCode != 400 {
		t.Errorf("no subprotocol: %v %v", res, err)
	}
	fail := error(errs.NotFound("sandbox_not_found", "no such sandbox"))
	w.targets.Fail.Store(&fail)
	opt := &websocket.DialOptions{Subprotocols: []string{"skerry.exec.v1"}}
	if _, res, err := websocket.Dial(t.Context(), w.url+"/exec/stream", opt); err == nil || res.StatusCode != 404 {
		t.Errorf("no sandbox: %v %v", res, err)
	}
	w.targets.Fail.Store(nil)
	c := w.dial("/exec/stream")
	if _, res, err := websocket.Dial(t.Context(), w.url+"/exec/stream", opt); err == nil || res.StatusCode != 429 {
		t.Errorf("one too many: %v %v", res, err)
	}
	_ = c.conn.CloseNow()
	testkit.Eventually(t, 30*time.Second, "the place is free again", func() bool {
		conn, _, err := websocket.Dial(t.Context(), w.url+"/exec/stream", opt)
		if err == nil {
			_ = conn.CloseNow()
		}
		return err == nil
	})
}

// SX-01: a client that answers is not gone, nor is one that sends, nor one whose
// input nobody takes. A machine that is busy with others may give a client no
// time for two of the intervals; so one that is cut off gets longer ones, and
// sends for as many of them.
func TestSX01_PingsKeepWhoeverShowsLife(t *testing.T) {
	idle := func(*client, time.Duration, <-chan struct{}) {}
	sends := func(c *client, every time.Duration, stop <-chan struct{}) {
		tick := time.NewTicker(every / 10)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_ = c.input([]byte("x"))
			}
		}
	}
	pastes := func(c *client, _ time.Duration, _ <-chan struct{}) {
		for chunk := bytes.Repeat([]byte("x"), 700_000); c.input(chunk) == nil; {
		}
	}
	for name, one := range map[string]struct {
		cmd     string
		answers bool
		does    func(*client, time.Duration, <-chan struct{})
	}{
		"it answers":              {"sleep 600", true, idle},
		"it sends, and no answer": {"cat >/dev/null", false, sends},
		"its input is not taken":  {"sleep 600", false, pastes},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cut outcome
			for _, every := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond} {
				w := newWorld(t, func(o *sandboxiohttp.Options, _ *sandboxio.Options) { o.PingEvery = every })
				c := w.dial("/exec/stream", func(o *websocket.DialOptions) {
					o.OnPingReceived = func(context.Context, []byte) bool { return one.answers }
				})
				c.send(fmt.Sprintf(`{"cmd":%q,"stdin":true}`, one.cmd))
				c.want("start")
				ended, stop, done := make(chan outcome, 1), make(chan struct{}), make(chan struct{})
				go func() { ended <- c.drain(0) }() // who reads nothing sees no ping
				go func() { defer close(done); one.does(c, every, stop) }()
				gone := false
				select {
				case cut = <-ended:
					gone = true
				case <-time.After(20 * every):
				}
				close(stop)
				_ = c.conn.CloseNow()
				<-done
				if !gone {
					<-ended
					return
				}
				t.Logf("cut off with a ping each %s", every)
			}
			t.Errorf("the stream ended: %+v %v %d", cut.exit, cut.errors, cut.close)
		})
	}
}

// SX-01: a client that is gone without a word is noticed.
func TestSX01_PingsFindDeadClients(t *testing.T) {
	w := newWorld(t, func(o *sandboxiohttp.Options, _ *sandboxio.Options) {
		o.PingEvery, o.MaxStreams = 50*time.Millisecond, 1
	})
	dead := sandboxiotest.NewLink(strings.Split(strings.TrimPrefix(w.url, "http://"), "/")[0])
	defer dead.Close()
	conn, _, err := websocket.Dial(t.Context(), w.url+"/exec/stream", &websocket.DialOptions{
		Subprotocols: []string{"skerry.exec.v1"}, HTTPClient: &http.Client{Transport: dead},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.CloseNow() }() // until then it says nothing and answers no ping
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(`{"cmd":"sleep 600"}`)); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "its place is free", func() bool {
		conn, _, err := websocket.Dial(t.Context(), w.url+"/exec/stream", &websocket.DialOptions{Subprotocols: []string{"skerry.exec.v1"}})
		if err == nil {
			_ = conn.CloseNow()
		}
		return err == nil
	})
}

// SX-03: a reader that stands still costs no memory here and no other reader a
// byte.
func TestSX03_AStalledReaderHoldsUpNobodyElse(t *testing.T) {
	w := newWorld(t)
	c := w.open("/exec/stream", `{"cmd":"head -c 4000000 /dev/zero"}`)
	stalled := c.want("start").ExecID
	for range 3 {
		fast := w.open("/exec/stream", `{"cmd":"head -c 4000000 /dev/zero; exit 2"}`)
		fast.want("start")
		if o := fast.drain(0); o.next != 4_000_000 || o.exit == nil || o.exit.ExitCode != 2 {
			t.Errorf("another command: %d bytes, %+v", o.next, o.exit)
		}
	}
	if stalled == "" {
		t.Error("no id")
	}
	if o := c.drain(0); o.next != 4_000_000 || o.exit == nil || o.exit.ExitCode != 0 {
		t.Errorf("the stalled one: %d bytes, %+v, %v", o.next, o.exit, o.errors)
	}
}
