package sandboxio_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiotest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/testkit"
)

var program sandboxiotest.Program

func TestMain(m *testing.M) {
	code := m.Run()
	program.Remove()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// world is a service in front of one real guest.
type world struct {
	*sandboxio.Service
	guest   *sandboxiotest.Guest
	link    *sandboxiotest.Link
	targets *sandboxiotest.Targets
}

func newWorld(t testing.TB) *world {
	t.Helper()
	g := program.Start(t)
	link := sandboxiotest.NewLink(g.Addr)
	t.Cleanup(link.Close)
	targets := sandboxiotest.NewTargets(link)
	return &world{sandboxio.New(targets, nil, sandboxio.Options{}), g, link, targets}
}

func (w *world) exec(t testing.TB, req sandboxio.ExecRequest) sandboxio.ExecResult {
	t.Helper()
	res, err := w.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, req)
	if err != nil {
		t.Fatalf("Exec(%q): %v", req.Cmd, err)
	}
	return res
}

func (w *world) refused(t testing.TB, req sandboxio.ExecRequest) *errs.Error {
	t.Helper()
	res, err := w.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, req)
	if err == nil {
		t.Fatalf("Exec(%q) = %+v, want an error", req.Cmd, res)
	}
	return errs.As(err)
}

func shell(line string) sandboxio.ExecRequest {
	return sandboxio.ExecRequest{Command: sandboxio.Command{Cmd: line}}
}

func TestS8_ExecReturnsBothStreamsAndTheExitCode(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		line, out, errOut string
		code              int
	}{
		{"printf hi", "hi", "", 0},
		{"printf a; printf b >&2; exit 7", "a", "b", 7},
		{`printf '\n\n x \n'`, "\n\n x \n", "", 0},
		{"kill -TERM $$", "", "", 143},
		{"kill -KILL $$", "", "", 137},
		{"kill -SEGV $$", "", "", 139},
		{"true", "", "", 0},
	} {
		res := w.exec(t, shell(c.line))
		if res.Stdout != c.out || res.Stderr != c.errOut || res.ExitCode != c.code || res.Encoding != "utf-8" || res.Truncated || res.TimedOut {
			t.Errorf("%q: got %+v", c.line, res)
		}
	}
	res := w.exec(t, sandboxio.ExecRequest{Command: sandboxio.Command{Cmd: "printf", Args: []string{"%s|", "a b", "$HOME"}}})
	if res.Stdout != "a b|$HOME|" {
		t.Errorf("with args: %q", res.Stdout)
	}
	res = w.exec(t, sandboxio.ExecRequest{Command: sandboxio.Command{Cmd: "printf", Args: []string{}}})
	if res.ExitCode == 0 {
		t.Errorf("empty args are not the shell: %+v", res)
	}
}

func TestS8_OutputOverOneMiBIsCutAndSaidSo(t *testing.T) {
	w := newWorld(t)
	res := w.exec(t, shell("head -c 5000000 /dev/zero | tr '\\0' a; printf end >&2"))
	if len(res.Stdout) != 1<<20 || !res.Truncated || res.Stderr != "end" || res.ExitCode != 0 {
		t.Errorf("len %d, truncated %v, stderr %q, code %d", len(res.Stdout), res.Truncated, res.Stderr, res.ExitCode)
	}
	res = w.exec(t, shell("printf x; yes é | tr -d '\\n' | head -c 3000000"))
	if res.Encoding != "utf-8" || !res.Truncated || len(res.Stdout) != 1<<20-1 {
		t.Errorf("a split character: %s, len %d", res.Encoding, len(res.Stdout))
	}
	res = w.exec(t, shell("head -c 1048576 /dev/zero | tr '\\0' a"))
	if len(res.Stdout) != 1<<20 || res.Truncated {
		t.Errorf("exactly 1 MiB: len %d, truncated %v", len(res.Stdout), res.Truncated)
	}
}

func TestS8_BytesThatAreNoTextComeAsBase64(t *testing.T) {
	w := newWorld(t)
	res := w.exec(t, shell(`printf '\xff\x00\xfe'; printf plain >&2`))
	out, err := base64.StdEncoding.DecodeString(res.Stdout)
	if err != nil || !bytes.Equal(out, []byte{0xff, 0, 0xfe}) || res.Encoding != "base64" {
		t.Errorf("stdout %q (%s): %v", res.Stdout, res.Encoding, err)
	}
	if errOut, _ := base64.StdEncoding.DecodeString(res.Stderr); string(errOut) != "plain" {
		t.Errorf("stderr %q", res.Stderr)
	}
}

