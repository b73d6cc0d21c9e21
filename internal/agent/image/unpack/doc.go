// Package unpack applies tar archives to a directory of this machine: the
// layers of an image one over another, or what a sandbox has changed. An archive
// is hostile: nothing in it is ever read, written or removed outside the
// directory, whatever names, links and devices it is made of, and what it may
// take is bounded. Every path is resolved by the kernel with the directory as
// its root (openat2), as a program inside would see it.
//
// The same archives give the same tree, times of directories included, on any
// file system that keeps owners, modes and extended attributes. Only one Apply
// runs at a time; the directory is nobody else's.
package unpack
