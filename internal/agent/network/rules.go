package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"text/template"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// alwaysDenied are the IPv4 ranges that are not the public internet: this
// network, private, carrier NAT, loopback, link-local with the metadata
// services, protocol assignments, 6to4 relays, benchmarks, multicast and
// reserved. The documentation ranges are not listed: nothing lives there.
var alwaysDenied = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
}

// ruleset replaces the table of one tag in a single transaction: there is no
// moment without rules. Every verdict for a slot's packet is taken per packet,
// so that a policy taken away also ends open connections; only answers to what
// the host or the guest began pass by connection state.
var ruleset = template.Must(template.New("ruleset").Parse(`
table inet {{.Table}} {}
delete table inet {{.Table}}
table inet {{.Table}} {
	set slots { type ifname . ipv4_addr; {{with .Slots}}elements = { {{.}} };{{end}} }
	set gateways { type ifname . ipv4_addr; {{with .Gateways}}elements = { {{.}} };{{end}} }
	set internet { type ifname . ipv4_addr; {{with .Internet}}elements = { {{.}} };{{end}} }
	set denied { type ipv4_addr; flags interval; auto-merge; elements = { {{.Denied}} }; }

	chain source {
		type filter hook prerouting priority -300; policy accept;
		iifname != "{{.Links}}*" accept
		meta nfproto != ipv4 drop
		iifname . ip saddr @slots accept
		drop
	}
	chain incoming {
		type filter hook input priority 0; policy accept;
		iifname != "{{.Links}}*" accept
		meta nfproto != ipv4 drop
		ct direction reply ct state established,related accept
		iifname . ip daddr @gateways udp dport 53 accept
		iifname . ip daddr @gateways tcp dport 53 accept
		drop
	}
	chain forwarding {
		type filter hook forward priority 0; policy accept;
		iifname "{{.Links}}*" jump leaving
		oifname "{{.Links}}*" jump entering
	}
	chain leaving {
		meta nfproto != ipv4 drop
		oifname "{{.AnyLink}}*" drop
		ip daddr @denied drop
		fib daddr type != unicast drop
		iifname . ip saddr @internet accept
		drop
	}
	chain entering {
		meta nfproto != ipv4 drop
		oifname . ip daddr @internet ct direction reply ct state established,related accept
		drop
	}
	chain sending {
		type filter hook output priority 0; policy accept;
		oifname "{{.Links}}*" meta nfproto != ipv4 drop
	}
	chain outbound {
		type nat hook postrouting priority 100; policy accept;
		iifname "{{.Links}}*" oifname != "{{.Links}}*" ip saddr {{.CIDR}} masquerade
	}
}
`))

// binding is one slot as the rules see it.
type binding struct {
	link     string
	addr     addresses
	internet bool
}

// rules is the table of one tag. Safe for concurrent use.
type rules struct {
	tag    tag
	cidr   netip.Prefix
	denied []netip.Prefix

	mu sync.Mutex
	// seal is the hash of rules and denied ranges as the kernel shows them,
	// taken right after they were loaded; generation is the ruleset's number when
	// they were last found unchanged.
	seal       [sha256.Size]byte
	generation uint32
	// open are the links in the internet set; taking an element out is slow in
	// the kernel and done only when there is one.
	open map[string]bool
}

// load replaces the table with one that knows exactly these slots.
func (r *rules) load(ctx context.Context, slots []binding) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loadLocked(ctx, slots)
}

func (r *rules) loadLocked(ctx context.Context, slots []binding) error {
	var slotElems, gateElems, openElems, denied []string
	for _, s := range slots {
		slotElems = append(slotElems, fmt.Sprintf("%q . %s", s.link, s.addr.guest))
		gateElems = append(gateElems, fmt.Sprintf("%q . %s", s.link, s.addr.gateway))
		if s.internet {
			openElems = append(openElems, fmt.Sprintf("%q . %s", s.link, s.addr.guest))
		}
	}
	for _, p := range append(append([]netip.Prefix{r.cidr}, alwaysDenied...), r.denied...) {
		if p.Addr().Is4() { // all of IPv6 is dropped anyway
			denied = append(denied, p.Masked().String())
		}
	}
	var script bytes.Buffer
	err := ruleset.Execute(&script, map[string]string{
		"Table": r.tag.table(), "Links": r.tag.links(), "AnyLink": linkPrefix, "CIDR": r.cidr.String(),
		"Slots": strings.Join(slotElems, ", "), "Gateways": strings.Join(gateElems, ", "),
		"Internet": strings.Join(openElems, ", "), "Denied": strings.Join(denied, ", "),
	})
	if err != nil {
		return err
	}
	if err := runNFT(ctx, &script); err != nil {
		return fmt.Errorf("loading the network rules: %w", err)
	}
	gen, err := generation()
	if err != nil {
		return err
	}
	if r.seal, err = r.look(); err != nil {
		return err
	}
	r.generation = gen
	r.open = make(map[string]bool)
	for _, s := range slots {
		if s.internet {
			r.open[s.link] = true
		}
	}
	return nil
}

