package app_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
	"skerry.dev/skerry/internal/testkit"
)

func TestS8_FramesOfAShortCommandByteForByte(t *testing.T) {
	d := ready(t)
	msg := `{"process":{"cmd":"/bin/sh","args":["-c","echo hi"]},"stdin":false}`
	frame := append([]byte{0, 0, 0, 0, byte(len(msg))}, msg...)
	res, body := d.do("POST", "/process.Process/Start", bytes.NewReader(frame),
		"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1")
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/connect+json" {
		t.Errorf("status %d, type %q", res.StatusCode, res.Header.Get("Content-Type"))
	}
	var got []string
	for len(body) >= 5 {
		n := binary.BigEndian.Uint32(body[1:5])
		got = append(got, fmt.Sprintf("%02x %s", body[0], strings.ReplaceAll(string(body[5:5+n]), " ", "")))
		body = body[5+n:]
	}
	if len(body) != 0 {
		t.Errorf("%d bytes after the last frame", len(body))
	}
	if len(got) == 0 {
		t.Fatal("no frames")
	}
	var pid int
	if _, err := fmt.Sscanf(got[0], `00 {"event":{"start":{"pid":%d}}}`, &pid); err != nil || pid < 2 {
		t.Errorf("first frame %q", got[0])
	}
	want := []string{
		got[0],
		`00 {"event":{"data":{"stdout":"` + base64.StdEncoding.EncodeToString([]byte("hi\n")) + `"}}}`,
		`00 {"event":{"end":{"exited":true,"status":"exitstatus0"}}}`,
		`02 {}`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestS8_ExitCodeNeverBeforeLastOutput(t *testing.T) {
	d := ready(t)
	ctx := ctxFor(t)
	for i := range 300 {
		o := d.run(ctx, sh(fmt.Sprintf("echo out%d; echo err%d >&2; exit %d", i, i, i%256)))
		if o.err != nil || o.end.GetExitCode() != int32(i%256) || o.stdout.String() != fmt.Sprintf("out%d\n", i) || o.stderr.String() != fmt.Sprintf("err%d\n", i) || o.afterEnd {
			t.Fatalf("round %d: %+v", i, o)
		}
	}
}

func TestSX02_LargeOutputIsExact(t *testing.T) {
	d := ready(t)
	for _, chunk := range []int{1000, 65536} {
		req := sh(fmt.Sprintf("head -c 30000000 /dev/urandom > f; sha256sum < f >&2; dd if=f bs=%d status=none", chunk))
		o := d.run(ctxFor(t), req)
		if o.err != nil {
			t.Fatal(o.err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(o.stdout.Bytes()))
		if o.stdout.Len() != 30_000_000 || !strings.HasPrefix(o.stderr.String(), sum) {
			t.Errorf("%d bytes, sum %s, want %s", o.stdout.Len(), sum, o.stderr.String())
		}
	}
}

func TestS8_ABackgroundChildNeitherHoldsTheEndNorIsKilled(t *testing.T) {
	d := ready(t)
	o := d.run(ctxFor(t), sh("(while [ ! -e go ]; do sleep 0.05; done; echo late; echo late >&2; echo alive > survived) & echo now"))
	if o.err != nil || o.stdout.String() != "now\n" || o.end.GetExitCode() != 0 {
		t.Fatalf("%+v", o)
	}
	d.touch("go")
	testkit.Eventually(t, 30*time.Second, "the child outlives its pipe's reader", func() bool {
		data, err := os.ReadFile(filepath.Join(d.home, "survived"))
		return err == nil && string(data) == "alive\n"
	})
	// One that never falls silent does not hold the end either.
	o = d.run(ctxFor(t), sh("(while [ ! -e stop ]; do echo x; sleep 0.02; done) & echo $!"))
	if o.err != nil || o.end == nil {
		t.Errorf("%+v", o)
	}
	d.touch("stop")
}

// touch makes an empty file in the commands' directory.
func (d *daemon) touch(name string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.home, name), nil, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func TestS8_KilledAndFailedEndings(t *testing.T) {
	d := ready(t)
	o := d.run(ctxFor(t), sh("kill -9 $$"))
	if o.end.GetExitCode() != -1 || o.end.GetExited() || o.end.GetError() != "signal: killed" {
		t.Errorf("%+v", o.end)
	}
	o = d.run(ctxFor(t), sh("exit 3"))
	if o.end.GetExitCode() != 3 || !o.end.GetExited() || o.end.GetStatus() != "exit status 3" {
		t.Errorf("%+v", o.end)
	}
	o = d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/nonexistent/x"}})
	wantCode(t, o.err, connect.CodeInvalidArgument, "error starting process")
	cwd := "/nonexistent/dir"
	o = d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "true", Cwd: &cwd}})
	wantCode(t, o.err, connect.CodeInvalidArgument, "cwd '/nonexistent/dir' does not exist")
	o = d.run(as(ctxFor(t), "mallory"), sh("true"))
	wantCode(t, o.err, connect.CodeUnauthenticated, "invalid username: 'mallory'")
}

