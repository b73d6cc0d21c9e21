package up

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// childVar makes the test binary act as a child: it writes its pid to a file
// and waits, or ends at once.
const childVar = "SKERRY_UP_TEST_CHILD"

func TestMain(m *testing.M) {
	if data := os.Getenv("SKERRY_DATA"); os.Getenv(upVar) != "" && data != "" {
		switch os.Args[1] {
		case "server":
			fakeServer(data)
		case "agent":
			fakeAgent(data)
		}
		return
	}
	if data := os.Getenv(upVar); data != "" {
		testUp(data)
		return
	}
	switch what := os.Getenv(childVar); {
	case what == "":
		os.Exit(m.Run())
	case what == "dies":
		_, _ = os.Stderr.WriteString("I cannot go on\n")
		os.Exit(3)
	default:
		f, err := os.OpenFile(what, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		}
		if err != nil {
			os.Exit(1)
		}
		select {}
	}
}

func testChild(t *testing.T, what string) (*child, func() string) {
	t.Helper()
	log, err := openLog(filepath.Join(t.TempDir(), "child.log"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStarter()
	var mu sync.Mutex
	var said strings.Builder
	c := &child{
		name: "agent", program: os.Args[0], log: log, starter: s,
		environ: func() []string { return append(os.Environ(), childVar+"="+what) },
		say: func(line string) {
			mu.Lock()
			defer mu.Unlock()
			said.WriteString(line)
		},
	}
	t.Cleanup(func() {
		c.stop()
		s.close()
	})
	return c, func() string {
		mu.Lock()
		defer mu.Unlock()
		return said.String()
	}
}

// TestO1_AChildThatDiesIsStartedAgain, is in a process group of its own, and is
// gone after stop.
func TestO1_AChildThatDiesIsStartedAgain(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	c, said := testChild(t, pids)
	c.run(t.Context())
	started := func() []string {
		raw, _ := os.ReadFile(pids)
		return strings.Fields(string(raw))
	}
	testkit.Eventually(t, 30*time.Second, "the child to start", func() bool { return len(started()) == 1 })
	first, err := strconv.Atoi(started()[0])
	if err != nil {
		t.Fatal(err)
	}
	if group, err := syscall.Getpgid(first); err != nil || group != first {
		t.Errorf("its process group is %d (%v), want its own, %d", group, err, first)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the child to be started again", func() bool { return len(started()) == 2 })
	if !strings.Contains(said(), "starting it again") {
		t.Errorf("nothing was said of it: %q", said())
	}
	second, err := strconv.Atoi(started()[1])
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	if err := syscall.Kill(second, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after stop the child is still there: %v", err)
	}
}

func TestO1_AChildThatDoesNotStayUpIsExplained(t *testing.T) {
	c, _ := testChild(t, "dies")
	c.run(t.Context())
	testkit.Eventually(t, 30*time.Second, "three deaths", func() bool { return c.failing() != nil })
	if err := c.failing(); !strings.Contains(err.Error(), "I cannot go on") {
		t.Errorf("the error does not hold the child's last words: %v", err)
	}
}

func TestO1_OneUpPerDataDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "up.lock")
	first, err := acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.tell("http://127.0.0.1:7070", true); err != nil {
		t.Fatal(err)
	}
	_, err = acquire(path)
	var held *HeldError
	if !errors.As(err, &held) || held.Holder.PID != os.Getpid() || held.Holder.URL != "http://127.0.0.1:7070" {
		t.Fatalf("the second gets %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go first.release()
	again, err := waitFree(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	again.release()
}

// TestHolder_ARecycledNumberIsNotSignalled: the pid alone does not name a
// process.
func TestHolder_ARecycledNumberIsNotSignalled(t *testing.T) {
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	h := holder{PID: os.Getpid(), Start: start + 1}
	if err := h.signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestO6_SecretIsMadeOnceAndForTheOwnerAlone(t *testing.T) {
	c := &Config{Data: t.TempDir()}
	first, err := c.secret()
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.secret()
	if err != nil || second != first || len(first) != 64 {
		t.Errorf("first %q, then %q, %v", first, second, err)
	}
	info, err := os.Stat(c.path("secret"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(c.path("secret"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.secret(); err == nil {
		t.Error("a damaged secret was replaced or used")
	}
	if err := errors.Join(os.Remove(c.path("secret")), os.Mkdir(c.path("postgres"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.secret(); err == nil {
		t.Error("a lost secret was replaced under a database that is sealed with it")
	}
}

func TestO1_EveryPortInUseIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	err = (&Config{Listen: taken, AgentListen: "127.0.0.1:0", HostListen: taken}).checkPorts()
	for _, want := range []string{"--listen", "SKERRY_HOST_LISTEN", taken} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "--agent-listen") {
		t.Errorf("a free port is blamed: %v", err)
	}
}

func TestLL03_LogsAreBounded(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(filepath.Join(dir, "x.log"))
	if err != nil {
		t.Fatal(err)
	}
	line := append(bytes.Repeat([]byte("x"), 1<<20-1), '\n')
	for range 40 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	var total int64
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 2*logMax {
		t.Errorf("%d bytes are kept, want at most %d", total, 2*logMax)
	}
}
