// Package rpcserver is the agent's one listener: the control plane's calls
// over Connect, and raw bytes to a port inside a sandbox over HTTP CONNECT.
// Mutual TLS is the caller's to provide and is not optional: Serve takes a TLS
// configuration, never a plain listener.
package rpcserver
