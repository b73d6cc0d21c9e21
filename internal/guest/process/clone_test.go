package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/testkit"
)

// TestTheChildIsClean: what a program finds at its start is the same whichever
// way it was started, and no signal is blocked.
func TestTheChildIsClean(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	seen := func(start func(string, []string, *syscall.ProcAttr) (int, error)) string {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		pid, err := start("/bin/sh", []string{"sh", "-c", `ls -l /proc/self/fd | wc -l; pwd; echo $A
			read -r _ _ _ _ group session _ </proc/self/stat; test "$$ $$" = "$group $session" && echo own session
			kill -TERM $$; echo blocked`}, &syscall.ProcAttr{
			Dir: "/usr", Env: []string{"A=b c", "PATH=/usr/bin:/bin"}, Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
			Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if errors.Is(err, errNoClone) {
			testkit.Missing(t, "clone3", "this kernel is older than 5.5")
		}
		if err != nil {
			t.Fatal(err)
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.Signal() != unix.SIGTERM {
			t.Fatalf("it ended with %v, %v, and not by its own signal", ws, err)
		}
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	cloned, forked := seen(newCloner().clone), seen(syscall.ForkExec)
	if cloned != forked || !strings.HasSuffix(cloned, "/usr\nb c\nown session\n") {
		t.Fatalf("the program sees\n%s\nand after a fork\n%s", cloned, forked)
	}
}

// TestAProgramThatDoesNotStart leaves its reason, and no child behind.
func TestAProgramThatDoesNotStart(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := null.Fd()
	for name, c := range map[string]struct {
		argv0, dir string
		want       error
	}{
		"no program":   {"/nowhere/at/all", "/", fs.ErrNotExist},
		"no directory": {"/bin/true", "/nowhere", fs.ErrNotExist},
		"a directory":  {"/usr", "/", fs.ErrPermission},
		"a null byte":  {"/bin/\x00true", "/", unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newCloner().start(c.argv0, []string{"x"}, &syscall.ProcAttr{Dir: c.dir, Files: []uintptr{fd, fd, fd}, Sys: &syscall.SysProcAttr{Setsid: true}})
			if !errors.Is(err, c.want) {
				t.Fatalf("%v", err)
			}
		})
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Fatalf("a child is left: %v", err)
	}
}
