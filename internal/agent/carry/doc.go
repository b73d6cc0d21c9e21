// Package carry moves what this host has to the artifact store and back: saved
// states, images, programs of engines. There is one transfer of a thing at a
// time; who asks for it again meanwhile waits for the same one, and it ends when
// nobody does any more. What a broken one left is gone on with by the next.
package carry