func runNFT(ctx context.Context, script *bytes.Buffer) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = script
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// ensure checks that the rules are those that were loaded, and loads them anew
// from the slots the callback names when they are not. It reports whether it
// had to.
func (r *rules) ensure(ctx context.Context, slots func() []binding) (restored bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ensureLocked(ctx, slots)
}

func (r *rules) ensureLocked(ctx context.Context, slots func() []binding) (bool, error) {
	gen, err := generation()
	if err != nil {
		return false, err
	}
	if gen == r.generation {
		return false, nil
	}
	if seal, err := r.look(); err == nil && seal == r.seal {
		r.generation = gen
		return false, nil
	}
	return true, r.loadLocked(ctx, slots())
}

// put brings the elements of one slot into force, or takes them all out when b
// is not bound. The rules themselves are ensured first.
func (r *rules) put(ctx context.Context, b binding, bound bool, slots func() []binding) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.ensureLocked(ctx, slots); err != nil {
		return err
	}
	guest, gateway := elementKey(b.link, b.addr.guest), elementKey(b.link, b.addr.gateway)
	// Adding first makes removing what is not there succeed as well; all of it
	// is one transaction.
	conn := &nftables.Conn{}
	for _, change := range []struct {
		set  string
		key  []byte
		keep bool
	}{
		{"slots", guest, bound}, {"gateways", gateway, bound}, {"internet", guest, bound && b.internet},
	} {
		if !change.keep && bound && !r.open[b.link] {
			continue
		}
		set := r.set(change.set)
		element := []nftables.SetElement{{Key: change.key}}
		if err := conn.SetAddElements(set, element); err != nil {
			return err
		}
		if !change.keep {
			if err := conn.SetDeleteElements(set, element); err != nil {
				return err
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("changing the elements of %s: %w", b.link, err)
	}
	if bound && b.internet {
		r.open[b.link] = true
	} else {
		delete(r.open, b.link)
	}
	// Only our own transaction came between: what was checked still holds.
	if gen, err := generation(); err == nil && gen == r.generation+1 {
		r.generation = gen
	}
	return nil
}

func (r *rules) set(name string) *nftables.Set {
	return &nftables.Set{
		Table: &nftables.Table{Name: r.tag.table(), Family: nftables.TableFamilyINet},
		Name:  name, Concatenation: true,
	}
}

// elementKey is "ifname . ipv4_addr" as the kernel compares it.
func elementKey(link string, addr netip.Addr) []byte {
	key := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+4)
	copy(key, link)
	return append(key, addr.AsSlice()...)
}

// deleteTable removes the table of a tag and succeeds when there is none.
func deleteTable(ctx context.Context, t tag) error {
	script := bytes.NewBufferString(fmt.Sprintf("table inet %s {}\ndelete table inet %s\n", t.table(), t.table()))
	return runNFT(ctx, script)
}

// look hashes the rules and the denied ranges as the kernel shows them.
func (r *rules) look() (sum [sha256.Size]byte, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return sum, err
	}
	defer conn.Close()
	name := func(kind uint16, value string) netlink.Attribute {
		return netlink.Attribute{Type: kind, Data: append([]byte(value), 0)}
	}
	h := sha256.New()
	for _, q := range []struct {
		message uint16
		attrs   []netlink.Attribute
	}{
		{unix.NFT_MSG_GETRULE, []netlink.Attribute{name(unix.NFTA_RULE_TABLE, r.tag.table())}},
		{unix.NFT_MSG_GETSETELEM, []netlink.Attribute{name(unix.NFTA_SET_ELEM_LIST_TABLE, r.tag.table()), name(unix.NFTA_SET_ELEM_LIST_SET, "denied")}},
	} {
		data, err := netlink.MarshalAttributes(q.attrs)
		if err != nil {
			return sum, err
		}
		found, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: nftType(q.message), Flags: netlink.Request | netlink.Dump},
			Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, data...),
		})
		if err != nil {
			return sum, err
		}
		if len(found) == 0 {
			return sum, errors.New("network: the rules are gone")
		}
		for _, m := range found {
			if len(m.Data) > 4 { // the header's last half is the generation
				h.Write(m.Data[4:])
			}
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// generation is the number the kernel gives the whole ruleset; each transaction
// of anybody raises it.
func generation() (uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	found, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nftType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, 0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("asking for the ruleset's generation: %w", err)
	}
	for _, m := range found {
		if len(m.Data) < 4 {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Type == unix.NFTA_GEN_ID && len(a.Data) == 4 {
				return binary.BigEndian.Uint32(a.Data), nil
			}
		}
	}
	return 0, errors.New("network: the kernel does not tell the ruleset's generation")
}

func nftType(message uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message)
}
