package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// keeperRetry is the pause after the kernel refused something.
const keeperRetry = time.Second

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// keep destroys what was released and builds free slots ahead of need.
func (m *Manager) keep(ctx context.Context) {
	defer m.workers.Done()
	retry := time.NewTimer(keeperRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-retry.C:
		}
		if err := errors.Join(m.clearRetired(ctx), m.warmUp(ctx)); err != nil && ctx.Err() == nil {
			m.log.Warn("network slots are not up to date, trying again", "err", err)
			retry.Reset(keeperRetry)
		}
	}
}

// clearRetired destroys released slots and frees their indexes.
func (m *Manager) clearRetired(ctx context.Context) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		if len(m.retired) == 0 {
			m.mu.Unlock()
			return nil
		}
		s := m.retired[0]
		m.mu.Unlock()
		m.stopDNS(s)
		// The link first: nothing passes it any more, whatever happens to the rest.
		err := errors.Join(
			m.destroyLink(s.index),
			m.rules.put(ctx, binding{link: m.tag.link(s.index), addr: s.addr}, false, m.bindings),
			forgetConnections(s.addr.guest),
		)
		m.mu.Lock()
		m.retired = m.retired[1:]
		if err != nil {
			m.retired = append(m.retired, s)
		} else {
			// To the end: an address rests as long as it can before it is used again.
			m.unused = append(m.unused, s.index)
		}
		m.mu.Unlock()
		if err != nil {
			return fmt.Errorf("destroying slot %d: %w", s.index, err)
		}
	}
	return ctx.Err()
}

// warmUp builds until the wanted number of free slots is there.
func (m *Manager) warmUp(ctx context.Context) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		var s *slot
		if len(m.warm) < m.want {
			s = m.reserve()
		}
		m.mu.Unlock()
		if s == nil {
			return nil
		}
		err := m.build(ctx, s)
		if err == nil {
			err = setAlias(m.tag.link(s.index), aliasFree)
		}
		if err != nil {
			m.retire(s)
			return fmt.Errorf("building slot %d: %w", s.index, err)
		}
		m.mu.Lock()
		m.warm = append(m.warm, s)
		m.mu.Unlock()
		select {
		case <-m.wake: // somebody released meanwhile: that comes first
			m.poke()
			return nil
		default:
		}
	}
	return ctx.Err()
}

// Close stops the forwarder and the goroutines. Slots stay as they are, for
// guests outlive the agent. Calls under way fail or finish before it returns.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	if m.stop != nil {
		m.stop()
	}
	m.workers.Wait()
	m.mu.Lock()
	slots := make([]*slot, 0, len(m.slots))
	for _, s := range m.slots {
		slots = append(slots, s)
	}
	slots = append(slots, m.retired...)
	m.mu.Unlock()
	for _, s := range slots {
		m.stopDNS(s)
	}
	return nil
}

// Purge closes the manager and removes everything of its tag.
func (m *Manager) Purge(ctx context.Context) error {
	return errors.Join(m.Close(), Purge(ctx, string(m.tag)))
}

// Purge removes everything made under a tag on this machine: links, namespaces,
// the table. It needs no Manager and succeeds on nothing. Links go before the
// table: there is no moment in which a guest has a network without rules.
func Purge(ctx context.Context, tagName string) error {
	t, err := parseTag(tagName)
	if err != nil {
		return err
	}
	links, err := tagLinks(t)
	if err != nil {
		return err
	}
	var failed []error
	for _, l := range links {
		failed = append(failed, deleteLink(l.Attrs().Name))
		for _, ip := range addressesOf(l) {
			failed = append(failed, forgetConnections(ip.Next()))
		}
	}
	spaces, err := tagNamespaces(t)
	failed = append(failed, err)
	for _, path := range spaces {
		failed = append(failed, deleteNamespace(path))
	}
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("removing the network of %s: %w", t, err)
	}
	return deleteTable(ctx, t)
}

// Leaks lists what carries the tag and belongs to no slot, owned slots nobody
// has adopted, and slots that lack a part.
func (m *Manager) Leaks(context.Context) ([]string, error) {
	// Seen first, then compared with what is known: a slot destroyed in between
	// must not look foreign, so what is unknown is looked at once more.
	links, err := tagLinks(m.tag)
	if err != nil {
		return nil, err
	}
	spaces, err := tagNamespaces(m.tag)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var leaks []string
	accounted := func(index int) bool {
		return m.slots[index] != nil || slices.ContainsFunc(m.retired, func(s *slot) bool { return s.index == index })
	}
	for index, l := range links {
		if _, err := netlink.LinkByName(l.Attrs().Name); !accounted(index) && err == nil {
			leaks = append(leaks, "link "+l.Attrs().Name)
		}
	}
	for index, path := range spaces {
		if _, err := os.Lstat(path); !accounted(index) && err == nil {
			leaks = append(leaks, "namespace "+path)
		}
	}
	for _, s := range m.owners {
		if !s.adopted {
			leaks = append(leaks, fmt.Sprintf("slot %d of %s, which nobody claims", s.index, s.owner))
		}
	}
	slices.Sort(leaks)
	return leaks, nil
}

// hasAddress reports whether the host's end of a slot carries its gateway.
func hasAddress(l netlink.Link, gateway netip.Addr) bool {
	return slices.Contains(addressesOf(l), gateway)
}

// addressesOf lists the IPv4 addresses of a link; none when it went away.
func addressesOf(l netlink.Link) []netip.Addr {
	found, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range found {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			out = append(out, ip)
		}
	}
	return out
}
