// Package fleet runs Skerry as it is meant to be run: several servers and
// agents, one PostgreSQL, and a network between them. All of it stands on one
// machine, but the agents share nothing: each lives in a network namespace, a
// mount namespace and a data directory of its own, joins with a registration
// token, and starts real gVisor sandboxes.
//
// A bridge joins the agents with the servers; each agent's link can be cut.
// Agents reach the servers through a front, as they would through a balancer,
// which can also answer a host in the servers' stead. Every process can be
// killed and started again.
//
// Everything is named by a random tag, removed at the end, and looked for
// afterwards: what is left is an error.
package fleet
