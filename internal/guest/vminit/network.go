package vminit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/vmapi"
)

const link = "eth0"

// plug gives the machine its address, route and neighbour in place of old.
func plug(old, want *vmapi.Net) error {
	addr, err := netip.ParseAddr(want.Addr)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(want.Gateway)
	if err != nil {
		return err
	}
	if !addr.Is4() || !gateway.Is4() || want.PrefixLen < 1 || want.PrefixLen > 32 || len(want.GatewayMAC) != 6 {
		return fmt.Errorf("no place in a network: %+v", want)
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	eth, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	s, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer s.close()
	for _, index := range []int{lo.Index, eth.Index} {
		if err := s.do(unix.RTM_NEWLINK, 0, binaryOf(unix.IfInfomsg{Index: int32(index), Flags: unix.IFF_UP, Change: unix.IFF_UP})); err != nil {
			return fmt.Errorf("link up: %w", err)
		}
	}
	if old != nil {
		if before, err := netip.ParseAddr(old.Addr); err == nil && before != addr {
			body := addrMessage(eth.Index, before, old.PrefixLen)
			if err := s.do(unix.RTM_DELADDR, 0, body); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("old address: %w", err)
			}
		}
	}
	if err := s.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, addrMessage(eth.Index, addr, want.PrefixLen)); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	index := binary.NativeEndian.AppendUint32(nil, uint32(eth.Index))
	// No packet is lost to address resolution, and no copy to a stale one.
	neighbour := append(binaryOf(neighbourMsg{Family: unix.AF_INET, Index: int32(eth.Index), State: unix.NUD_PERMANENT}),
		append(attribute(unix.NDA_DST, gateway.AsSlice()), attribute(unix.NDA_LLADDR, want.GatewayMAC)...)...)
	if err := s.do(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, neighbour); err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	route := append(binaryOf(unix.RtMsg{
		Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}), append(attribute(unix.RTA_GATEWAY, gateway.AsSlice()), attribute(unix.RTA_OIF, index)...)...)
	if err := s.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, route); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

func addrMessage(index int, addr netip.Addr, bits int) []byte {
	return append(binaryOf(unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: uint8(bits), Index: uint32(index)}),
		append(attribute(unix.IFA_LOCAL, addr.AsSlice()), attribute(unix.IFA_ADDRESS, addr.AsSlice())...)...)
}

// hangUp ends all TCP connections of a copy, but those to itself: who was at
// their other end talks to the original.
func hangUp() error {
	s, err := openNetlink(unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	defer s.close()
	const all = 0xfff &^ (1<<10 | 1<<7) // but LISTEN and CLOSE
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := s.dump(unix.SOCK_DIAG_BY_FAMILY, binaryOf(diagRequest{Family: family, Protocol: unix.IPPROTO_TCP, States: all}))
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		for _, b := range found {
			if len(b) < 4+diagIDLen {
				continue
			}
			req := diagRequest{Family: family, Protocol: unix.IPPROTO_TCP, States: all}
			if err := readBinary(b[4:4+diagIDLen], &req.ID); err != nil {
				return err
			}
			if local(family, req.ID.Src) {
				continue
			}
			// One that has ended meanwhile is what is wanted.
			if err := s.do(sockDestroy, 0, binaryOf(req)); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("end a connection: %w", err)
			}
		}
	}
	return nil
}

func local(family uint8, addr [16]byte) bool {
	if family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(addr[:4])).IsLoopback()
	}
	return netip.AddrFrom16(addr).Unmap().IsLoopback()
}
