package network

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleChanges puts a token into changed for every change of anybody's rules,
// but never a second one, and closes it when conn ends.
func ruleChanges(conn *netlink.Conn, changed chan<- struct{}) {
	defer close(changed)
	for {
		_, err := conn.Receive()
		// An overflow means that changes were missed: look again as well.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// guard puts the rules back when another program took them away, as a restart
// of the machine's own firewall does. Without events it looks every second.
func (m *Manager) guard(ctx context.Context) {
	defer m.workers.Done()
	changed := make(chan struct{}, 1)
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err == nil {
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		m.log.Warn("rule changes are not announced, looking each second", "err", err)
	} else {
		m.workers.Add(1)
		go func() { defer m.workers.Done(); ruleChanges(conn, changed) }()
		// A deadline in the past wakes the reader; Close alone need not.
		defer func() { _ = conn.SetReadDeadline(time.Unix(1, 0)); conn.Close() }()
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case _, open := <-changed:
			if !open {
				changed = nil // the ticker remains
			}
		}
		restored, err := m.rules.ensure(ctx, m.bindings)
		switch {
		case err != nil && ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded):
			m.log.Error("network rules are damaged and cannot be restored", "err", err)
		case restored:
			m.log.Warn("network rules were removed by another program and restored")
		}
	}
}
