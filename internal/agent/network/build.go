package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/thread"
)

// buildLink makes the namespace and the link of a slot, up and addressed on
// both ends. Left-overs under the same names are removed first. The rules must
// know the slot before: a packet of an unknown one is dropped.
func (m *Manager) buildLink(index int) error {
	if err := m.destroyLink(index); err != nil {
		return err
	}
	name, path, addr := m.tag.link(index), m.tag.nsPath(index), slotAddresses(m.rules.cidr, index)
	if err := newNamespace(path); err != nil {
		return fmt.Errorf("making namespace %s: %w", path, err)
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, addr.hostMAC, m.mtu()
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = guestLink, addr.peerMAC, uint32(attrs.MTU)
	veth.PeerNamespace = netlink.NsFd(int(ns))
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making link %s: %w", name, err)
	}
	if err := m.wireHost(name, addr); err != nil {
		return fmt.Errorf("wiring %s on the host: %w", name, err)
	}
	if err := wireGuest(ns, addr); err != nil {
		return fmt.Errorf("wiring %s in its namespace: %w", name, err)
	}
	return nil
}

// newNamespace makes a network namespace bound to path, without IPv6.
func newNamespace(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return thread.Lose(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		for _, which := range []string{"all", "default"} {
			if err := disableIPv6(which); err != nil {
				return err
			}
		}
		return nil
	})
}

// disableIPv6 acts on an interface of the calling thread's namespace. A kernel
// without IPv6 has nothing to switch off.
func disableIPv6(link string) error {
	err := setSysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func setSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0o644)
}

func (m *Manager) wireHost(name string, addr addresses) error {
	conf := "ipv4/conf/" + name + "/"
	for _, s := range [][2]string{
		{conf + "forwarding", "1"},
		// The guest learns nothing about the host's other addresses by ARP.
		{conf + "arp_ignore", "1"},
		{conf + "accept_redirects", "0"},
		{conf + "send_redirects", "0"},
	} {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if err := disableIPv6(name); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr.gateway)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	return netlink.NeighSet(neighbour(link, addr.guest, addr.peerMAC))
}

// wireGuest addresses the guest's end; on one that is addressed it has no effect.
func wireGuest(ns netns.NsHandle, addr addresses) error {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName(guestLink)
	if err != nil {
		return err
	}
	return errors.Join(
		h.LinkSetUp(lo),
		h.AddrReplace(eth, &netlink.Addr{IPNet: ipNet(addr.guest)}),
		h.LinkSetUp(eth),
		h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: addr.gateway.AsSlice()}),
		h.NeighSet(neighbour(eth, addr.gateway, addr.hostMAC)),
	)
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(slotBits, 32)}
}

// neighbour is a permanent entry: no first packet is lost to address resolution.
func neighbour(link netlink.Link, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, IP: a.AsSlice(), HardwareAddr: mac,
		State: netlink.NUD_PERMANENT, Family: netlink.FAMILY_V4,
	}
}

// destroyLink removes link and namespace of a slot and succeeds on nothing.
func (m *Manager) destroyLink(index int) error {
	return errors.Join(deleteLink(m.tag.link(index)), deleteNamespace(m.tag.nsPath(index)))
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}

func deleteNamespace(path string) error {
	// EINVAL: a file nothing is mounted on, left by a crash in between.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("releasing namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setAlias writes the slot's state onto its link.
func setAlias(name, alias string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetAlias(link, alias)
}

// forgetConnections removes what the host tracked for an address, so that
// nothing of one guest's connections reaches the next with that address.
func forgetConnections(guest netip.Addr) error {
	matches := func(kind netlink.ConntrackFilterType) (*netlink.ConntrackFilter, error) {
		f := &netlink.ConntrackFilter{}
		return f, f.AddIP(kind, guest.AsSlice())
	}
	from, err1 := matches(netlink.ConntrackOrigSrcIP)
	to, err2 := matches(netlink.ConntrackOrigDstIP)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, from, to)
	return err
}

// tagLinks lists the host's links of a tag by name.
func tagLinks(t tag) (map[int]netlink.Link, error) {
	// A dump that was interrupted by a change is asked for again.
	for range 10 {
		all, err := netlink.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found := make(map[int]netlink.Link)
		for _, l := range all {
			if i := t.indexOfLink(l.Attrs().Name); i >= 0 {
				found[i] = l
			}
		}
		return found, nil
	}
	return nil, fmt.Errorf("listing links: %w", netlink.ErrDumpInterrupted)
}

// tagNamespaces lists the named namespaces of a tag by index.
func tagNamespaces(t tag) (map[int]string, error) {
	entries, err := os.ReadDir(namespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := make(map[int]string)
	for _, e := range entries {
		if i := t.indexOfNS(e.Name()); i >= 0 {
			found[i] = filepath.Join(namespaceDir, e.Name())
		}
	}
	return found, nil
}
