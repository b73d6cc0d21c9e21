// Package journal is the agent's memory over its own death: one record per
// sandbox on this host, tombstones of what was destroyed, an outbox of events
// the control plane has not yet confirmed, and the generation counter.
//
// Every verb is one transaction and returns when it is on disk. Transactions
// are grouped: verbs that arrive while one is being written share the next
// fsync, in the order they were called. A verb that need not be waited for
// says so and still keeps its place in that order.
//
// The file's lock also makes sure that a data directory has one agent. It
// holds secrets and is readable by its owner alone.
package journal