func TestSX06_InputEnds(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"cat", "read x; true", "python3 -c 'import sys; sys.stdin.read()' || true"} {
		testkit.Promise(t, time.Second, fmt.Sprintf("%q without input", line), func() time.Duration { return w.exec(t, shell(line)).Duration })
	}
	data := make([]byte, 3<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	text := hex.EncodeToString(data)
	want := sha256.Sum256([]byte(text))
	req := shell("sha256sum | cut -c1-64")
	req.Stdin = text
	if res := w.exec(t, req); strings.TrimSpace(res.Stdout) != hex.EncodeToString(want[:]) {
		t.Errorf("the input arrived as something else: %+v", res)
	}
	req = shell("cat")
	req.Stdin = strings.Repeat("0123456789abcdef", 40_000) // more than any buffer in between
	if res := w.exec(t, req); res.Stdout != req.Stdin {
		t.Errorf("cat gave %d of %d bytes", len(res.Stdout), len(req.Stdin))
	}
	req = shell("head -c 1 >/dev/null; exec 0<&-; exit 3") // takes one byte of it
	req.Stdin = strings.Repeat("x", 1<<20)
	if res := w.exec(t, req); res.ExitCode != 3 {
		t.Errorf("a command that does not read its input: %+v", res)
	}
}

func TestSX07_OptionsHaveTheirEffectOrAnswer400(t *testing.T) {
	w := newWorld(t)
	req := shell(`printf '%s|%s|%s|%s' "$FOO" "$PWD" "$(id -u)" "$FROM_SANDBOX"`)
	req.Env, req.Cwd = map[string]string{"FOO": "a=b c"}, "/tmp"
	if res := w.exec(t, req); res.Stdout != fmt.Sprintf("a=b c|/tmp|%d|yes", sandboxiotest.UserUID) {
		t.Errorf("options: %q", res.Stdout)
	}
	req.User = "root"
	if res := w.exec(t, req); !strings.Contains(res.Stdout, "|0|") {
		t.Errorf("user root: %q", res.Stdout)
	}
	for name, c := range map[string]struct {
		change func(*sandboxio.ExecRequest)
		reason string
	}{
		"unknown user":    {func(r *sandboxio.ExecRequest) { r.User = "nobody-here" }, "invalid_user"},
		"user with colon": {func(r *sandboxio.ExecRequest) { r.User = "a:b" }, "invalid_user"},
		"missing cwd":     {func(r *sandboxio.ExecRequest) { r.Cwd = "/nowhere" }, "invalid_cwd"},
		"file as cwd":     {func(r *sandboxio.ExecRequest) { r.Cwd = "/etc/passwd" }, "invalid_cwd"},
		"missing program": {func(r *sandboxio.ExecRequest) { r.Cmd, r.Args = "no-such-program", []string{} }, "command_not_found"},
		"not executable":  {func(r *sandboxio.ExecRequest) { r.Cmd, r.Args = "/etc/passwd", []string{} }, "command_not_found"},
		"empty cmd":       {func(r *sandboxio.ExecRequest) { r.Cmd = "" }, "invalid_request"},
		"zero byte":       {func(r *sandboxio.ExecRequest) { r.Cmd = "a\x00b" }, "invalid_request"},
		"bad name in env": {func(r *sandboxio.ExecRequest) { r.Env = map[string]string{"A=B": "c"} }, "invalid_request"},
		"zero byte env":   {func(r *sandboxio.ExecRequest) { r.Env = map[string]string{"A": "\x00"} }, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			req := shell("true")
			c.change(&req)
			if err := w.refused(t, req); err.Reason != c.reason || err.Code != errs.CodeInvalid {
				t.Errorf("got %s %s, want invalid %s", err.Code, err.Reason, c.reason)
			}
		})
	}
}

func TestSX08_ATimeoutKillsAndNothingElseDoes(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"sleep 600", "trap '' TERM; sleep 600 & echo early; wait", "yes"} {
		req := shell(line)
		req.Timeout = time.Second
		most := 1500 * time.Millisecond
		if line == "yes" {
			most += 2 * time.Second // what it wrote until then is on its way
		}
		testkit.Promise(t, most, fmt.Sprintf("%q", line), func() time.Duration {
			res := w.exec(t, req)
			if !res.TimedOut || res.ExitCode != 137 || res.Duration < 500*time.Millisecond {
				t.Errorf("%q: timed out %v, code %d after %s", line, res.TimedOut, res.ExitCode, res.Duration)
			}
			if strings.Contains(line, "early") && res.Stdout != "early\n" {
				t.Errorf("output before the timeout: %q", res.Stdout)
			}
			return res.Duration
		})
	}
	req := shell("kill -KILL $$")
	req.Timeout = time.Minute
	if res := w.exec(t, req); res.TimedOut || res.ExitCode != 137 {
		t.Errorf("a kill is no timeout: %+v", res)
	}
	// The deadline of a caller is not the lifetime of a command on the wire.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := w.Exec(ctx, principal.System("test"), w.targets.Sandbox, shell("sleep 0.2; echo done"))
	if err != nil || res.Stdout != "done\n" || res.TimedOut {
		t.Errorf("under a deadline: %+v, %v", res, err)
	}
}

