package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

// image takes a checkpoint into a directory of its own.
func (b *bench) image(h engine.Handle, opts engine.CheckpointOptions) string {
	b.Helper()
	opts.Dir = b.TempDir()
	if err := b.e.Checkpoint(b.Context(), h, opts); err != nil {
		b.Fatalf("checkpoint: %v", err)
	}
	return opts.Dir
}

// end stops and destroys an instance, as after a pause.
func (b *bench) end(spec engine.Spec, h engine.Handle) {
	b.Helper()
	if err := b.e.Stop(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	b.destroy(spec.ID)
}

// What a checkpoint says of itself is what the machine is and the files are.
func checkpointDescribed(b *bench) {
	_, h := busy(b)
	can := b.e.Probe(b.Context())
	if len(can.CPUFeatures) == 0 {
		b.Error("the engine names no feature of the processor")
	}
	for _, diskOnly := range []bool{false, true} {
		dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true, DiskOnly: diskOnly})
		info, err := engine.ReadCheckpoint(dir)
		if err != nil {
			b.Fatal(err)
		}
		if info.Engine != can.Name || info.Version != can.Version || info.Memory == diskOnly ||
			info.DiskBytes != b.spec.Resources.DiskBytes || !slices.Equal(info.CPUFeatures, can.CPUFeatures) {
			b.Errorf("described as %+v", info)
		}
		found, err := engine.FilesOf(dir)
		if err != nil {
			b.Fatal(err)
		}
		delete(found, engine.CheckpointFile)
		if !maps.Equal(found, info.Files) {
			b.Errorf("described files %v, there are %v", info.Files, found)
		}
		if err := errors.Join(info.Whole(dir), info.Fits(can)); err != nil {
			b.Error(err)
		}
	}
}