func TestSX07_UserDirectoryAndEnvironmentHaveTheirEffect(t *testing.T) {
	d := boot(t)
	d.init(guestapi.Init{EnvVars: map[string]string{"A": "sandbox", "B": "sandbox"}})
	for _, tty := range []bool{false, true} {
		for _, c := range []struct{ user, want string }{
			{"", fmt.Sprintf("%d:54399 %d,user,%s,%s,sandbox,command,true", userUID, userUID, d.home, d.home)},
			{"root", "0 0,root,/root,/root,sandbox,command,true"},
		} {
			req := sh(`echo "$(id -u):$(id -G | tr ' ' '\n' | grep -x 54399)" $(id -u),$USER,$HOME,$PWD,$A,$B,$E2B_SANDBOX | sed 's/^0: /0 /'`)
			req.Process.Envs = map[string]string{"B": "command"}
			if tty {
				req.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: 200, Rows: 50}}
			}
			ctx := ctxFor(t)
			if c.user != "" {
				ctx = as(ctx, c.user)
			}
			o := d.run(ctx, req)
			got := strings.TrimSpace(o.stdout.String() + o.pty.String())
			if o.err != nil || got != c.want {
				t.Errorf("user %q, terminal %v: got %q, want %q (%v)", c.user, tty, got, c.want, o.err)
			}
		}
	}
}

func TestS14_NothingStartedHasMoreThanTheStockCapabilities(t *testing.T) {
	const stock = "00000000a80425fb" // of the known stock set, without NET_RAW
	d := ready(t)
	for _, user := range []string{"root", "user"} {
		o := d.run(as(ctxFor(t), user), sh("grep -E '^Cap(Bnd|Inh|Prm|Amb)' /proc/self/status"))
		for line := range strings.Lines(o.stdout.String()) {
			var have, allowed uint64
			name, value, _ := strings.Cut(line, ":")
			fmt.Sscanf(strings.TrimSpace(value), "%x", &have)
			fmt.Sscanf(stock, "%x", &allowed)
			allowed &^= 1 << 13 // NET_RAW
			if extra := have &^ allowed; extra != 0 {
				t.Errorf("%s as %s has %x beyond the stock set", name, user, extra)
			}
			if name == "CapBnd" && have == 0 {
				t.Errorf("the bounding set is empty: sudo cannot work")
			}
		}
		if !strings.Contains(o.stdout.String(), "CapBnd") {
			t.Errorf("as %s: %+v", user, o)
		}
	}
}

