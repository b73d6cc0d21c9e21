package process

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkSpawn is the price of a start from a confined thread, against one
// from any thread.
func BenchmarkSpawn(b *testing.B) {
	attr := &syscall.ProcAttr{Dir: "/", Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
	wait := func(pid int, err error) {
		if err != nil {
			b.Fatal(err)
		}
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			wait(syscall.ForkExec("/bin/true", []string{"true"}, attr))
		}
	})
	b.Run("confined", func(b *testing.B) {
		s, err := newSpawner(nil)
		if err != nil {
			b.Fatal(err)
		}
		defer s.close()
		for b.Loop() {
			wait(s.start("/bin/true", []string{"true"}, attr))
		}
	})
}
