// Package enginetest is the conformance suite of engine.Engine. The fake and
// every real engine pass the same one; a bug that was found once stays in it as
// a named case.
//
// PID 1 of the instances is the program in the guest directory, or behaves like
// it: a small HTTP server on GuestPort.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

// GuestPort is where the guest answers.
const GuestPort = 7000

// Harness is a world engines of one kind live in, for one test.
type Harness struct {
	// Engine returns a new engine object on the world, as after a restart of the
	// agent; the ones before are not used any more.
	Engine func(t *testing.T) engine.Engine
	// Spec describes a new instance: unused id, empty WorkDir, a network slot of
	// its own, 256 MiB of memory, 512 MiB of disk, one CPU, PID 1 answering.
	Spec func(t *testing.T) engine.Spec
	// Kill ends the instance by SIGKILL from outside, as an operator would.
	Kill func(t *testing.T, id engine.InstanceID)
	// Leaks names what is on the host and should not be once all instances are
	// destroyed: processes, cgroups, mounts, files.
	Leaks func(t *testing.T) []string

	// OutOfMemory and Limits: the guest can really take memory; it sees its
	// limits.
	OutOfMemory bool
	Limits      bool
	// Kernel: the guest has one, with sockets and a disk of its own.
	Kernel bool
	// Cycles is how often the cases that repeat do so; 0 is a few times.
	Cycles int
}

// NewID returns an id nobody has used.
func NewID() engine.InstanceID {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return engine.InstanceID(hex.EncodeToString(b))
}

// bench is one test's view: a harness, its current engine and its bookkeeping.
type bench struct {
	*testing.T
	Harness
	e    engine.Engine
	spec engine.Spec // the last one made
}

// Spec is the harness's, remembered.
func (b *bench) Spec(t *testing.T) engine.Spec {
	t.Helper()
	b.spec = b.Harness.Spec(t)
	return b.spec
}

func newBench(t *testing.T, mk func(t *testing.T) Harness) *bench {
	b := &bench{T: t, Harness: mk(t)}
	b.e = b.Harness.Engine(t)
	// Runs before the harness's own cleanup: nothing may be left of the test.
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		found, err := b.e.Inventory(ctx)
		if err != nil {
			t.Errorf("inventory at the end: %v", err)
		}
		for _, f := range found {
			if err := b.e.Destroy(ctx, f.ID); err != nil {
				t.Errorf("destroy %s at the end: %v", f.ID, err)
			}
		}
		for _, leak := range b.Harness.Leaks(t) {
			t.Errorf("left behind: %s", leak)
		}
	})
	return b
}

func (b *bench) restartAgent() { b.e = b.Harness.Engine(b.T) }

func (b *bench) prepare(spec engine.Spec) engine.Handle {
	b.Helper()
	h, err := b.e.Prepare(b.Context(), spec)
	if err != nil {
		b.Fatalf("prepare: %v", err)
	}
	return h
}

func (b *bench) start(spec engine.Spec) engine.Handle {
	b.Helper()
	h, err := b.e.Start(b.Context(), b.prepare(spec))
	if err != nil {
		b.Fatalf("start: %v", err)
	}
	b.up(h)
	return h
}

func (b *bench) destroy(id engine.InstanceID) {
	b.Helper()
	if err := b.e.Destroy(b.Context(), id); err != nil {
		b.Fatalf("destroy: %v", err)
	}
}

func (b *bench) up(h engine.Handle) {
	b.Helper()
	testkit.Eventually(b, 60*time.Second, "the guest answers", func() bool {
		_, err := b.try(h, "GET", "/info", nil)
		return err == nil
	})
}

func (b *bench) exit(h engine.Handle) engine.Exit {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	x, err := b.e.Wait(ctx, h)
	if err != nil {
		b.Fatalf("wait: %v", err)
	}
	return x
}

// client speaks HTTP to the guest over Dial.
func (b *bench) client(h engine.Handle) *http.Client { return Client(b.e, h) }

// Client returns an HTTP client whose every request goes into the instance,
// over a connection of its own.
func Client(e engine.Engine, h engine.Handle) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return e.Dial(ctx, h, GuestPort)
		},
	}}
}

func (b *bench) try(h engine.Handle, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(b.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := b.client(h).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	out, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, out)
	}
	return out, err
}

func (b *bench) do(h engine.Handle, method, path string, body []byte) []byte {
	b.Helper()
	out, err := b.try(h, method, path, body)
	if err != nil {
		b.Fatalf("%s %s: %v", method, path, err)
	}
	return out
}

func (b *bench) keep(h engine.Handle, v string) { b.Helper(); b.do(h, "POST", "/keep", []byte(v)) }

func (b *bench) kept(h engine.Handle) string {
	b.Helper()
	var v string
	b.decode(b.do(h, "GET", "/keep", nil), &v)
	return v
}

func (b *bench) writeFile(h engine.Handle, path, v string) {
	b.Helper()
	b.do(h, "POST", "/file?path="+url.QueryEscape(path), []byte(v))
}

func (b *bench) readFile(h engine.Handle, path string) string {
	b.Helper()
	var v string
	b.decode(b.do(h, "GET", "/file?path="+url.QueryEscape(path), nil), &v)
	return v
}

func (b *bench) decode(data []byte, v any) {
	b.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		b.Fatalf("%s: %v", data, err)
	}
}

// Info is what the guest says of itself.
type Info struct {
	PID      int      `json:"pid"`
	UID      int      `json:"uid"`
	Hostname string   `json:"hostname"`
	Stdin    string   `json:"stdin"`
	Env      []string `json:"env"`
	Args     []string `json:"args"`
	CPUs     int      `json:"cpus"`
	MemoryKB int64    `json:"mem_kb"`
	Disk     int64    `json:"disk"`
	Shm      int64    `json:"shm"`
	Caps     string   `json:"caps"`
}

func (b *bench) info(h engine.Handle) Info {
	b.Helper()
	var i Info
	b.decode(b.do(h, "GET", "/info", nil), &i)
	return i
}
