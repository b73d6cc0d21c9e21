package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/testkit"
)

const (
	publicIP  = "203.0.113.80"
	hostIP    = "198.51.100.1"
	worldIP   = "198.51.100.2"
	worldPath = namespaceDir + "/world"
	upLink    = "up0"
	hostPort  = "7777"
	testTag   = "a1b2c3"
)

// elsewhere are addresses that do exist behind the uplink and that no sandbox
// may reach.
var elsewhere = []string{
	"10.200.0.5", "172.20.0.5", "192.168.7.5", "100.64.1.1", "169.254.169.254", "169.254.1.1",
	"198.18.0.9", "192.0.0.9", "240.0.0.9",
}

// inside runs fn on a thread of the namespace at path.
func inside(path string, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		result <- func() error {
			ns, err := netns.GetFromPath(path)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-result
}

// hang is how long what has to succeed may take on a busy machine.
const hang = 30 * time.Second

// dialFrom connects out of a namespace and returns what the other side says. It
// is for what is refused, in silence mostly, and so waits for a moment only.
func dialFrom(path, network, addr string) (string, error) {
	return dialWithin(path, network, addr, 250*time.Millisecond)
}

// reach is dialFrom for what is allowed.
func reach(path, network, addr string) (string, error) {
	return dialWithin(path, network, addr, hang)
}

func dialWithin(path, network, addr string, most time.Duration) (string, error) {
	var said string
	err := inside(path, func() error {
		c, err := net.DialTimeout(network, addr, most)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(max(most, time.Second))); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		b := make([]byte, 256)
		n, err := c.Read(b)
		said = string(b[:n])
		return err
	})
	return said, err
}

// greeter answers each connection with the address it comes from.
func greeter(t *testing.T, path, network, addr string) {
	t.Helper()
	var l net.Listener
	listen := func() (err error) { l, err = net.Listen(network, addr); return err }
	var err error
	if path == "" {
		err = listen()
	} else {
		err = inside(path, listen)
	}
	if err != nil {
		t.Fatalf("listening on %s: %v", addr, err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 16)
				if _, err := c.Read(b); err == nil {
					_, _ = io.WriteString(c, c.RemoteAddr().String())
				}
			}()
		}
	}()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newWorld puts a network behind the test's host: one namespace that plays the
// public internet and every private network at once.
func newWorld(t *testing.T) {
	t.Helper()
	testkit.Root(t)
	if _, err := os.Stat("/usr/sbin/nft"); err != nil {
		testkit.Missing(t, "nftables", err.Error())
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	must(t, newNamespace(worldPath))
	t.Cleanup(func() {
		must(t, deleteLink(upLink))
		must(t, deleteNamespace(worldPath))
	})
	ns, err := netns.GetFromPath(worldPath)
	must(t, err)
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = upLink
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(ns))
	must(t, netlink.LinkAdd(veth))
	up, err := netlink.LinkByName(upLink)
	must(t, err)
	must(t, netlink.AddrAdd(up, address(hostIP+"/24")))
	must(t, netlink.LinkSetUp(up))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP(worldIP)}))

	h, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer h.Close()
	eth, err := h.LinkByName("eth0")
	must(t, err)
	wlo, err := h.LinkByName("lo")
	must(t, err)
	must(t, h.LinkSetUp(wlo))
	must(t, h.LinkSetUp(eth))
	must(t, h.AddrAdd(eth, address(worldIP+"/24")))
	must(t, h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(hostIP)}))
	for _, ip := range append([]string{publicIP}, elsewhere...) {
		must(t, h.AddrAdd(wlo, address(ip+"/32")))
	}
	greeter(t, worldPath, "tcp4", "0.0.0.0:80")
	greeter(t, "", "tcp", ":"+hostPort)
}

