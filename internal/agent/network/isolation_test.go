package network

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"skerry.dev/skerry/internal/testkit"
)

func TestS14_NW01_OnlyThePublicInternetIsReached(t *testing.T) {
	newWorld(t)
	m := newManager(t, func(c *Config) { c.Denied = []netip.Prefix{netip.MustParsePrefix("203.0.113.99/32")} })
	a, b := acquire(t, m, 1, Policy{Internet: true}), acquire(t, m, 2, Policy{Internet: true})
	for _, s := range []Slot{a, b} {
		greeter(t, s.Net.NamespacePath, "tcp4", ":5000")
	}
	from := a.Net.NamespacePath

	said, err := reach(from, "tcp", publicIP+":80")
	if err != nil || !strings.HasPrefix(said, hostIP+":") {
		t.Fatalf("the public internet sees %q, %v; want the host's address", said, err)
	}
	if said, err := reach(from, "tcp", a.Net.GuestAddr+":5000"); err != nil {
		t.Fatalf("the guest cannot reach itself: %q %v", said, err)
	}
	denied := []string{
		hostIP + ":" + hostPort, a.Net.Gateway + ":" + hostPort, b.Net.Gateway + ":" + hostPort,
		b.Net.GuestAddr + ":5000", b.Net.Gateway + ":53", worldIP + ":8080", "203.0.113.99:80",
	}
	for _, ip := range elsewhere {
		denied = append(denied, ip+":80")
	}
	for _, addr := range denied {
		if said, err := dialFrom(from, "tcp", addr); err == nil {
			t.Errorf("%s is reached and says %q", addr, said)
		}
	}
	// The same addresses do answer the host itself: the refusals above prove the
	// rules, not a missing route. 240/4 and 198.18 included.
	for _, ip := range elsewhere {
		c, err := net.DialTimeout("tcp", ip+":80", hang)
		if err != nil {
			t.Errorf("the test's own network has no %s: %v", ip, err)
			continue
		}
		c.Close()
	}

	// The host opens connections to guests, nobody else does.
	c, err := net.DialTimeout("tcp", a.Net.GuestAddr+":5000", hang)
	if err != nil {
		t.Errorf("the host cannot reach the guest: %v", err)
	} else {
		c.Close()
	}
	if said, err := dialFrom(worldPath, "tcp", a.Net.GuestAddr+":5000"); err == nil {
		t.Errorf("the outside reaches a guest, which says %q", said)
	}
}

func TestS14_NW04_ZeroPolicyReachesNothing(t *testing.T) {
	newWorld(t)
	r := newResolver(t, "127.0.0.53:53")
	m := newManager(t, func(c *Config) { c.DNSUpstreams = []string{"127.0.0.53"} })
	s := acquire(t, m, 1, Policy{})
	if said, err := dialFrom(s.Net.NamespacePath, "tcp", publicIP+":80"); err == nil {
		t.Errorf("the internet is reached: %q", said)
	}
	for _, network := range []string{"udp", "tcp"} {
		if answer, err := lookUp(s, network); err != nil || rcode(answer) != dnsRefused {
			t.Errorf("DNS over %s: rcode %d, %v; want refused", network, rcode(answer), err)
		}
	}
	if n := r.seen.Load(); n != 0 {
		t.Errorf("%d queries left the host", n)
	}
}

func TestS14_DNSWorksThroughAResolverOnlyTheHostReaches(t *testing.T) {
	newWorld(t)
	newResolver(t, "127.0.0.53:53")
	// The first upstream never answers: nothing listens there.
	m := newManager(t, func(c *Config) { c.DNSUpstreams = []string{"127.0.0.9:53", "127.0.0.53:53"} })
	s := acquire(t, m, 1, Policy{Internet: true})
	for _, network := range []string{"udp", "tcp"} {
		answer, err := lookUp(s, network)
		if err != nil || rcode(answer) != 0 || !bytes.HasSuffix(answer, netip.MustParseAddr(publicIP).AsSlice()) {
			t.Errorf("DNS over %s: %x %v", network, answer, err)
		}
	}
	// A taken-away policy closes the forwarder as well.
	must(t, m.SetPolicy(t.Context(), s.Index, Policy{}))
	if answer, err := lookUp(s, "udp"); err != nil || rcode(answer) != dnsRefused {
		t.Errorf("after the policy was taken away: rcode %d, %v", rcode(answer), err)
	}
}

