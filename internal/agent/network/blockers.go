package network

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
)

// Blockers names rules of other firewalls on this machine that would stop
// traffic of sandboxes, each with its remedy; nil when there are none. A packet
// must pass every table, so an accept of ours cannot overrule them.
func Blockers(context.Context) ([]string, error) {
	chains, err := (&nftables.Conn{}).ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing firewall chains: %w", err)
	}
	var found []string
	for _, c := range chains {
		if c.Hooknum == nil || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop || strings.HasPrefix(c.Table.Name, tablePrefix) {
			continue
		}
		switch *c.Hooknum {
		case *nftables.ChainHookForward:
			found = append(found, fmt.Sprintf("The chain %s of the firewall table %s drops forwarded packets: sandboxes have no internet until it accepts interfaces named %s*.", c.Name, c.Table.Name, linkPrefix))
		case *nftables.ChainHookInput:
			found = append(found, fmt.Sprintf("The chain %s of the firewall table %s drops incoming packets: sandboxes have no DNS until it accepts port 53 from interfaces named %s*.", c.Name, c.Table.Name, linkPrefix))
		}
	}
	// The older packet filter has no tables listed here; its presence is all that
	// can be seen.
	if b, err := os.ReadFile("/proc/net/ip_tables_names"); err == nil && strings.Contains(string(b), "filter") {
		found = append(found, fmt.Sprintf("iptables-legacy rules are in use: make sure that FORWARD and INPUT accept interfaces named %s*.", linkPrefix))
	}
	return found, nil
}
