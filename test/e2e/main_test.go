// Package e2e looks at the whole product from outside: what the API promises,
// what sandboxes cannot reach, what survives, and what is left on the machine.
package e2e

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/instance"
)

var (
	sharedOnce sync.Once
	shared     *machine
	sharedErr  error
)

// skerry returns the instance that the tests of this package share, started on
// first use.
func skerry(t *testing.T) *machine {
	t.Helper()
	testkit.Root(t)
	sharedOnce.Do(func() {
		var resolver string
		if resolver, sharedErr = privateResolver(); sharedErr != nil {
			return
		}
		var in *instance.Instance
		in, sharedErr = instance.New(context.Background(), "SKERRY_DNS="+resolver, "SKERRY_REGISTRY_NETWORKS=127.0.0.0/8")
		if in != nil {
			shared = &machine{in}
		}
	})
	if sharedErr != nil {
		t.Fatalf("skerry up: %v", sharedErr)
	}
	return shared
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if err := shared.Purge(); err != nil {
			fmt.Fprintln(os.Stderr, "purge:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// machine is the instance and what it leaves on this machine.
type machine struct{ *instance.Instance }

type (
	sandbox    = instance.Sandbox
	execResult = instance.ExecResult
)

func scaled(full, short int) int { return instance.Scaled(full, short) }