func TestS14_ForgedSourcesGoNowhere(t *testing.T) {
	newWorld(t)
	m := newManager(t, nil)
	a, b := acquire(t, m, 1, Policy{Internet: true}), acquire(t, m, 2, Policy{Internet: true})
	var collector net.PacketConn
	must(t, inside(worldPath, func() (err error) {
		collector, err = net.ListenPacket("udp4", publicIP+":9")
		return err
	}))
	defer collector.Close()
	for _, source := range []string{b.Net.GuestAddr, a.Net.Gateway, hostIP, "203.0.113.7", "127.0.0.1"} {
		if err := sendFrom(a.Net.NamespacePath, source, publicIP, 9); err != nil {
			t.Logf("the kernel refuses source %s already: %v", source, err)
		}
	}
	// The honest one comes last and alone; packets of one path keep their order.
	must(t, sendFrom(a.Net.NamespacePath, a.Net.GuestAddr, publicIP, 9))
	must(t, collector.SetReadDeadline(time.Now().Add(hang)))
	buf := make([]byte, 64)
	_, from, err := collector.ReadFrom(buf)
	must(t, err)
	if !strings.HasPrefix(from.String(), hostIP+":") {
		t.Errorf("a packet from %s got out", from)
	}
	must(t, collector.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if n, from, err := collector.ReadFrom(buf); err == nil {
		t.Errorf("a second packet got out: %d bytes from %s", n, from)
	}
}

func TestS14_NW03_IPv6IsClosed(t *testing.T) {
	newWorld(t)
	m := newManager(t, nil)
	s := acquire(t, m, 1, Policy{Internet: true})
	if err := inside(s.Net.NamespacePath, func() error { return setSysctl("ipv6/conf/all/disable_ipv6", "1") }); err != nil {
		testkit.Missing(t, "ipv6", err.Error())
	}
	if _, err := dialFrom(s.Net.NamespacePath, "tcp6", "[::1]:1"); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("the namespace has IPv6: %v", err)
	}
	// Even somebody who switches it on, on both ends, gets nothing through.
	for _, which := range []string{"all", "default", guestLink} {
		must(t, inside(s.Net.NamespacePath, func() error { return setSysctl("ipv6/conf/"+which+"/disable_ipv6", "0") }))
	}
	link := m.tag.link(s.Index)
	must(t, setSysctl("ipv6/conf/"+link+"/disable_ipv6", "0"))
	hostEnd, err := netlink.LinkByName(link)
	must(t, err)
	must(t, netlink.AddrAdd(hostEnd, noDAD("fd5b::1/64")))
	ns, err := netns.GetFromPath(s.Net.NamespacePath)
	must(t, err)
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	must(t, err)
	defer h.Close()
	eth, err := h.LinkByName(guestLink)
	must(t, err)
	must(t, h.AddrAdd(eth, noDAD("fd5b::2/64")))
	if said, err := dialFrom(s.Net.NamespacePath, "tcp6", "[fd5b::1]:"+hostPort); err == nil {
		t.Errorf("the host answers over IPv6: %q", said)
	}
	// Without the table it does: the refusal above is the rules' own.
	must(t, m.Close())
	must(t, deleteTable(t.Context(), m.tag))
	testkit.Eventually(t, 30*time.Second, "without the table IPv6 passes", func() bool {
		_, err := dialFrom(s.Net.NamespacePath, "tcp6", "[fd5b::1]:"+hostPort)
		return err == nil
	})
}

func noDAD(s string) *netlink.Addr {
	a := address(s)
	a.Flags = 2 // IFA_F_NODAD: usable at once
	return a
}

func TestNW05_ATakenPolicyCutsOpenConnections(t *testing.T) {
	newWorld(t)
	m := newManager(t, nil)
	s := acquire(t, m, 1, Policy{Internet: true})
	var c net.Conn
	must(t, inside(s.Net.NamespacePath, func() (err error) {
		c, err = net.DialTimeout("tcp", publicIP+":80", hang)
		return err
	}))
	defer c.Close()
	must(t, m.SetPolicy(t.Context(), s.Index, Policy{}))
	_, err := c.Write([]byte("hello"))
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	if n, err := c.Read(make([]byte, 64)); err == nil {
		t.Errorf("an open connection still carries %d bytes", n)
	}
}