func TestS14_TheDaemonCannotBeReadFromInside(t *testing.T) {
	d := ready(t)
	script := fmt.Sprintf("cat /proc/%d/environ /proc/%d/mem; ls -l /proc/%d/fd; tr '\\0' ' ' < /proc/%d/cmdline; env", d.pid, d.pid, d.pid, d.pid)
	o := d.run(as(ctxFor(t), "root"), sh(script))
	if o.err != nil || strings.Contains(o.stdout.String(), secret) || strings.Contains(o.stdout.String(), "socket:") {
		t.Errorf("readable from inside: %s", o.stdout.String())
	}
	if strings.Count(o.stderr.String(), "denied") < 2 && strings.Count(o.stderr.String(), "not permitted") < 2 {
		t.Errorf("not refused: %s", o.stderr.String())
	}
}

func TestSX05_KillTakesTheTree(t *testing.T) {
	d := ready(t)
	for round := range 10 {
		mark := fmt.Sprintf("31%03d.%d", round, os.Getpid())
		script := strings.ReplaceAll(`
			sleep MARK &
			(sleep MARK &)
			setsid sleep MARK &
			(setsid bash -c 'trap "" TERM HUP; (setsid sleep MARK &) ; sleep MARK; true' &)
			set -m; (trap "" TERM; sleep MARK; true) &
			echo up; wait`, "MARK", mark)
		pid, s := d.begin(ctxFor(t), sh(script))
		count := func() int {
			all, err := procfs.All()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, p := range all {
				if !p.Dead() && procfs.Command(p.PID, p.Comm) == "sleep "+mark {
					n++
				}
			}
			return n
		}
		testkit.Eventually(t, 30*time.Second, "all sleepers run", func() bool { return count() == 6 })
		if _, err := d.proc.SendSignal(ctxFor(t), &processpb.SendSignalRequest{Process: byPID(pid), Signal: processpb.Signal_SIGNAL_SIGKILL}); err != nil {
			t.Fatal(err)
		}
		if n := count(); n != 0 {
			t.Fatalf("round %d: %d survivors", round, n)
		}
		o := &outcome{}
		for s.Receive() {
			o.take(s.Msg().Event)
		}
		if o.end.GetError() != "signal: killed" {
			t.Errorf("ended with %+v, %v", o.end, s.Err())
		}
		_, err := d.proc.SendSignal(ctxFor(t), &processpb.SendSignalRequest{Process: byPID(pid), Signal: processpb.Signal_SIGNAL_SIGKILL})
		wantCode(t, err, connect.CodeNotFound, fmt.Sprintf("process with pid %d not found", pid))
	}
}

func TestSX08_TheDeadlineKillsTheCommand(t *testing.T) {
	d := ready(t)
	mark := fmt.Sprintf("4711.%d", os.Getpid())
	msg := `{"process":{"cmd":"/bin/bash","args":["-c","sleep ` + mark + `; true"]}}`
	testkit.Promise(t, 1500*time.Millisecond, "a command with a deadline of 1s", func() time.Duration {
		began := time.Now()
		_, body := d.do("POST", "/process.Process/Start", bytes.NewReader(append([]byte{0, 0, 0, 0, byte(len(msg))}, msg...)),
			"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "1000")
		took := time.Since(began)
		if took < 500*time.Millisecond || !bytes.Contains(body, []byte(`"code":"deadline_exceeded"`)) {
			t.Errorf("stream %q after %s", body, took)
		}
		return took
	})
	testkit.Eventually(t, 30*time.Second, "the command is gone", func() bool {
		all, _ := procfs.All()
		for _, p := range all {
			if procfs.Command(p.PID, p.Comm) == "sleep "+mark {
				return false
			}
		}
		return true
	})
}

func TestS8_AClientThatLeavesDoesNotKill(t *testing.T) {
	d := ready(t)
	ctx, cancel := context.WithCancel(ctxFor(t))
	pid, _ := d.begin(ctx, sh("while [ ! -e go ]; do sleep 0.05; done; echo done; exit 4"))
	cancel()
	o := d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byPID(pid)}, func() { d.touch("go") })
	if o.err != nil || o.pid != pid || o.end.GetExitCode() != 4 || o.stdout.String() != "done\n" {
		t.Errorf("%+v", o)
	}
	// The result is kept for those who come late.
	o = d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byPID(pid)})
	if o.err != nil || o.end.GetExitCode() != 4 {
		t.Errorf("late: %+v", o)
	}
	list, err := d.proc.List(ctxFor(t), &processpb.ListRequest{})
	if err != nil || len(list.Processes) != 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	o = d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byPID(1)})
	wantCode(t, o.err, connect.CodeNotFound, "process with pid 1 not found")
}

