package thread_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/thread"
	"skerry.dev/skerry/internal/testkit"
)

// What a thread has made its own is never what the process's first one has: it
// would stay, and everything that asks the process would be told of it.
func TestTheFirstThreadIsNeverLost(t *testing.T) {
	testkit.Root(t)
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	for range 300 {
		group.Go(func() error {
			return thread.Lose(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("it is the first thread")
				}
				return unix.Unshare(unix.CLONE_NEWNS)
			})
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Readlink("/proc/self/ns/mnt"); err != nil || after != before {
		t.Errorf("the process is in %s, not %s, %v", after, before, err)
	}
}