func TestNW02_RulesTakenAwayComeBackBeforeASlotIsGiven(t *testing.T) {
	newWorld(t)
	m := newManager(t, func(c *Config) { c.WarmSlots = 1 })
	s := acquire(t, m, 1, Policy{Internet: true})
	for name, script := range map[string]string{
		"the table deleted": "delete table inet " + m.tag.table(),
		"a chain flushed":   "flush chain inet " + m.tag.table() + " leaving",
		"a rule put first":  "insert rule inet " + m.tag.table() + " incoming accept",
		"ranges taken out":  "flush set inet " + m.tag.table() + " denied",
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := exec.Command("nft", script).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			other := acquire(t, m, 2, Policy{Internet: true})
			for _, path := range []string{s.Net.NamespacePath, other.Net.NamespacePath} {
				if _, err := dialFrom(path, "tcp", hostIP+":"+hostPort); err == nil {
					t.Error("the host's port is open")
				}
				if _, err := dialFrom(path, "tcp", elsewhere[0]+":80"); err == nil {
					t.Error("a private address is open")
				}
				if _, err := reach(path, "tcp", publicIP+":80"); err != nil {
					t.Errorf("the internet is closed: %v", err)
				}
			}
			must(t, m.Release(t.Context(), other.Index))
		})
	}
	t.Run("without anybody acquiring", func(t *testing.T) {
		testkit.Promise(t, 2*time.Second, "restoring the table", func() time.Duration {
			must(t, deleteTable(t.Context(), m.tag))
			start := time.Now()
			testkit.Eventually(t, hang, "the guard restores the table", func() bool {
				sum, err := m.rules.look()
				m.rules.mu.Lock()
				defer m.rules.mu.Unlock()
				return err == nil && sum == m.rules.seal
			})
			return time.Since(start)
		})
	})
}

func TestH14_OtherTablesAndTagsAreLeftAlone(t *testing.T) {
	newWorld(t)
	nft := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	nft("add table inet somebody { chain forward { type filter hook forward priority 0; policy drop; iifname \"sk*\" accept; oifname \"sk*\" accept; }; }")
	t.Cleanup(func() { nft("delete table inet somebody") })
	before := nft("list table inet somebody")
	found, err := Blockers(t.Context())
	must(t, err)
	if len(found) != 1 || !strings.Contains(found[0], "somebody") {
		t.Errorf("blockers: %q", found)
	}
	one := newManager(t, nil)
	two := newManager(t, func(c *Config) { c.Tag = "d4e5f6" })
	a, b := acquire(t, one, 1, Policy{Internet: true}), acquire(t, two, 1, Policy{Internet: true})
	greeter(t, b.Net.NamespacePath, "tcp4", ":5000")
	if said, err := dialFrom(a.Net.NamespacePath, "tcp", b.Net.GuestAddr+":5000"); err == nil {
		t.Errorf("a sandbox of another agent is reached: %q", said)
	}
	must(t, one.Purge(context.Background()))
	if _, err := reach(b.Net.NamespacePath, "tcp", publicIP+":80"); err != nil {
		t.Errorf("purging one agent cut another one's sandbox: %v", err)
	}
	if after := nft("list table inet somebody"); after != before {
		t.Errorf("another program's table changed:\n%s\n%s", before, after)
	}
}

func TestTag_OnlyTheOneForm(t *testing.T) {
	for _, bad := range []string{"", "abc", "A1B2C3", "a1b2c3d", "../../", "a1b2c*", "a1b2 3"} {
		if _, err := New(t.Context(), Config{Tag: bad, StateDir: t.TempDir()}); err == nil {
			t.Errorf("tag %q is taken", bad)
		}
		if err := Purge(t.Context(), bad); err == nil {
			t.Errorf("purge of tag %q is taken", bad)
		}
	}
	tg := tag("a1b2c3")
	for _, index := range []int{0, 1, 35, 36, 16383} {
		if got := tg.indexOfLink(tg.link(index)); got != index || len(tg.link(index)) > 15 {
			t.Errorf("link %s of %d reads %d", tg.link(index), index, got)
		}
		if got := tg.indexOfNS(tg.netns(index)); got != index {
			t.Errorf("namespace %s of %d reads %d", tg.netns(index), index, got)
		}
	}
	for _, name := range []string{"ska1b2c3", "ska1b2c300", "ska1b2c3_", "ska1b2c3A", fmt.Sprintf("%s%d", "skffffff", 1)} {
		if got := tg.indexOfLink(name); got >= 0 {
			t.Errorf("%s reads as slot %d", name, got)
		}
	}
}