func TestSX04_ReplayFromAnyOffsetWithAGapMarker(t *testing.T) {
	d := ready(t)
	req := sh("for i in $(seq 10000); do echo line $i; done; sleep 0.3; echo end >&2; exit 7")
	req.Replay, req.ExecId = true, "my-exec.1"
	ctx, cancel := context.WithCancel(ctxFor(t))
	d.begin(ctx, req)
	cancel() // before anything is read
	var want bytes.Buffer
	for i := 1; i <= 10000; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	again := d.run(ctxFor(t), req) // the same exec id attaches
	if again.err != nil || again.stdout.String() != want.String() || again.stderr.String() != "end\n" || again.end.GetExitCode() != 7 || again.execID != "my-exec.1" {
		t.Errorf("attached: %d bytes, %+v, %v", again.stdout.Len(), again.end, again.err)
	}
	after := uint64(50_000)
	o := d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byExec("my-exec.1"), After: &after})
	if o.err != nil || o.first != after || o.stdout.String() != want.String()[after:] || o.end.GetExitCode() != 7 || o.lost != 0 {
		t.Errorf("replayed from %d: %d bytes, lost %d, %v", o.first, o.stdout.Len(), o.lost, o.err)
	}

	req = sh("head -c 5000000 /dev/zero; echo tail")
	req.Replay, req.ExecId = true, "my-exec.2"
	if first := d.run(ctxFor(t), req); first.err != nil || first.stdout.Len() != 5_000_005 {
		t.Fatalf("%d bytes, %v", first.stdout.Len(), first.err)
	}
	zero := uint64(0)
	o = d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byExec("my-exec.2"), After: &zero})
	if o.err != nil || o.lost == 0 || o.lost+uint64(o.stdout.Len()) != 5_000_005 || o.first != o.lost || !strings.HasSuffix(o.stdout.String(), "tail\n") {
		t.Errorf("lost %d, got %d from %d, %v", o.lost, o.stdout.Len(), o.first, o.err)
	}
	if o.stdout.Len() < 900_000 {
		t.Errorf("only %d bytes were kept", o.stdout.Len())
	}
}

func TestSX06_InputIsWholeAndEnds(t *testing.T) {
	d := ready(t)
	if o := d.run(ctxFor(t), sh("cat; read x; echo over")); o.err != nil || o.stdout.String() != "over\n" {
		t.Errorf("without input: %+v", o)
	}
	pid, s := d.begin(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "sha256sum"}})
	data := bytes.Repeat([]byte("0123456789abcdef"), 10<<20/16)
	in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: data}}
	if _, err := d.proc.SendInput(ctxFor(t), &processpb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.proc.CloseStdin(ctxFor(t), &processpb.CloseStdinRequest{Process: byPID(pid)}); err != nil {
		t.Fatal(err)
	}
	o := &outcome{}
	for s.Receive() {
		o.take(s.Msg().Event)
	}
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); o.stdout.String() != want {
		t.Errorf("got %q, %v", o.stdout.String(), s.Err())
	}
	// A write that nobody takes ends with the process.
	looks := &processpb.ProcessConfig{Cmd: "bash", Args: []string{"-c", "until read -t 0; do sleep 0.05; done"}}
	pid, _ = d.begin(ctxFor(t), &processpb.StartRequest{Process: looks})
	_, err := d.proc.SendInput(ctxFor(t), &processpb.SendInputRequest{Process: byPID(pid), Input: in})
	wantCode(t, err, connect.CodeFailedPrecondition, "takes no input")
}

