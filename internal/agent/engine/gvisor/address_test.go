package gvisor_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/enginetest"
	"skerry.dev/skerry/internal/testkit"
)

// refill gives a slot back the addresses an instance took out of it.
func (w *world) refill(t *testing.T, slot engine.Network) {
	t.Helper()
	ns, err := netns.GetFromName(filepath.Base(slot.NamespacePath))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	link, err := inside.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mask := net.CIDRMask(slot.PrefixLen, 32)
	if err := inside.AddrReplace(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(slot.GuestAddr), Mask: mask}}); err != nil {
		t.Fatal(err)
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(slot.Gateway)}); err != nil {
		t.Fatal(err)
	}
}

func dialled(t *testing.T, e engine.Engine, h engine.Handle) map[string]string {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://guest/dialled", nil)
	res, err := enginetest.Client(e, h).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var state map[string]string
	if err := json.NewDecoder(res.Body).Decode(&state); err != nil {
		t.Fatal(err)
	}
	return state
}

// A copy that comes back under the same address still has its connections. Where
// the other end lives they go on; where it does not, the first word of the guest
// shows it.
func TestRS03_TheSameAddressAgain(t *testing.T) {
	for name, peerLives := range map[string]bool{"peer lives": true, "peer is gone": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e := w.engine(t)
			spec, h := running(t, w, e)
			l, err := net.Listen("tcp", net.JoinHostPort(spec.Network.Gateway, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accepted := make(chan net.Conn, 1)
			go func() {
				if c, err := l.Accept(); err == nil {
					accepted <- c
				}
			}()
			if err := get(t, e, h, "/dial?addr="+l.Addr().String()); err != nil {
				t.Fatal(err)
			}
			peer := <-accepted
			defer peer.Close()
			dir := t.TempDir()
			if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			destroyInstance(t, e, spec.ID)
			if !peerLives { // and nobody is told
				_ = peer.(*net.TCPConn).SetLinger(0)
				_ = peer.Close()
			}
			again := w.spec(t)
			again.Network = spec.Network
			w.refill(t, again.Network)
			h, err = e.Prepare(t.Context(), again)
			if err == nil {
				h, err = e.Restore(t.Context(), h, dir)
			}
			t.Cleanup(func() { destroyInstance(t, e, again.ID) })
			if err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, 15*time.Second, "the guest answers", func() bool { return get(t, e, h, "/keep") == nil })
			state := dialled(t, e, h) // writes
			if peerLives {
				_ = peer.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil || state["read"] != "" {
					t.Errorf("the connection does not go on: %v, %v", state, err)
				}
				return
			}
			testkit.Eventually(t, 20*time.Second, "it ends", func() bool { return dialled(t, e, h)["read"] != "" })
			t.Logf("%v", dialled(t, e, h))
		})
	}
}

// LL-01: neither we nor the shim keep a descriptor of an instance that was.
func TestLL01_DescriptorsStayAtBaseline(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	info, err := w.shim.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cycle := func() {
		t.Helper()
		spec := w.spec(t)
		h, err := e.Prepare(t.Context(), spec)
		if err == nil {
			h, err = e.Start(t.Context(), h)
		}
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := e.Checkpoint(t.Context(), h, engine.CheckpointOptions{Dir: dir}); err != nil {
			t.Fatal(err)
		}
		destroyInstance(t, e, spec.ID)
		spec = w.spec(t)
		h, err = e.Prepare(t.Context(), spec)
		if err == nil {
			_, err = e.Restore(t.Context(), h, dir)
		}
		if err != nil {
			t.Fatal(err)
		}
		destroyInstance(t, e, spec.ID)
	}
	count := func() (n int) {
		for _, pid := range []string{"self", strconv.Itoa(info.PID)} {
			fds, _ := filepath.Glob("/proc/" + pid + "/fd/*")
			n += len(fds)
		}
		return n
	}
	cycle()
	before := count()
	for range cycles() / 2 {
		cycle()
	}
	testkit.Eventually(t, 10*time.Second, "the descriptors are closed", func() bool { return count() <= before })
}
