// Package oci reads container images: from a registry by reference, or from a
// tarball as docker save and OCI layouts have it. It says what an image is made
// of and hands out its layers, checked against their digests; making a tree of
// them is the caller's.
//
// References come from users. Registries are on the public internet, or in the
// networks an operator names; no other address is connected to, whatever a name
// or a redirect leads to. They are spoken to by HTTPS, but for one on this
// machine's loopback that the reference itself names, where an operator lets
// them be there. Everything a registry answers is bounded.
package oci