func TestSX06_TerminalTakesAPasteResizesAndEnds(t *testing.T) {
	d := ready(t)
	// Not a trap of bash's: it forgets the signals that come while one runs.
	req := sh(`stty raw -echo; echo ready; head -c 10000000 | sha256sum; exec python3 -c '
import os, signal
def size(*_): os.write(1, b"%d %d\n" % tuple(reversed(os.get_terminal_size(0))))
signal.signal(signal.SIGWINCH, size)
os.write(1, b"resize\n")
os.read(0, 1)
'`)
	req.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: 80, Rows: 24}}
	pid, s := d.begin(ctxFor(t), req)
	var mu sync.Mutex
	o := &outcome{}
	done := make(chan error, 1)
	go func() {
		for s.Receive() {
			mu.Lock()
			o.take(s.Msg().Event)
			mu.Unlock()
		}
		done <- s.Err()
	}()
	shows := func(text string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return strings.Contains(o.pty.String(), text) }
	}
	testkit.Eventually(t, 30*time.Second, "ready", shows("ready"))
	data := bytes.Repeat([]byte("0123456789abcdef"), 10_000_000/16)
	send := func(b []byte) {
		t.Helper()
		in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: b}}
		if _, err := d.proc.SendInput(ctxFor(t), &processpb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
			t.Fatal(err)
		}
	}
	send(data)
	testkit.Eventually(t, 30*time.Second, "the paste's sum", shows(fmt.Sprintf("%x", sha256.Sum256(data))))
	testkit.Eventually(t, 30*time.Second, "the loop", shows("resize"))
	for i := range 200 {
		if _, err := d.proc.Update(ctxFor(t), &processpb.UpdateRequest{Process: byPID(pid), Pty: &processpb.PTY{Size: &processpb.PTY_Size{Cols: uint32(100 + i), Rows: 40}}}); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, 30*time.Second, "the program saw the last size", shows("40 299"))
	_, err := d.proc.CloseStdin(ctxFor(t), &processpb.CloseStdinRequest{Process: byPID(pid)})
	wantCode(t, err, connect.CodeFailedPrecondition, "0x04")
	send([]byte("\n"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if o.end.GetExitCode() != 0 || !o.end.GetExited() {
		t.Errorf("%+v", o.end)
	}
}

func TestS8_InteractiveShellOnATerminal(t *testing.T) {
	d := ready(t)
	req := &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"--norc", "-i"}, Envs: map[string]string{"PS1": "$ "}},
		Pty:     &processpb.PTY{Size: &processpb.PTY_Size{Cols: 80, Rows: 24}},
	}
	pid, s := d.begin(ctxFor(t), req)
	for _, line := range []string{"sleep 1000\n", "\x03", "echo rc=$?\n", "sleep 2000 &\n", "\x04", "exit 5\n"} {
		in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte(line)}}
		if line == "\x03" {
			testkit.Eventually(t, 30*time.Second, "the foreground job runs", func() bool {
				all, _ := procfs.All()
				for _, p := range all {
					if p.PPID == pid && p.Comm == "sleep" {
						return true
					}
				}
				return false
			})
		}
		if line == "\x04" {
			continue // ^D with a job running only warns; exit ends it
		}
		if _, err := d.proc.SendInput(ctxFor(t), &processpb.SendInputRequest{Process: byPID(pid), Input: in}); err != nil {
			t.Fatal(err)
		}
	}
	o := &outcome{}
	for s.Receive() {
		o.take(s.Msg().Event)
	}
	if s.Err() != nil || o.end.GetExitCode() != 5 || !strings.Contains(o.pty.String(), "rc=130") {
		t.Errorf("%q, %+v, %v", o.pty.String(), o.end, s.Err())
	}
}

