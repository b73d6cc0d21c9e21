package microvm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
)

// A slot's namespace has one cable, eth0, with the guest's address on it. The
// machine's own card is a tap in the same namespace, and what arrives for the
// address is passed on to it: the namespace stays what the network made it, and
// its rules, which are all on the host's side, count as for any guest.
const (
	slotLink = "eth0"
	tapLink  = "vm0"
)

// The same in every slot, since a copy remembers them.
var (
	tapMAC   = net.HardwareAddr{0x02, 0, 0, 0, 0, 1}
	guestMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
)

// openTap makes the tap in the calling thread's namespace and turns the guest's
// traffic to it. The tap goes when the descriptor does.
func openTap(n engine.Network) (_ *os.File, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("microvm: /dev/net/tun: %w", err)
	}
	tap := os.NewFile(uintptr(fd), tapLink)
	defer func() {
		if err != nil {
			_ = tap.Close()
		}
	}()
	req, err := unix.NewIfreq(tapLink)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, fmt.Errorf("microvm: tap: %w", err)
	}
	addr := net.ParseIP(n.GuestAddr).To4()
	if addr == nil {
		return nil, fmt.Errorf("microvm: guest address %q", n.GuestAddr)
	}
	for file, value := range map[string]string{
		"ip_forward": "1",
		// The guest sends from the address that eth0 still has.
		"conf/" + tapLink + "/accept_local": "1",
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+file, []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("microvm: %w", err)
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(tapLink)
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	eth, err := h.LinkByName(slotLink)
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	if err := h.RouteDel(localRoute(eth, addr)); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("microvm: the slot's address: %w", err)
	}
	err = errors.Join(
		h.LinkSetHardwareAddr(link, tapMAC),
		h.LinkSetUp(link),
		h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: host(addr), Scope: netlink.SCOPE_LINK}),
		// No packet waits for address resolution.
		h.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr, HardwareAddr: guestMAC, State: netlink.NUD_PERMANENT}),
	)
	if err != nil {
		return nil, fmt.Errorf("microvm: wire the tap: %w", err)
	}
	return tap, nil
}

func host(addr net.IP) *net.IPNet { return &net.IPNet{IP: addr, Mask: net.CIDRMask(32, 32)} }

// localRoute is what makes the namespace take the address for its own.
func localRoute(eth netlink.Link, addr net.IP) *netlink.Route {
	return &netlink.Route{
		LinkIndex: eth.Attrs().Index, Dst: host(addr), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, Src: addr, Protocol: unix.RTPROT_KERNEL,
	}
}

// returnSlot gives a slot back as it was. One that is gone, or was never used,
// is right.
func returnSlot(n engine.Network) error {
	if n.NamespacePath == "" {
		return nil
	}
	ns, err := netns.GetFromPath(n.NamespacePath)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("microvm: slot: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if errors.Is(err, unix.EINVAL) {
		return nil // the name is left of it, the namespace is not
	}
	if err != nil {
		return fmt.Errorf("microvm: slot: %w", err)
	}
	defer h.Close()
	eth, err := h.LinkByName(slotLink)
	if err != nil {
		return nil //nolint:nilerr // no cable, no address
	}
	if err := h.RouteReplace(localRoute(eth, net.ParseIP(n.GuestAddr).To4())); err != nil {
		return fmt.Errorf("microvm: give the slot its address back: %w", err)
	}
	return nil
}

// enter makes the calling thread one of the slot's. The thread is lost: its
// goroutine must not unlock it.
func enter(path string) error {
	runtime.LockOSThread()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("microvm: slot %s: %w", path, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("microvm: slot %s: %w", path, err)
	}
	return nil
}
