// Package cli is the command line for people and scripts: sandboxes, files,
// templates, keys and hosts, all through the public API and nothing else.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not allowed, 4 not found,
// 5 the state of the thing rules it out, 6 the server cannot be reached or is
// too busy. `sandbox exec` and `sandbox shell` pass the command's own.
//
// What comes out of a sandbox or from other people is printed without its
// control characters, but for the output of commands, which is passed exactly.
package cli