func TestSX05_ACallerWhoLeavesEndsTheCommandWithItsTree(t *testing.T) {
	w := newWorld(t)
	var took []time.Duration
	for round := range 10 {
		mark := filepath.Join(w.guest.Home, "alive"+strconv.Itoa(round))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := w.Exec(ctx, principal.System("test"), w.targets.Sandbox, shell(fmt.Sprintf(
				"trap '' TERM; (setsid sh -c 'echo $$ > %[1]s.a; exec sleep 600' &); sleep 600 & echo $! > %[1]s.b; echo $$ > %[1]s.c; wait", mark)))
			done <- err
		}()
		pids := func() (all []int) {
			for _, suffix := range []string{".a", ".b", ".c"} {
				raw, err := os.ReadFile(mark + suffix)
				if err != nil {
					return nil
				}
				pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
				if err != nil {
					return nil
				}
				all = append(all, pid)
			}
			return all
		}
		testkit.Eventually(t, 30*time.Second, "the tree has started", func() bool { return pids() != nil })
		cancel()
		if err := <-done; errs.CodeOf(err) != errs.CodeCanceled {
			t.Fatalf("got %v", err)
		}
		left := time.Now()
		testkit.Eventually(t, 30*time.Second, "nothing of the tree lives", func() bool {
			for _, pid := range pids() {
				if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !bytes.Contains(raw, []byte(") Z ")) {
					return false
				}
			}
			return true
		})
		took = append(took, time.Since(left))
	}
	if slices.Sort(took); took[len(took)/2] > 2*time.Second {
		t.Errorf("the trees were gone after %v, want at most 2s", took)
	}
}

func TestS8_ASandboxThatEndsIsAnErrorWithinASecond(t *testing.T) {
	testkit.Promise(t, time.Second, "the end", func() time.Duration {
		w := newWorld(t)
		done := make(chan error, 1)
		go func() {
			_, err := w.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, shell("touch ~/running; sleep 600"))
			done <- err
		}()
		testkit.Eventually(t, 30*time.Second, "the command runs", func() bool {
			_, err := os.Stat(filepath.Join(w.guest.Home, "running"))
			return err == nil
		})
		at := time.Now()
		w.targets.End()
		if err := <-done; !errs.Is(err, "sandbox_ended") {
			t.Errorf("got %v", err)
		}
		return time.Since(at)
	})
}

// SX-02 in full is 10,000 commands; this is 1/20 of it.
func TestSX02_ShortCommandsExactBytesAndCodes(t *testing.T) {
	const all, at = 500, 4
	w := newWorld(t)
	work := make(chan int)
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for i := range work {
				res, err := w.Exec(t.Context(), principal.System("test"), w.targets.Sandbox,
					sandboxio.ExecRequest{Command: sandboxio.Command{Cmd: "sh", Args: []string{"-c", fmt.Sprintf("echo out%d; echo err%d >&2; exit %d", i, i, i%200)}}})
				if err != nil || res.Stdout != fmt.Sprintf("out%d\n", i) || res.Stderr != fmt.Sprintf("err%d\n", i) || res.ExitCode != i%200 {
					t.Errorf("command %d: %+v, %v", i, res, err)
				}
			}
		})
	}
	for i := range all {
		work <- i
	}
	close(work)
	wg.Wait()
	if n := w.link.Dials(); n > 2*at {
		t.Errorf("%d commands used %d connections", all, n)
	}
}

// SX-02: a cut is never a success. The connection breaks at offsets all over a
// command's answer; the command is found again and its answer is exact.
func TestSX02_ConnectionsCutAtManyOffsetsLoseNothing(t *testing.T) {
	w := newWorld(t)
	line := "for i in $(seq 2000); do echo line$i; done; exit 9"
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&want, "line%d\n", i+1)
	}
	for n := range 100 {
		w.link.CutAfter(int64(1 + n*n*3))
		res, err := w.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, shell(line))
		if err != nil || res.ExitCode != 9 || res.Stdout != want.String() {
			t.Fatalf("cut after %d bytes: code %d, %d of %d bytes, %v", 1+n*n*3, res.ExitCode, len(res.Stdout), want.Len(), err)
		}
	}
}

func TestS8_AGuestNobodyReachesIsAnErrorAndNotSuccess(t *testing.T) {
	w := newWorld(t)
	svc := sandboxio.New(w.targets, nil, sandboxio.Options{ResumeWindow: 300 * time.Millisecond})
	w.link.Down(true)
	w.link.Cut()
	_, err := svc.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, shell("true"))
	if !errs.Is(err, "sandbox_unreachable") || errs.CodeOf(err) != errs.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	w.link.Down(false)
	fail := error(errs.NotFound("sandbox_not_found", "no such sandbox"))
	w.targets.Fail.Store(&fail)
	if _, err := svc.Exec(t.Context(), principal.System("test"), w.targets.Sandbox, shell("true")); !errors.Is(err, fail) {
		t.Errorf("got %v", err)
	}
}
