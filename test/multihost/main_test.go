// Package multihost runs the whole product on several machines at once: two
// servers, three agents that share nothing, one PostgreSQL and real sandboxes.
// It looks at what holds when machines, links and programs fail.
//
// Unless a run is long, the agents send a heartbeat each second and a host
// counts as unreachable after six, and hosts are looked at every two, so that what
// takes minutes takes seconds; long runs have the product's own 30 s, 90 s and
// 30 s.
package multihost

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
	"skerry.dev/skerry/test/instance"
)

type (
	sandbox    = instance.Sandbox
	execResult = instance.ExecResult
)

// shared is the fleet that all tests use, made for the first one.
var shared struct {
	once sync.Once
	*fleet.Fleet
	err error
}

// rhythm is how the fleet keeps in touch.
type rhythm struct{ heartbeat, silence, look time.Duration }

func scale() rhythm {
	return rhythm{
		heartbeat: time.Duration(testkit.Scaled(30, 1)) * time.Second,
		silence:   time.Duration(testkit.Scaled(90, 6)) * time.Second,
		look:      time.Duration(testkit.Scaled(30, 2)) * time.Second,
	}
}

// start makes a fleet of two servers.
func start(ctx context.Context, agents int) (*fleet.Fleet, error) {
	r := scale()
	return fleet.New(ctx, fleet.Options{
		Servers: 2, Agents: agents,
		ServerSettings: []string{"SKERRY_HOST_SILENCE=" + r.silence.String(), "SKERRY_HOST_LOOK=" + r.look.String()},
		AgentSettings:  []string{"SKERRY_HEARTBEAT=" + r.heartbeat.String()},
	})
}

// world is the shared fleet in the hands of one test.
type world struct {
	*fleet.Fleet
	made []string // its sandboxes
}

// remove deletes the test's sandboxes, all at once: what runs in one may take a
// moment to end.
func (w *world) remove(t *testing.T) {
	var removing sync.WaitGroup
	for _, box := range w.made {
		removing.Go(func() {
			if _, err := w.Servers[0].Try(context.Background(), "DELETE", "/v1/sandboxes/"+box, nil, nil); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	removing.Wait()
}

func open(t *testing.T) *world {
	t.Helper()
	testkit.Root(t)
	testkit.Runsc(t)
	if err := pg.Installed(); err != nil {
		testkit.Missing(t, "postgres", err.Error())
	}
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		testkit.Missing(t, "erofs", "mkfs.erofs is not installed")
	}
	shared.once.Do(func() {
		began := time.Now()
		if shared.Fleet, shared.err = start(context.Background(), 3); shared.err == nil {
			fmt.Fprintf(os.Stderr, "the fleet was up after %s\n", time.Since(began).Round(100*time.Millisecond))
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	w := &world{Fleet: shared.Fleet}
	if err := w.Login(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.remove(t)
		if t.Failed() {
			w.Dump(os.Stderr)
		}
	})
	return w
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.Fleet != nil {
		if err := shared.Purge(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "purge:", err)
			code = 1
		}
	}
	os.Exit(code)
}
