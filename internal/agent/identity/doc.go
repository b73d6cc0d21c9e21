// Package identity is who this host is to the control plane, and how it keeps
// in touch: the key made here that never leaves, the credentials on disk, the
// first contact pinned to the platform's CA, renewal, heartbeats and the
// delivery of events.
//
// Everything is sent over TLS to a peer whose certificate names
// skerry://control. Credentials are on disk before they are used, and the key
// before it is first spoken of, so that a lost answer can be asked for again.
package identity