func TestSX03_AStalledReaderStopsNobodyForLong(t *testing.T) {
	d := ready(t)
	const size = 16_000_000 // more than all buffers on the way
	pid, s := d.begin(ctxFor(t), sh("while [ ! -e go ]; do sleep 0.05; done; head -c 16000000 /dev/zero; exit 9"))
	_ = s // the stalled one: it is never read again
	var wg, attached sync.WaitGroup
	results := make([]*outcome, 4)
	attached.Add(len(results))
	for i := range results {
		wg.Go(func() {
			results[i] = d.attach(ctxFor(t), &processpb.ConnectRequest{Process: byPID(pid)}, attached.Done)
		})
	}
	attached.Wait()
	d.touch("go")
	wg.Wait()
	for i, o := range results {
		if o.err != nil || o.stdout.Len() != size || o.end.GetExitCode() != 9 {
			t.Errorf("reader %d: %d bytes, %+v, %v", i, o.stdout.Len(), o.end, o.err)
		}
	}
	// The one that stalled reads on and is told that it was left behind.
	stalled := &outcome{}
	for s.Receive() {
		stalled.take(s.Msg().Event)
	}
	if connect.CodeOf(s.Err()) != connect.CodeResourceExhausted || stalled.end != nil {
		t.Errorf("stalled reader: %v, %+v after %d bytes", s.Err(), stalled.end, stalled.stdout.Len())
	}
	if p, ok := procfs.Read(d.pid); !ok || p.RSS > 100<<20 {
		t.Errorf("the daemon holds %d MiB", p.RSS>>20)
	}
}

func TestS8_SignalsReachTheGroupAndTagsFind(t *testing.T) {
	d := ready(t)
	tag := "web"
	req := sh("trap 'echo term; exit 3' TERM; sleep 100 & echo up; wait")
	req.Tag = &tag
	_, s := d.begin(ctxFor(t), req)
	if !s.Receive() || string(s.Msg().Event.GetData().GetStdout()) != "up\n" {
		t.Fatalf("%v, %v", s.Msg(), s.Err())
	}
	sel := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: tag}}
	if _, err := d.proc.SendSignal(ctxFor(t), &processpb.SendSignalRequest{Process: sel, Signal: processpb.Signal_SIGNAL_SIGTERM}); err != nil {
		t.Fatal(err)
	}
	o := &outcome{}
	for s.Receive() {
		o.take(s.Msg().Event)
	}
	if o.end.GetExitCode() != 3 || !strings.Contains(o.stdout.String(), "term") {
		t.Errorf("%+v %q", o.end, o.stdout.String())
	}
}

func TestSX01_KeepaliveWhenAsked(t *testing.T) {
	d := ready(t)
	msg := `{"process":{"cmd":"sleep","args":["1.5"]}}`
	began := time.Now()
	_, body := d.do("POST", "/process.Process/Start", bytes.NewReader(append([]byte{0, 0, 0, 0, byte(len(msg))}, msg...)),
		"Content-Type", "application/connect+json", "Connect-Protocol-Version", "1", "Keepalive-Ping-Interval", "1")
	took := time.Since(began)
	if n := bytes.Count(body, []byte(`"keepalive"`)); n < 1 || n > int(took.Seconds()) {
		t.Errorf("%d keepalives in %s: %q", n, took, body)
	}
}

func TestSX02_ACutStreamIsAnErrorAtTheClient(t *testing.T) {
	d := ready(t)
	pid, s := d.begin(ctxFor(t), sh("echo one; sleep 100"))
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	_ = pid
	d.http.CloseIdleConnections()
	if err := syscall.Kill(d.pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	o := &outcome{}
	for s.Receive() {
		o.take(s.Msg().Event)
	}
	if s.Err() == nil || o.end.GetExited() {
		t.Errorf("a cut stream looks like success: %+v, %v", o.end, s.Err())
	}
}