// A checkpoint of another engine version, or of a processor with more, is
// refused by name before anything is started.
func restoreMismatch(b *bench) {
	_, h := busy(b)
	dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	spec := b.Spec(b.T)
	prepared := b.prepare(spec)
	path := filepath.Join(dir, engine.CheckpointFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	version := b.e.Probe(b.Context()).Version
	for name, c := range map[string]struct {
		key   string
		value any
		words []string
	}{
		"version":   {"engine_version", "elder-7", []string{"elder-7", version}},
		"engine":    {"engine", "other", []string{"other"}},
		"processor": {"cpu_features", []string{"warp9"}, []string{"warp9"}},
		"format":    {"format", 99, []string{"99"}},
		"disk":      {"disk_bytes", 12345, []string{"12345", strconv.FormatInt(spec.Resources.DiskBytes, 10)}},
	} {
		var fields map[string]any
		b.decode(whole, &fields)
		fields[c.key] = c.value
		changed, err := json.Marshal(fields)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			b.Fatal(err)
		}
		_, err = b.e.Restore(b.Context(), prepared, dir)
		if !errors.Is(err, engine.ErrUnsupported) {
			b.Errorf("%s: %v", name, err)
			continue
		}
		for _, word := range c.words {
			if !strings.Contains(err.Error(), word) {
				b.Errorf("%s: %v: does not name %s", name, err, word)
			}
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		b.Fatal(err)
	}
	h, err = b.e.Restore(b.Context(), prepared, dir) // what was refused can still be restored
	if err != nil {
		b.Fatal(err)
	}
	b.up(h)
	if b.kept(h) != "in memory" {
		b.Error("memory is lost")
	}
}

// The wall clock of a copy is right although time has passed without it.
func restoreClock(b *bench) {
	spec, h := busy(b)
	dir := b.image(h, engine.CheckpointOptions{})
	b.end(spec, h)
	<-time.After(3 * time.Second)
	r, err := b.e.Restore(b.Context(), b.prepare(b.Spec(b.T)), dir)
	if err != nil {
		b.Fatal(err)
	}
	b.up(r) // at its first answer, not later
	var ns int64
	before := time.Now()
	b.decode(b.do(r, "GET", "/time", nil), &ns)
	inside := time.Unix(0, ns)
	if d := max(before.Sub(inside), inside.Sub(time.Now())); d > 500*time.Millisecond {
		b.Errorf("the clock inside is %s off", d)
	}
}

// Memory and processors of a copy are those it was given, more or less than the
// source's; /dev/shm alone stays what it was.
func restoreOtherLimits(b *bench) {
	_, h := busy(b)
	dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	for _, factor := range []int64{1, 4} { // half and double
		spec := b.Spec(b.T)
		spec.Resources.MemoryBytes = spec.Resources.MemoryBytes / 2 * factor
		spec.Resources.CPUMillis *= int(factor)
		r := b.restore(spec, dir)
		if b.kept(r) != "in memory" || b.readFile(r, "/note") != "on disk" {
			b.Errorf("restored: %q, %q", b.kept(r), b.readFile(r, "/note"))
		}
		if i := b.info(r); b.Limits && i.MemoryKB != spec.Resources.MemoryBytes>>10 {
			b.Errorf("MemTotal %d kB of %d", i.MemoryKB, spec.Resources.MemoryBytes>>10)
		}
		b.destroy(spec.ID)
	}
}

// Eight copies start from one directory at the same time, each in a slot of its
// own, and the directory is needed no more when they have.
func restoreEight(b *bench) {
	_, h := busy(b)
	dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	var mu sync.Mutex
	said := map[string]bool{}
	copies := make([]engine.Handle, 8)
	var wg sync.WaitGroup
	for i := range copies {
		spec := b.Spec(b.T)
		wg.Go(func() {
			r, err := b.e.Prepare(b.Context(), spec)
			if err == nil {
				r, err = b.e.Restore(b.Context(), r, dir)
			}
			if err != nil {
				b.Error(err)
				return
			}
			copies[i] = r
		})
	}
	wg.Wait()
	if b.Failed() {
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	for i, r := range copies {
		wg.Go(func() {
			b.up(r)
			mine := fmt.Sprintf("copy %d", i)
			random, err := b.try(r, "GET", "/random", nil)
			if err == nil {
				_, err = b.try(r, "POST", "/keep", []byte(mine))
			}
			kept, err2 := b.try(r, "GET", "/keep", nil)
			if err = errors.Join(err, err2); err != nil || !strings.Contains(string(kept), mine) {
				b.Errorf("copy %d: %s %v", i, kept, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if said[string(random)] {
				b.Errorf("copies share their randomness: %s", random)
			}
			said[string(random)] = true
		})
	}
	wg.Wait()
	if b.kept(h) != "in memory" {
		b.Error("the source was disturbed")
	}
}

// A frozen instance is as frozen after a checkpoint, and its copy is not.
func checkpointFrozen(b *bench) {
	_, h := busy(b)
	if err := b.e.Freeze(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	ctx, cancel := context.WithTimeout(b.Context(), 200*time.Millisecond)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest/keep", nil)
	if res, err := b.client(h).Do(req); err == nil {
		_ = res.Body.Close()
		b.Error("it runs after the checkpoint")
	}
	if r := b.restore(b.Spec(b.T), dir); b.kept(r) != "in memory" {
		b.Error("the copy has lost its memory")
	}
	if err := b.e.Thaw(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	b.up(h) // a connection opened at this very moment may be reset
	if b.kept(h) != "in memory" {
		b.Error("the source has lost its memory")
	}
}

// The agent dies with the source frozen, as between a checkpoint and its seal:
// the next one thaws it, or takes another checkpoint, or destroys it.
func checkpointAgentDies(b *bench) {
	spec, h := busy(b)
	for round := range 2 {
		b.image(h, engine.CheckpointOptions{})
		b.restartAgent()
		var err error
		if h, err = b.e.Recover(b.Context(), h); err != nil {
			b.Fatal(err)
		}
		if round == 1 {
			break
		}
		for range 2 {
			if err := b.e.Thaw(b.Context(), h); err != nil {
				b.Fatal(err)
			}
		}
		if b.kept(h) != "in memory" {
			b.Error("memory is lost")
		}
	}
	again := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	if r := b.restore(b.Spec(b.T), again); b.kept(r) != "in memory" {
		b.Error("the copy has lost its memory")
	}
	b.destroy(spec.ID)
}

// A caller who gives up leaves the instance running and the directory empty, at
// whatever moment.
func checkpointGivenUp(b *bench) {
	_, h := busy(b)
	_, _ = b.try(h, "POST", "/alloc?bytes=64000000", nil)
	whole, given := 0, 0
	for _, after := range []time.Duration{0, 2, 5, 10, 20, 40, 80, 160} {
		dir := b.TempDir()
		ctx, cancel := context.WithTimeout(b.Context(), after*time.Millisecond)
		err := b.e.Checkpoint(ctx, h, engine.CheckpointOptions{Dir: dir, LeaveRunning: after%4 == 0})
		cancel()
		if err == nil {
			whole++
			if err := b.e.Thaw(b.Context(), h); err != nil {
				b.Fatal(err)
			}
		} else if entries, readErr := os.ReadDir(dir); readErr != nil || len(entries) > 0 {
			b.Errorf("given up after %d ms (%v): left %v", after, err, entries)
		} else {
			given++
		}
		if b.kept(h) != "in memory" {
			b.Errorf("given up after %d ms: the instance is damaged", after)
		}
	}
	b.Logf("%d given up, %d done", given, whole)
	if r := b.restore(b.Spec(b.T), b.image(h, engine.CheckpointOptions{LeaveRunning: true})); b.kept(r) != "in memory" {
		b.Error("a checkpoint after the ones given up is not right")
	}
}

// Destroy does not wait for a checkpoint.
func destroyDuringCheckpoint(b *bench) {
	for _, after := range []time.Duration{0, 3, 10, 30, 60} {
		spec, h := busy(b)
		_, _ = b.try(h, "POST", "/alloc?bytes=64000000", nil)
		dir := b.TempDir()
		var wg sync.WaitGroup
		wg.Go(func() { _ = b.e.Checkpoint(b.Context(), h, engine.CheckpointOptions{Dir: dir}) })
		<-time.After(after * time.Millisecond)
		b.destroy(spec.ID)
		wg.Wait()
		for _, leak := range b.Leaks(b.T) {
			b.Errorf("destroyed %d ms into a checkpoint: left behind: %s", after, leak)
		}
	}
}

// Established connections do no harm: the source keeps them over a snapshot,
// listening sockets answer in the copy, and what was connected there comes to
// an end.
func restoreConnections(b *bench) {
	if !b.Kernel {
		b.Skip("this engine's guests have no sockets")
	}
	spec, h := busy(b)
	b.do(h, "POST", "/listen?port=8001", nil)
	peer := b.peer(spec)
	b.do(h, "POST", "/dial?addr="+peer.addr, nil)
	in := make([]net.Conn, 3)
	for i := range in {
		c, err := b.e.Dial(b.Context(), h, GuestPort)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /hang HTTP/1.1\r\nHost: guest\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		in[i] = c
	}
	dir := b.image(h, engine.CheckpointOptions{LeaveRunning: true})
	// The source's connection outward is still one, both ways.
	if state := b.dialled(h); state["read"] != "" || state["write"] != "" {
		b.Errorf("the source's connection after its snapshot: %v", state)
	}
	peer.heard(b)

	r := b.restore(b.Spec(b.T), dir)
	if b.kept(r) != "in memory" {
		b.Error("memory is lost")
	}
	testkit.Eventually(b, 5*time.Second, "the listener answers in the copy", func() bool {
		c, err := b.e.Dial(b.Context(), r, 8001)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		got, _ := io.ReadAll(c)
		return string(got) == "1"
	})
	began := time.Now()
	testkit.Eventually(b, 20*time.Second, "the copy's connection outward ends with an error", func() bool {
		state := b.dialled(r)
		return state["read"] != ""
	})
	b.Logf("it ended as %v, within %s", b.dialled(r), time.Since(began).Round(time.Millisecond))
	if state := b.dialled(h); state["read"] != "" || state["write"] != "" {
		b.Errorf("the copy disturbed the source's connection: %v", state)
	}
	// A new one goes out from the copy's own address.
	other := b.peer(b.spec)
	b.do(r, "POST", "/dial?addr="+other.addr, nil)
	if state := b.dialled(r); state["read"] != "" || state["write"] != "" {
		b.Errorf("a new connection of the copy: %v", state)
	}
	other.heard(b)
}

func (b *bench) dialled(h engine.Handle) map[string]string {
	b.Helper()
	var state map[string]string
	b.decode(b.do(h, "GET", "/dialled", nil), &state)
	return state
}

// peer is somebody outside whom a guest connects to.
type peer struct {
	addr  string
	bytes chan struct{} // receives when there was something to read
}

// peer listens on the gateway of the instance's slot.
func (b *bench) peer(spec engine.Spec) *peer {
	b.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(spec.Network.Gateway, "0"))
	if err != nil {
		b.Fatal(err)
	}
	p := &peer{addr: l.Addr().String(), bytes: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				buf := make([]byte, 1)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					select {
					case p.bytes <- struct{}{}:
					default:
					}
				}
			})
		}
	})
	b.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return p
}

