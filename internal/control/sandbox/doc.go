// Package sandbox owns the life of sandboxes: which may exist, in which status,
// on which host, and the operations that move them on. Its truth is rows; what
// agents do and report only ever becomes true through a transition of the table
// in machine.go.
//
// It never speaks HTTP, SQL or RPC, and never passes bytes of a command or a
// file: that is sandboxio; this room tells where a Guest is and who may reach it.
package sandbox
