package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/testkit"
)

const dirVar = "SHIM_TEST_DIR"

// TestMain is also the shim process: Main takes its whole process over, so that
// it cannot run beside tests.
func TestMain(m *testing.M) {
	if dir := os.Getenv(dirVar); dir != "" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := shim.Main(context.Background(), shim.Config{Dir: dir, MaxExits: 20, Logger: log}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func start(t *testing.T) (*shim.Client, shim.Config) {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	cfg := shim.Config{Dir: dir, Command: []string{os.Args[0]}, Env: []string{dirVar + "=" + dir}}
	c, err := shim.Ensure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		list, err := c.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, p := range list {
			if _, err := c.End(ctx, p.Key, 0); err != nil {
				t.Error(err)
			}
		}
		if err := c.Shutdown(ctx, true); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "shim.log"))
			t.Logf("shim.log: %s", b)
		}
		_ = os.RemoveAll(dir)
	})
	return c, cfg
}

// leave is a client that leaves a process running, as engines do.
func leave(t *testing.T, dir, key, script string) shim.Spawn {
	t.Helper()
	pidFile := filepath.Join(dir, key+".pid")
	// Not before the client is gone: a shell collects its own children.
	script = "while [ -d /proc/$$ ]; do :; done; " + script
	return shim.Spawn{
		Key:     key,
		Argv:    []string{"/bin/sh", "-c", fmt.Sprintf("(%s) & echo $! > %s", script, pidFile)},
		Env:     []string{"PATH=/usr/bin:/bin"},
		PIDFile: pidFile,
		Console: &shim.Console{FIFO: filepath.Join(dir, key+".fifo"), Log: filepath.Join(dir, key+".log")},
	}
}

