// Package state keeps the saved states of sandboxes on this host's disk: what
// a paused sandbox is, and what others are started from.
//
// A state is a directory named after its id: `image`, which the engine wrote
// and reads, and `state.json`, which names every file of it with its size and
// SHA-256. It comes to be under another name and is renamed last, when each
// file, both directories and the manifest are on the disk; so whatever carries
// its proper name is complete, and everything else is removed at the next
// start. Beside them may lie what the state can do without: its disk in a form of
// its own (disk.tar.zst), and the guest daemon that its memory goes on with (guest).
//
// The files are memory of sandboxes, and state.json holds a secret: all is
// readable by its owner alone.
package state
