package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	defaultMTU = 1500
	// rangeBits is the length of a range picked by ourselves.
	rangeBits = 16
	// rangeFile keeps the picked range across restarts.
	rangeFile = "network.json"
)

// savedRange is the content of rangeFile.
type savedRange struct {
	CIDR netip.Prefix `json:"cidr"`
}

// chooseRange returns the range of a tag: the one asked for, else the one picked
// before, else a free one, starting at a place that follows from the tag so that
// several agents seldom meet.
func chooseRange(t tag, asked netip.Prefix, stateDir string) (netip.Prefix, error) {
	if asked.IsValid() {
		if !asked.Addr().Is4() || asked.Bits() > slotBits {
			return netip.Prefix{}, errs.Field("cidr", "The sandbox network is an IPv4 range of /30 or larger.")
		}
		return asked.Masked(), nil
	}
	file := filepath.Join(stateDir, rangeFile)
	var saved savedRange
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &saved); err != nil {
			return netip.Prefix{}, fmt.Errorf("reading %s: %w", file, err)
		}
		return chooseRange(t, saved.CIDR, stateDir)
	case !errors.Is(err, fs.ErrNotExist):
		return netip.Prefix{}, err
	}
	saved.CIDR, err = freeRange(t)
	if err != nil {
		return netip.Prefix{}, err
	}
	if b, err = json.Marshal(saved); err != nil {
		return netip.Prefix{}, err
	}
	return saved.CIDR, writeFile(file, b)
}

// writeFile makes name hold b, whole or not at all, across a power cut.
func writeFile(name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// freeRange finds a /16 of 10.64.0.0/10 that overlaps no route of this machine.
func freeRange(t tag) (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("listing routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				taken = append(taken, netip.PrefixFrom(a, ones).Masked())
			}
		}
	}
	var start int
	if _, err := fmt.Sscanf(string(t), "%x", &start); err != nil {
		return netip.Prefix{}, err
	}
	const first, count = 64, 64
	for i := range count {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(first + (start+i)%count), 0, 0}), rangeBits)
		free := true
		for _, r := range taken {
			free = free && !p.Overlaps(r)
		}
		if free {
			return p, nil
		}
	}
	return netip.Prefix{}, errs.FailedPrecondition("no_free_network", "No /16 between 10.64.0.0 and 10.127.255.255 is free on this machine. Set the sandbox network range yourself.")
}

// uplinks are the links this machine reaches other networks by.
func uplinks() ([]netlink.Link, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	seen := map[int]bool{}
	var links []netlink.Link
	for _, r := range routes {
		via := r.Gw != nil || r.Dst == nil || r.Dst.IP.IsUnspecified()
		if !via || r.LinkIndex == 0 || seen[r.LinkIndex] {
			continue
		}
		seen[r.LinkIndex] = true
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(l.Attrs().Name, linkPrefix) {
			links = append(links, l)
		}
	}
	return links, nil
}

// openUplinks lets answers from outside be forwarded to slots: on the links
// that lead outside only, and only when the machine does not forward already.
// It also notes the smallest MTU on the way.
func (m *Manager) openUplinks() error {
	links, err := uplinks()
	if err != nil {
		return err
	}
	mtu := defaultMTU
	for _, l := range links {
		if l.Attrs().MTU > 0 {
			mtu = min(mtu, l.Attrs().MTU)
		}
		name := "/proc/sys/net/ipv4/conf/" + l.Attrs().Name + "/forwarding"
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == "1" {
			continue
		}
		if err := os.WriteFile(name, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("letting %s forward for sandboxes: %w", l.Attrs().Name, err)
		}
	}
	m.uplinkMTU.Store(int64(mtu))
	return nil
}

func (m *Manager) mtu() int { return int(m.uplinkMTU.Load()) }