func mustSpawn(t *testing.T, c *shim.Client, s shim.Spawn) shim.Spawned {
	t.Helper()
	res, err := c.Spawn(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestClientStatusOutputAndInput(t *testing.T) {
	c, cfg := start(t)
	input := bytes.Repeat([]byte("0123456789abcdef"), shim.MaxStdin/16)
	res := mustSpawn(t, c, shim.Spawn{Key: "a", Argv: []string{"/bin/sh", "-c", "wc -c; echo $X >&2; pwd; exit 7"}, Env: []string{"X=hello"}, Dir: "/usr", Stdin: input})
	if want := fmt.Sprintf("%d\nhello\n/usr\n", len(input)); res.Code != 7 || res.Output != want {
		t.Errorf("got %d %q, want 7 %q", res.Code, res.Output, want)
	}
	if _, err := c.Spawn(t.Context(), shim.Spawn{Key: "a", Argv: []string{"/bin/true"}, Stdin: append(input, 'x')}); err == nil {
		t.Error("more input than a pipe holds was accepted")
	}
	if _, err := c.Spawn(t.Context(), shim.Spawn{Key: "a", Argv: []string{"/no/such/program"}}); err == nil {
		t.Error("a missing program started")
	}
	if _, err := c.Spawn(t.Context(), shim.Spawn{Key: "../a", Argv: []string{"/bin/true"}}); err == nil {
		t.Error("a key with a path was accepted")
	}
	if res = mustSpawn(t, c, shim.Spawn{Key: "a", Argv: []string{"/bin/sh", "-c", "kill -9 $$"}}); res.Code != 137 {
		t.Errorf("killed client: code %d", res.Code)
	}
	st, err := os.Stat(filepath.Join(cfg.Dir, "shim.sock"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", st.Mode(), err)
	}
	if st, err = os.Stat(cfg.Dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v, %v", st.Mode(), err)
	}
}

func TestClientTimeoutAndEnd(t *testing.T) {
	c, _ := start(t)
	res := mustSpawn(t, c, shim.Spawn{Key: "slow", Argv: []string{"/bin/sleep", "60"}, Timeout: 30 * time.Millisecond})
	if !res.TimedOut || res.Code != 137 {
		t.Errorf("got %+v", res)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			res, err := c.Spawn(t.Context(), shim.Spawn{Key: "slow", Argv: []string{"/bin/sleep", "60"}})
			if errors.Is(err, shim.ErrBusy) {
				continue // lost against the probe below
			}
			if err != nil || res.Code != 137 || res.TimedOut {
				t.Errorf("ended client: %+v %v", res, err)
			}
			return
		}
	})
	testkit.Eventually(t, 30*time.Second, "a second spawn under the key is refused", func() bool {
		_, err := c.Spawn(t.Context(), shim.Spawn{Key: "slow", Argv: []string{"/bin/true"}})
		return errors.Is(err, shim.ErrBusy)
	})
	if _, err := c.End(t.Context(), "slow", 0); err != nil {
		t.Error(err)
	}
	if _, err := c.End(t.Context(), "nothing", 0); err != nil {
		t.Error(err)
	}
}

func TestExitsOfReparentedProcesses(t *testing.T) {
	c, cfg := start(t)
	for _, tc := range []struct {
		key, script  string
		code, signal int
	}{
		{"slow", "sleep 0.2; exit 7", 7, 0},
		{"quick", "exit 3", 3, 0}, // at about the time its pid is read
		{"killed", "kill -9 $(exec sh -c 'echo $PPID')", -1, 9},
	} {
		res := mustSpawn(t, c, leave(t, cfg.Dir, tc.key, tc.script))
		e, err := c.Wait(t.Context(), res.Process)
		if err != nil || !e.Known || e.Code != tc.code || e.Signal != tc.signal {
			t.Errorf("%s: %+v %v", tc.key, e, err)
		}
		// Again, and by list.
		if again, err := c.Wait(t.Context(), res.Process); err != nil || again != e {
			t.Errorf("%s again: %+v %v", tc.key, again, err)
		}
	}
	exits, err := c.Exits(t.Context(), 1)
	if err != nil || len(exits) != 2 || exits[0].Key != "quick" {
		t.Errorf("exits after the first: %+v %v", exits, err)
	}
	if err := c.Shutdown(t.Context(), false); err != nil {
		t.Errorf("idle shim refuses to end: %v", err)
	}
}

func TestPidReuseIsNoticed(t *testing.T) {
	c, cfg := start(t)
	p := mustSpawn(t, c, leave(t, cfg.Dir, "a", "exec sleep 60")).Process
	other := p
	other.Start++
	if err := c.Signal(t.Context(), other, unix.SIGKILL); !errors.Is(err, shim.ErrGone) {
		t.Errorf("signal to another life of the pid: %v", err)
	}
	if e, err := c.Wait(t.Context(), other); err != nil || e.Known {
		t.Errorf("wait for another life of the pid: %+v %v", e, err)
	}
	if !shim.Alive(p) {
		t.Error("the wrong process was hit")
	}
	if err := c.Signal(t.Context(), p, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if e, err := c.Wait(t.Context(), p); err != nil || e.Signal != 9 {
		t.Errorf("%+v %v", e, err)
	}
}

func TestShutdownIsRefusedWhileProcessesLive(t *testing.T) {
	c, cfg := start(t)
	mustSpawn(t, c, leave(t, cfg.Dir, "a", "exec sleep 60"))
	if err := c.Shutdown(t.Context(), false); !errors.Is(err, shim.ErrBusy) {
		t.Fatalf("got %v", err)
	}
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
		if err := unix.Kill(info.PID, sig); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := c.Info(t.Context()); err != nil || after.PID != info.PID || after.Watched != 1 {
		t.Errorf("after signals: %+v %v", after, err)
	}
	exits, err := c.End(t.Context(), "a", 0)
	if err != nil || len(exits) != 1 || exits[0].Signal != 9 {
		t.Errorf("end: %+v %v", exits, err)
	}
}

// The processes outlive the shim, their console does not break, their ends are
// recorded by the next one, and what ended before is still on record.
func TestH15_KilledShimIsReplaced(t *testing.T) {
	c, cfg := start(t)
	before := mustSpawn(t, c, leave(t, cfg.Dir, "before", "exit 5")).Process
	if e, err := c.Wait(t.Context(), before); err != nil || e.Code != 5 {
		t.Fatalf("%+v %v", e, err)
	}
	flag := filepath.Join(cfg.Dir, "flag")
	p := mustSpawn(t, c, leave(t, cfg.Dir, "talker",
		"echo one; while [ ! -e "+flag+" ]; do sleep 0.01; done; echo two; echo three; while [ -e "+flag+" ]; do sleep 0.01; done; exit 9")).Process
	idle := mustSpawn(t, c, leave(t, cfg.Dir, "idle", "exec sleep 60")).Process
	log := filepath.Join(cfg.Dir, "talker.log")
	logHas := func(s string) func() bool {
		return func() bool { b, _ := os.ReadFile(log); return string(b) == s }
	}
	testkit.Eventually(t, 30*time.Second, "first line", logHas("one\n"))

	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := c.Wait(t.Context(), p)
		waiting <- err
	}()
	if err := unix.Kill(info.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	// Written while nobody may be there to read.
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	after, err := c.Info(t.Context())
	if err != nil || after.PID == info.PID || after.Watched != 2 {
		t.Fatalf("next shim: %+v %v", after, err)
	}
	testkit.Eventually(t, 30*time.Second, "lines written while the shim was away", logHas("one\ntwo\nthree\n"))
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("wait over the shim's death: %v", err)
	}
	e, err := c.Wait(t.Context(), p)
	if err != nil || e.Known && e.Code != 9 {
		t.Errorf("talker: %+v %v", e, err)
	}
	t.Logf("status of a process that was never our child: known=%v", e.Known)
	if e, err := c.Wait(t.Context(), before); err != nil || !e.Known || e.Code != 5 {
		t.Errorf("old record: %+v %v", e, err)
	}
	if _, err := c.End(t.Context(), "idle", 0); err != nil || shim.Alive(idle) {
		t.Errorf("end of a process that is not our child: %v", err)
	}
}

func TestLL03_ConsoleIsBounded(t *testing.T) {
	c, cfg := start(t)
	p := mustSpawn(t, c, leave(t, cfg.Dir, "loud", "head -c 12000000 /dev/zero; echo end")).Process
	if e, err := c.Wait(t.Context(), p); err != nil || e.Code != 0 {
		t.Fatalf("%+v %v", e, err)
	}
	log := filepath.Join(cfg.Dir, "loud.log")
	testkit.Eventually(t, 30*time.Second, "the last line", func() bool {
		b, _ := os.ReadFile(log)
		return bytes.HasSuffix(b, []byte("end\n"))
	})
	var total int64
	for _, name := range []string{log, log + ".1"} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 2<<20 {
		t.Errorf("%d bytes kept", total)
	}
}

func TestExitLogIsBoundedAndSurvivesATornLine(t *testing.T) {
	c, cfg := start(t)
	for i := range 50 {
		p := mustSpawn(t, c, leave(t, cfg.Dir, "k"+strconv.Itoa(i), "exit 0")).Process
		if _, err := c.Wait(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(cfg.Dir, "exits.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n > 40 {
		t.Errorf("%d lines in the log of 20", n)
	}
	if err := c.Shutdown(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(f, `{"seq":51,"key":"to`); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	exits, err := c.Exits(t.Context(), 0)
	if err != nil || len(exits) != 20 || exits[19].Seq != 50 || exits[19].Key != "k49" {
		t.Errorf("%d records, last %+v, %v", len(exits), exits[max(0, len(exits)-1)], err)
	}
}

// A client in flight must not go on behind the back of the next shim.
func TestRC03_ClientsDieWithTheShim(t *testing.T) {
	c, cfg := start(t)
	pidFile := filepath.Join(cfg.Dir, "pid")
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.Spawn(t.Context(), shim.Spawn{Key: "a", Argv: []string{"/bin/sh", "-c", "echo $$ > " + pidFile + "; exec sleep 60"}})
		if !errors.Is(err, shim.ErrInterrupted) {
			t.Errorf("spawn: %v", err)
		}
	})
	var client shim.Process
	testkit.Eventually(t, 30*time.Second, "the client runs", func() bool {
		b, _ := os.ReadFile(pidFile)
		client.PID, _ = strconv.Atoi(strings.TrimSpace(string(b)))
		var err error
		client.Start, err = shim.StartTime(client.PID)
		return err == nil && client.PID > 0
	})
	info, err := c.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(info.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	testkit.Eventually(t, 30*time.Second, "the client is gone", func() bool { return !shim.Alive(client) })
}

// Many agents (or one that is restarted in a hurry) get the same shim.
func TestEnsureStartsOneShim(t *testing.T) {
	c, cfg := start(t)
	if err := c.Shutdown(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	pids := make([]int, 8)
	for i := range pids {
		wg.Go(func() {
			c, err := shim.Ensure(t.Context(), cfg)
			if err != nil {
				t.Error(err)
				return
			}
			info, err := c.Info(t.Context())
			if err != nil {
				t.Error(err)
			}
			pids[i] = info.PID
		})
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] {
			t.Fatalf("several shims: %v", pids)
		}
	}
}

func TestSocketPathTooLong(t *testing.T) {
	_, err := shim.Ensure(t.Context(), shim.Config{Dir: "/" + strings.Repeat("x", 120), Command: []string{"/bin/true"}})
	if err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("got %v", err)
	}
}