func (p *peer) heard(b *bench) {
	b.Helper()
	select {
	case <-p.bytes:
	case <-time.After(5 * time.Second):
		b.Error("nothing arrived outside")
	}
}

// verified is the guest's word about its disk.
type verified struct {
	Records uint64 `json:"records"`
	Tail    int    `json:"tail"`
	Torn    int    `json:"torn"`
	Newest  uint64 `json:"newest"`
}

// A disk that is written and synced all the time is whole in each copy, and has
// all that was synced before: with memory, where the writing goes on, and alone.
func restoreWrites(b *bench) {
	if !b.Kernel {
		b.Skip("this engine's guests have no disk")
	}
	spec, h := busy(b)
	b.do(h, "POST", "/write", nil)
	rounds := max(b.Cycles, 4)
	var total uint64
	for round := range rounds {
		diskOnly := round%2 == 1
		var before uint64
		testkit.Eventually(b, 20*time.Second, "more is written", func() bool {
			b.decode(b.do(h, "GET", "/written", nil), &before)
			return before > total+20
		})
		dir := b.image(h, engine.CheckpointOptions{DiskOnly: diskOnly})
		b.end(spec, h)
		spec = b.Spec(b.T)
		h = b.restore(spec, dir)
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		if !diskOnly {
			b.do(h, "POST", "/stopwriting", nil)
		}
		var v verified
		b.decode(b.do(h, "GET", "/verify", nil), &v)
		if v.Records < before || v.Torn > 0 || v.Tail > 0 || v.Newest > v.Records {
			b.Fatalf("round %d (disk only: %v): %d were safe, found %+v", round, diskOnly, before, v)
		}
		total = v.Records
		b.do(h, "POST", "/write", nil)
	}
	b.Logf("%d cycles, %d records", rounds, total)
}

// Nothing is left of many checkpoints and copies.
func restoreCycles(b *bench) {
	spec, h := busy(b)
	rounds := max(b.Cycles, 6)
	for round := range rounds {
		dir := b.image(h, engine.CheckpointOptions{DiskOnly: round%5 == 4})
		b.end(spec, h)
		spec = b.Spec(b.T)
		h = b.restore(spec, dir)
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		if round%5 == 4 {
			b.keep(h, "in memory")
		}
		if b.kept(h) != "in memory" || b.readFile(h, "/note") != "on disk" {
			b.Fatalf("round %d: %q, %q", round, b.kept(h), b.readFile(h, "/note"))
		}
	}
	b.destroy(spec.ID)
	for _, leak := range b.Leaks(b.T) {
		b.Errorf("left behind after %d cycles: %s", rounds, leak)
	}
}
