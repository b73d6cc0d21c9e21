// Package statetest is a disk that forgets: whatever was not synced when the
// power goes is gone, and any call may find it full.
package statetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"skerry.dev/skerry/internal/agent/state"
)

// Disk is the machine's file system below one directory, with a memory of what
// of it is durable. Engines write to it directly; that is not durable either.
type Disk struct {
	state.Disk
	root string

	mu    sync.Mutex
	files map[uint64]*durable
	dirs  map[uint64]map[string]child
	calls int
	fail  func(n int, call, path string) error
	free  int64
}

// durable is a file's content on the disk. It is kept open, so that its number
// is not given to another one.
type durable struct {
	content []byte
	keep    *os.File
}

type child struct {
	inode uint64
	dir   bool
}

var _ state.FS = (*Disk)(nil)

// New returns the disk below root, which exists and whose own entry is durable.
func New(root string) *Disk {
	return &Disk{root: root, files: map[uint64]*durable{}, dirs: map[uint64]map[string]child{}, free: 1 << 40}
}

// Fail lets f decide about each change: an error is returned instead of it. n
// counts the changes from 0, from this call on.
func (d *Disk) Fail(f func(n int, call, path string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail, d.calls = f, 0
}

// SetFree says how much Free tells.
func (d *Disk) SetFree(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free = n
}

func (d *Disk) may(call, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.calls
	d.calls++
	if d.fail == nil {
		return nil
	}
	return d.fail(n, call, path)
}

// Mkdir implements state.FS.
func (d *Disk) Mkdir(path string) error {
	return errors.Join(d.may("mkdir", path), d.Disk.Mkdir(path))
}

// WriteFile implements state.FS. One that fails has written half.
func (d *Disk) WriteFile(path string, data []byte) error {
	if err := d.may("write", path); err != nil {
		return errors.Join(err, d.Disk.WriteFile(path, data[:len(data)/2]))
	}
	return d.Disk.WriteFile(path, data)
}

// Sync implements state.FS.
func (d *Disk) Sync(path string) error {
	if err := d.may("sync", path); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		entries, err := list(path)
		if err != nil {
			return err
		}
		d.dirs[inode(info)] = entries
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	n := inode(info)
	if d.files[n] == nil {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		d.files[n] = &durable{keep: f}
	}
	d.files[n].content = content
	return nil
}

// Rename implements state.FS.
func (d *Disk) Rename(from, to string) error {
	if err := d.may("rename", to); err != nil {
		return err
	}
	return d.Disk.Rename(from, to)
}

// Link implements state.FS.
func (d *Disk) Link(from, to string) error {
	if err := d.may("link", to); err != nil {
		return err
	}
	return d.Disk.Link(from, to)
}

// Remove implements state.FS.
func (d *Disk) Remove(path string) error {
	if err := d.may("remove", path); err != nil {
		return err
	}
	return d.Disk.Remove(path)
}

// Truncate implements state.FS.
func (d *Disk) Truncate(path string) error {
	if err := d.may("truncate", path); err != nil {
		return err
	}
	return d.Disk.Truncate(path)
}

// Free implements state.FS.
func (d *Disk) Free(string) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.free, nil
}

// PowerCut leaves of the disk what was durable. With rng some of the rest
// survives as well, since a disk may write what it was not asked to.
func (d *Disk) PowerCut(rng *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := d.root + ".after"
	if err := os.Mkdir(after, 0o700); err != nil {
		return err
	}
	places, err := d.places()
	if err != nil {
		return err
	}
	info, err := os.Lstat(d.root)
	if err != nil {
		return err
	}
	if err := d.rebuild(inode(info), after, places, rng); err != nil {
		return err
	}
	for _, f := range d.files {
		_ = f.keep.Close()
	}
	d.files, d.dirs, d.fail = map[uint64]*durable{}, map[uint64]map[string]child{}, nil
	if err := errors.Join(os.RemoveAll(d.root), os.Rename(after, d.root)); err != nil {
		return err
	}
	// What is there now was read from the disk.
	return filepath.WalkDir(d.root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return d.settle(path)
	})
}

func (d *Disk) settle(path string) error {
	d.mu.Unlock()
	defer d.mu.Lock()
	return d.Sync(path)
}

// Close lets go of the files that are kept open.
func (d *Disk) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.files {
		_ = f.keep.Close()
	}
	d.files = map[uint64]*durable{}
}

// places is where everything is now, by inode: it may have been renamed since
// its name was durable.
func (d *Disk) places() (map[uint64]string, error) {
	out := map[uint64]string{}
	return out, filepath.WalkDir(d.root, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			out[inode(info)] = path
		}
		return err
	})
}

// rebuild copies to `to` what survives of a directory: what its durable entries
// point to, and of what it holds now what luck has it.
func (d *Disk) rebuild(dir uint64, to string, places map[uint64]string, rng *rand.Rand) error {
	now := map[string]child{}
	if at, ok := places[dir]; ok {
		var err error
		if now, err = list(at); err != nil {
			return err
		}
	}
	entries := map[string]child{}
	for name, c := range d.dirs[dir] {
		if _, still := now[name]; still || rng == nil || rng.IntN(2) == 0 {
			entries[name] = c
		}
	}
	for name, c := range now {
		if rng != nil && rng.IntN(2) == 0 {
			entries[name] = c
		}
	}
	for name, c := range entries {
		path := filepath.Join(to, name)
		if c.dir {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			if err := d.rebuild(c.inode, path, places, rng); err != nil {
				return err
			}
			continue
		}
		var content []byte // of a file that was never synced: its length alone may be there
		if f := d.files[c.inode]; f != nil {
			content = f.content
		} else if b, err := os.ReadFile(places[c.inode]); err == nil && rng != nil {
			content = b[:rng.IntN(len(b)+1)]
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func list(dir string) (map[string]child, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]child, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		out[e.Name()] = child{inode: inode(info), dir: e.IsDir()}
	}
	return out, nil
}

func inode(info os.FileInfo) uint64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		panic(fmt.Sprintf("no inode of %s", info.Name()))
	}
	return st.Ino
}
