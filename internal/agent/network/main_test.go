package network

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// insideVar marks the copy of the test program that runs in namespaces of its
// own: there it is "the host", and the machine's network is never touched.
const insideVar = "SKERRY_NETWORK_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // the tests that need root say so
	}
	if os.Getenv(insideVar) == "" {
		os.Exit(again())
	}
	if err := becomeHost(); err != nil {
		fmt.Fprintln(os.Stderr, "making the test's own host:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// becomeHost gives the process a private place for named namespaces.
func becomeHost() error {
	if err := os.MkdirAll(namespaceDir, 0o755); err != nil {
		return err
	}
	return unix.Mount("tmpfs", namespaceDir, "tmpfs", 0, "")
}
