// Package network plugs sandboxes into the machine: slots made ahead of need,
// each a network namespace with one veth pair, a /30 of its own, a DNS
// forwarder on its gateway and rules that deny everything but the public
// internet, and that only where the policy says so.
//
// A slot passes through three states. Built: namespace, link, addresses and the
// elements that bind its source address exist; nothing may leave it. Owned: the
// link's alias names the instance and its policy, and the rules follow the
// policy. Released: it is stripped, its tracked connections are forgotten, and
// it is built again from the parts that are left.
//
// Nothing is kept in files but the address range. What a restarted agent must
// know (which slot belongs to which instance, under which policy) is the alias
// of the host's end of the link: it is written in microseconds, survives the
// agent and dies with the slot.
//
// Everything made here carries the tag of its agent instance. Tables, links and
// namespaces of other tags and other programs are never touched.
package network
