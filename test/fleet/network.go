package fleet

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bridge is the network that joins the agents with the servers, which stand on
// its first address.
type bridge struct {
	name   string
	prefix netip.Prefix
}

func bridgeName(tag string) string { return "fl" + tag }

// newBridge makes one on a /24 of the range for benchmarks that no route of
// this machine touches.
func newBridge(tag string) (*bridge, error) {
	prefix, err := freePrefix()
	if err != nil {
		return nil, err
	}
	b := &bridge{name: bridgeName(tag), prefix: prefix}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.name
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	err = errors.Join(
		netlink.AddrAdd(link, &netlink.Addr{IPNet: b.at(b.server())}),
		netlink.LinkSetUp(link),
	)
	if err != nil {
		return nil, errors.Join(err, netlink.LinkDel(link))
	}
	return b, nil
}

func freePrefix() (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, err
	}
	for range 64 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(rand.IntN(256)), 0}), 24)
		free := true
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			ones, _ := r.Dst.Mask.Size()
			if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok && ones > 0 && p.Overlaps(netip.PrefixFrom(a, ones)) {
				free = false
			}
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no /24 of 198.18.0.0/16 is free")
}

func (b *bridge) nth(n int) netip.Addr {
	a := b.prefix.Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

func (b *bridge) server() netip.Addr    { return b.nth(1) }
func (b *bridge) host(n int) netip.Addr { return b.nth(10 + n) }
func (b *bridge) link(n int) string     { return b.name + "h" + strconv.Itoa(n) }

func (b *bridge) at(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(b.prefix.Bits(), 32)}
}

// plug gives a machine the nth link, as its eth0.
func (b *bridge) plug(m *machine, n int) error {
	master, err := netlink.LinkByName(b.name)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = b.link(n), master.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(m.net)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a link: %w", err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(m.net), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	return errors.Join(
		h.LinkSetUp(lo),
		h.AddrAdd(eth, &netlink.Addr{IPNet: b.at(b.host(n))}),
		h.LinkSetUp(eth),
		h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: b.server().AsSlice()}),
		b.set(n, true),
	)
}

// set lets packets through the nth link, or none. Connections over it stay as
// they are and merely hear nothing.
func (b *bridge) set(n int, up bool) error {
	link, err := netlink.LinkByName(b.link(n))
	if err != nil {
		return err
	}
	if up {
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

// passed is how many bytes went over the nth link to its machine.
func (b *bridge) passed(n int) (uint64, error) {
	link, err := netlink.LinkByName(b.link(n))
	if err != nil {
		return 0, err
	}
	return link.Attrs().Statistics.TxBytes, nil
}

// remove takes the bridge and its links away.
func (b *bridge) remove() error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if name := l.Attrs().Name; name == b.name || len(name) > len(b.name) && name[:len(b.name)+1] == b.name+"h" {
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
