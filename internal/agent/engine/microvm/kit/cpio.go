package kit

import (
	"fmt"
	"io"
)

// archive writes a cpio archive of the kind kernels unpack ("newc"). The same
// content makes the same bytes: no times, no owners but root, numbered inodes.
type archive struct {
	w     io.Writer
	inode uint32
	at    int64
	err   error
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
	modeNode = 0o020600
)

func (a *archive) dir(name string)               { a.entry(name, modeDir, 0, 0, nil) }
func (a *archive) file(name string, data []byte) { a.entry(name, modeFile, 0, 0, data) }

// device is a character device.
func (a *archive) device(name string, major, minor uint32) {
	a.entry(name, modeNode, major, minor, nil)
}

// close ends the archive and returns the first error there was.
func (a *archive) close() error {
	a.inode = 0
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	a.pad(512)
	return a.err
}

func (a *archive) entry(name string, mode, major, minor uint32, data []byte) {
	links := 1
	if mode == modeDir {
		links = 2
	}
	a.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0))
	a.inode++
	a.write([]byte(name + "\x00"))
	a.pad(4)
	a.write(data)
	a.pad(4)
}

func (a *archive) pad(to int64) {
	if over := a.at % to; over > 0 {
		a.write(make([]byte, to-over))
	}
}

func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	n, err := a.w.Write(b)
	a.at += int64(n)
	a.err = err
}
