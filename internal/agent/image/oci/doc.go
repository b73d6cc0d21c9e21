// Package oci reads container images: from a registry by reference, or from a
// tarball as docker save and OCI layouts have it. It says what an image is made
// of and hands out its layers, checked against their digests; making a tree of
// them is the caller's.
//
// References come from users. Registries are spoken to by HTTPS, but for one on
// this machine's loopback that the reference itself names; link-local addresses
// and the networks an operator denies are never connected to, whatever a name or
// a redirect leads to. Everything a registry answers is bounded.
package oci