func address(s string) *netlink.Addr {
	a, err := netlink.ParseAddr(s)
	if err != nil {
		panic(err)
	}
	return a
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newManager makes one and purges its tag at the end.
func newManager(t *testing.T, change func(*Config)) *Manager {
	t.Helper()
	cfg := Config{Tag: testTag, StateDir: t.TempDir(), Logger: quiet(), MaxSlots: 300}
	if change != nil {
		change(&cfg)
	}
	m, err := New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() {
		must(t, m.Purge(context.Background()))
		noTrace(t, cfg.Tag)
	})
	return m
}

// noTrace fails when anything of the tag is left.
func noTrace(t *testing.T, tagName string) {
	t.Helper()
	tg, err := parseTag(tagName)
	must(t, err)
	links, err := tagLinks(tg)
	must(t, err)
	spaces, err := tagNamespaces(tg)
	must(t, err)
	if len(links) != 0 || len(spaces) != 0 {
		t.Errorf("left behind: %d links, %v", len(links), spaces)
	}
	r := rules{tag: tg}
	if _, err := r.look(); err == nil {
		t.Error("the table is left behind")
	}
}

func acquire(t *testing.T, m *Manager, n int, p Policy) Slot {
	t.Helper()
	s, err := m.Acquire(t.Context(), owner(n), p)
	must(t, err)
	return s
}

func owner(n int) engine.InstanceID { return engine.InstanceID(fmt.Sprintf("%032x", n)) }

// resolver is a fake upstream on one address, UDP and TCP; it answers each
// question with its address records' count set to seen.
type resolver struct{ seen atomic.Int64 }

func newResolver(t *testing.T, at string) *resolver {
	t.Helper()
	r := &resolver{}
	reply := func(q []byte) []byte {
		r.seen.Add(1)
		a := append([]byte(nil), q...)
		a[2], a[3] = a[2]|dnsFlagAnswer, 0x80
		a[7] = 1
		// A pointer to the question's name, type A, class IN, one minute.
		a = append(a, 0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
		return append(a, netip.MustParseAddr(publicIP).AsSlice()...)
	}
	pc, err := net.ListenPacket("udp4", at)
	must(t, err)
	l, err := net.Listen("tcp4", at)
	must(t, err)
	t.Cleanup(func() { pc.Close(); l.Close() })
	go func() {
		b := make([]byte, maxDNSQuery)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			// First a forgery with another id: it must not be believed.
			forged := reply(b[:n])
			forged[0] ^= 0xff
			_, _ = pc.WriteTo(forged, from)
			_, _ = pc.WriteTo(reply(b[:n]), from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, maxDNSQuery)
			if n, err := readFrame(c, b); err == nil {
				_ = writeFrame(c, reply(b[:n]))
			}
			c.Close()
		}
	}()
	return r
}

func dnsQuery(name string) []byte {
	q := []byte{0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0}
	for label := range strings.SplitSeq(name, ".") {
		q = append(append(q, byte(len(label))), label...)
	}
	return binary.BigEndian.AppendUint16(append(q, 0, 0, 1), 1)
}

// lookUp asks a slot's gateway and returns the answer.
func lookUp(s Slot, network string) ([]byte, error) {
	var answer []byte
	err := inside(s.Net.NamespacePath, func() error {
		c, err := net.DialTimeout(network, s.Net.Gateway+":53", hang)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(hang)); err != nil {
			return err
		}
		b := make([]byte, maxDNSQuery)
		q := dnsQuery("private.example")
		var n int
		if network == "tcp" {
			if err := writeFrame(c, q); err != nil {
				return err
			}
			n, err = readFrame(c, b)
		} else {
			if _, err := c.Write(q); err != nil {
				return err
			}
			n, err = c.Read(b)
		}
		answer = b[:n]
		return err
	})
	return answer, err
}

func rcode(answer []byte) int {
	if len(answer) < dnsHeader {
		return -1
	}
	return int(answer[3] & 0x0f)
}

// sendFrom sends one datagram with a source address the namespace does not have.
func sendFrom(path, source, dest string, port int) error {
	return inside(path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(source).As4()}),
			unix.Sendto(fd, []byte("spoof"), 0, &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(dest).As4()}),
		)
	})
}
