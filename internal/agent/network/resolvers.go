package network

import (
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	dnsPort          = 53
	maxResolvers     = 3
	resolvCheckEvery = time.Second
	defaultResolv    = "/etc/resolv.conf"
)

// upstreams are the resolvers queries are passed to. Safe for concurrent use.
type upstreams struct {
	file string // empty: fixed

	mu      sync.Mutex
	list    []netip.AddrPort
	checked time.Time
	stamp   time.Time // of the file when it was read
}

func newUpstreams(fixed []string, file string) (*upstreams, error) {
	u := &upstreams{}
	for _, s := range fixed {
		a, err := parseResolver(s)
		if err != nil {
			return nil, errs.Field("dns_upstreams", "A DNS upstream is an address with an optional port.").With("value", s)
		}
		u.list = append(u.list, a)
	}
	if len(u.list) == 0 {
		u.file = defaultResolv
		if file != "" {
			u.file = file
		}
	}
	return u, nil
}

func parseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, dnsPort), nil
	}
	return netip.ParseAddrPort(s)
}

// current returns the resolvers, reading the file again when it changed; at
// most once a second is it looked at. An unreadable file leaves the last list.
func (u *upstreams) current() []netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.file == "" || time.Since(u.checked) < resolvCheckEvery {
		return u.list
	}
	u.checked = time.Now()
	info, err := os.Stat(u.file)
	if err != nil || info.ModTime().Equal(u.stamp) {
		return u.list
	}
	b, err := os.ReadFile(u.file)
	if err != nil {
		return u.list
	}
	u.stamp = info.ModTime()
	u.list = parseResolvConf(string(b))
	return u.list
}

// parseResolvConf reads the nameserver lines; like the C library it takes the
// first three, and the local one when there are none.
func parseResolvConf(text string) []netip.AddrPort {
	var list []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxResolvers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, dnsPort))
		}
	}
	if len(list) == 0 {
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort))
	}
	return list
}
