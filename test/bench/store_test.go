package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
	"skerry.dev/skerry/test/instance"
)

const (
	// storeRounds is how many hosts in turn are given what the one before had.
	storeRounds = 7
	// storeMB of random bytes are what each sandbox has made, which no compression
	// makes less.
	storeMB = 64
)

func storeFill() string {
	return fmt.Sprintf("head -c %d /dev/urandom >/home/user/made && sync && echo made", storeMB<<20)
}

// BenchmarkResumeFromStore is a resume on a host that has nothing, neither state
// nor image, up to the first answered command, after the host that had it is gone
// for good; beside runsc's restore of a sandbox with as much in it from its own
// disk. The hosts are machines of their own, and the store is a directory behind
// the server.
func BenchmarkResumeFromStore(b *testing.B) {
	raw := newBareLike(b, modest())
	one := raw.start(b)
	defer func() { one.remove(b) }()
	one.answers(b, "made\n", "/bin/sh", "-c", storeFill())
	dirs := &images{b: b}
	defer dirs.drop()

	f, err := fleet.New(context.Background(), fleet.Options{Servers: 1, Agents: 1, ServerSettings: []string{"SKERRY_HOST_SILENCE=4s", "SKERRY_HOST_LOOK=2s"}, AgentSettings: []string{"SKERRY_HEARTBEAT=1s"}})
	defer func() {
		if err := f.Purge(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	if err != nil {
		b.Fatal(err)
	}
	request := modest()
	request["vcpus"] = 0.5
	var box instance.Sandbox
	server := f.Servers[0]
	server.Must(b, "POST", "/v1/sandboxes", request, &box)
	if got := server.Sh(b, box.ID, storeFill()); got.Stdout != "made\n" {
		b.Fatalf("filling it: %+v", got)
	}
	at := f.Hosts[0]
	for b.Loop() {
		var ours, bare series
		var fetched []float64
		for range storeRounds {
			if err := f.Login(b.Context()); err != nil {
				b.Fatal(err)
			}
			at = leave(b, f, box.ID, at)
			before := received(b, at)
			ours = append(ours, timed(func() {
				server.Must(b, "POST", "/v1/sandboxes/"+box.ID+"/resume", map[string]any{}, nil)
				if got := server.Sh(b, box.ID, "echo answered"); got.Stdout != "answered\n" {
					b.Fatalf("it answers %+v", got)
				}
			}))
			fetched = append(fetched, float64(received(b, at)-before)/(1<<20))

			dir := dirs.next()
			one.checkpoint(b, dir)
			one.remove(b)
			one = raw.place(b)
			bare = append(bare, timed(func() {
				one.restore(b, dir)
				one.spawn(b)
			}))
		}
		total := 0.0
		for _, mb := range fetched {
			total += mb
		}
		b.ReportMetric(total/storeRounds, "fetched-MB")
		b.ReportMetric(total/storeRounds/ours.at(.5).Seconds(), "MB/s")
		b.ReportMetric(milliseconds(ours.at(.5)), "ours-p50-ms")
		b.ReportMetric(milliseconds(ours.at(0)), "ours-min-ms")
		b.ReportMetric(milliseconds(ours.at(1)), "ours-max-ms")
		b.ReportMetric(milliseconds(bare.at(.5)), "bare-p50-ms")
		b.ReportMetric(milliseconds(bare.at(1)), "bare-max-ms")
		b.ReportMetric(float64(ours.at(.5))/float64(bare.at(.5)), "ratio-p50")
	}
	server.Must(b, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)
}

// leave pauses a sandbox, waits until the store has it, and takes its host away
// for good; the one that is returned is the only one left, and new.
func leave(b *testing.B, f *fleet.Fleet, box string, from *fleet.Host) *fleet.Host {
	b.Helper()
	server := f.Servers[0]
	server.Must(b, "POST", "/v1/sandboxes/"+box+"/pause", map[string]any{}, nil)
	testkit.Eventually(b, time.Minute, "the state is in the store", func() bool {
		var now struct{ Stored bool }
		server.Must(b, "GET", "/v1/sandboxes/"+box, nil, &now)
		return now.Stored
	})
	if err := f.Remove(b.Context(), from); err != nil {
		b.Fatal(err)
	}
	if err := from.Wait(b.Context(), "unreachable"); err != nil {
		b.Fatal(err)
	}
	server.Must(b, "DELETE", "/v1/hosts/"+from.ID, nil, nil)
	to, err := f.AddHost("SKERRY_HEARTBEAT=1s")
	if err != nil {
		b.Fatal(err)
	}
	if err := to.Announce(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	if err := to.Join(b.Context()); err != nil {
		b.Fatal(err)
	}
	return to
}

func received(b *testing.B, h *fleet.Host) uint64 {
	b.Helper()
	n, err := h.Received()
	if err != nil {
		b.Fatal(err)
	}
	return n
}
