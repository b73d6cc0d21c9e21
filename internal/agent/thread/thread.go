// Package thread runs what changes an operating system's thread for good: the
// namespaces that it enters.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Lose calls do on a thread that ends afterwards, with whatever it has made its
// own. The process's first thread is never that one: it cannot end, and what
// /proc/self says of the process is what it says of that thread.
func Lose(do func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held meanwhile, so that the next try is on another one.
			defer runtime.UnlockOSThread()
			failed <- Lose(do)
			return
		}
		failed <- do() // never unlocked: the runtime ends the thread with the goroutine
	}()
	return <-failed
}
