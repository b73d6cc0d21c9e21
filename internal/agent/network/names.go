package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	tagLength   = 6
	linkPrefix  = "sk" // of every agent's links, whatever its tag
	nsPrefix    = "skerry-"
	tablePrefix = "skerry_"
	// guestLink is the guest's end inside its namespace.
	guestLink = "eth0"
	// namespaceDir is where named namespaces live by convention.
	namespaceDir = "/run/netns"
	// slotBits is the prefix length of a slot: its gateway and its guest.
	slotBits = 30
)

// tag names everything of one agent instance.
type tag string

func parseTag(s string) (tag, error) {
	if len(s) != tagLength || strings.Trim(s, "0123456789abcdef") != "" {
		return "", errs.Field("tag", "The network tag is exactly six lower-case hex digits.")
	}
	return tag(s), nil
}

func (t tag) table() string            { return tablePrefix + string(t) }
func (t tag) links() string            { return linkPrefix + string(t) }
func (t tag) namespaces() string       { return nsPrefix + string(t) + "-" }
func (t tag) link(index int) string    { return t.links() + strconv.FormatInt(int64(index), 36) }
func (t tag) netns(index int) string   { return t.namespaces() + strconv.Itoa(index) }
func (t tag) nsPath(index int) string  { return filepath.Join(namespaceDir, t.netns(index)) }
func (t tag) indexOfLink(s string) int { return parseIndex(s, t.links(), 36) }
func (t tag) indexOfNS(s string) int   { return parseIndex(s, t.namespaces(), 10) }

// parseIndex reads the index behind prefix, and only in the form it is written;
// -1 otherwise.
func parseIndex(s, prefix string, base int) int {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return -1
	}
	n, err := strconv.ParseUint(digits, base, 16)
	if err != nil || strconv.FormatUint(n, base) != digits {
		return -1
	}
	return int(n)
}

// addresses of a slot follow from the range and the index alone.
type addresses struct {
	gateway, guest   netip.Addr
	hostMAC, peerMAC net.HardwareAddr
}

func slotAddresses(cidr netip.Prefix, index int) addresses {
	base := binary.BigEndian.Uint32(cidr.Masked().Addr().AsSlice()) + uint32(index)<<(32-slotBits)
	at := func(n uint32) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], n)
		return netip.AddrFrom4(b)
	}
	a := addresses{gateway: at(base + 1), guest: at(base + 2)}
	mac := func(addr netip.Addr) net.HardwareAddr {
		b := addr.As4()
		return net.HardwareAddr{0x02, 0x5b, b[0], b[1], b[2], b[3]} // locally administered
	}
	a.hostMAC, a.peerMAC = mac(a.gateway), mac(a.guest)
	return a
}

// capacity is how many slots the range holds; index 16 bits wide at most.
func capacity(cidr netip.Prefix) int {
	if cidr.Bits() > slotBits {
		return 0
	}
	return 1 << min(slotBits-cidr.Bits(), 16)
}

// The alias of a link is the slot's whole state.
const (
	aliasFree     = "skerry free"
	aliasReleased = "skerry released"
	aliasOwned    = "skerry owner=%s internet=%t"
)

func ownedAlias(owner string, p Policy) string { return fmt.Sprintf(aliasOwned, owner, p.Internet) }

// parseAlias reads an owned slot's alias; ok is false for any other.
func parseAlias(s string) (owner string, p Policy, ok bool) {
	if n, err := fmt.Sscanf(s, aliasOwned, &owner, &p.Internet); n != 2 || err != nil {
		return "", Policy{}, false
	}
	return owner, p, ownedAlias(owner, p) == s
}
