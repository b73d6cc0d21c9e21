package buildcontext

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"strings"
)

// NoSuchFileError is a source of a COPY that the context does not have.
type NoSuchFileError struct {
	Name string
	// Ignored: .dockerignore leaves it out.
	Ignored bool
}

// Error says what to do.
func (e *NoSuchFileError) Error() string {
	if e.Ignored {
		return fmt.Sprintf("%q is left out of the context by .dockerignore", clip(e.Name))
	}
	return fmt.Sprintf("there is no %q in the context", clip(e.Name))
}

// ManyFilesError is a pattern that fits several files, where one is wanted.
type ManyFilesError struct{ Name string }

// Error says what to do.
func (e *ManyFilesError) Error() string {
	return fmt.Sprintf("%q fits several files: end the destination with / to copy them into a directory", clip(e.Name))
}

// Selection is what one COPY takes, in the order in which it is put down.
type Selection struct {
	archive *Archive
	items   []item
	// File: it is one file for which the destination is a name, or a directory
	// when there is one of that name.
	File bool
}

type item struct {
	*entry
	to string // relative to the destination
}

// Select finds what a COPY takes: files as they are, of directories what is in
// them. Sources are patterns; intoDir says that the destination is a directory.
func (a *Archive) Select(sources []string, intoDir bool) (*Selection, error) {
	s := &Selection{archive: a}
	files, dirs := 0, 0
	for _, source := range sources {
		found, err := a.find(source)
		if err != nil {
			return nil, err
		}
		if len(found) > 1 && !intoDir {
			return nil, &ManyFilesError{source}
		}
		for _, f := range found {
			e, err := a.follow(f.name)
			if err != nil {
				return nil, err
			}
			if e.kind != tar.TypeDir {
				s.items = append(s.items, item{e, path.Base(f.name)}) // by the name it was asked for
				files++
				continue
			}
			dirs++
			a.below(e, func(x *entry, rel string) {
				if len(s.items) <= maxEntries {
					s.items = append(s.items, item{x, rel})
				}
			})
			if len(s.items) > maxEntries {
				return nil, refused("one COPY takes more than %d files", maxEntries)
			}
		}
	}
	s.File = files == 1 && dirs == 0 && !intoDir
	return s, nil
}

// find returns what a pattern names.
func (a *Archive) find(source string) ([]*entry, error) {
	if !strings.ContainsAny(source, `*?[\`) {
		e, err := a.resolve(source, false)
		if err != nil {
			return nil, err
		}
		return []*entry{e}, nil
	}
	var out []*entry
	for _, e := range a.sorted {
		if e.name == "." {
			continue
		}
		if ok, err := path.Match(source, e.name); err == nil && ok {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return nil, &NoSuchFileError{Name: source}
	}
	return out, nil
}

func (a *Archive) missing(name string) error {
	return &NoSuchFileError{Name: name, Ignored: a.ignore.Excludes(name)}
}

// follow resolves a name, its last part too.
func (a *Archive) follow(name string) (*entry, error) { return a.resolve(name, true) }

// resolve walks a name through symbolic links, none of which leads out: the
// context is all there is. The result of a link that is not followed bears the
// link's name.
func (a *Archive) resolve(name string, last bool) (*entry, error) {
	left := strings.Split(path.Clean(name), "/")
	at := "."
	for links := 0; len(left) > 0; {
		part := left[0]
		left = left[1:]
		switch part {
		case ".", "":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		e := a.entries[next]
		if e == nil {
			return nil, a.missing(name)
		}
		if e.kind == tar.TypeSymlink && (last || len(left) > 0) {
			if links++; links > maxLinks {
				return nil, refused("the links at %q lead in a circle", clip(name))
			}
			if path.IsAbs(e.link) {
				at = "."
			}
			left = append(strings.Split(strings.Trim(path.Clean(e.link), "/"), "/"), left...)
			continue
		}
		if len(left) > 0 && e.kind != tar.TypeDir {
			return nil, a.missing(name)
		}
		at = next
	}
	return a.entries[at], nil
}

// below calls visit with everything in a directory, and how it is called from
// there.
func (a *Archive) below(dir *entry, visit func(e *entry, rel string)) {
	prefix := dir.name + "/"
	if dir.name == "." {
		prefix = ""
	}
	for _, e := range a.sorted {
		if rel, ok := strings.CutPrefix(e.name, prefix); ok && e != dir && e.name != "." {
			visit(e, rel)
		}
	}
}

// Digest is over everything that becomes of the selection, but its times.
func (s *Selection) Digest(ctx context.Context) ([sha256.Size]byte, error) {
	h := sha256.New()
	var number [8]byte
	field := func(b []byte) {
		binary.BigEndian.PutUint64(number[:], uint64(len(b)))
		h.Write(number[:])
		h.Write(b)
	}
	var sum [sha256.Size]byte
	for _, x := range s.items {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		field([]byte(x.to))
		field([]byte{x.kind})
		binary.BigEndian.PutUint64(number[:], uint64(x.mode))
		h.Write(number[:])
		switch x.kind {
		case tar.TypeSymlink:
			field([]byte(x.link))
		case tar.TypeReg:
			content, err := s.archive.hash(x.entry)
			if err != nil {
				return sum, err
			}
			field(content[:])
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// Files is how many entries it has, and Bytes what its files hold together.
func (s *Selection) Files() int { return len(s.items) }

// Bytes is what its files hold together.
func (s *Selection) Bytes() int64 {
	var n int64
	for _, x := range s.items {
		n += x.size
	}
	return n
}

// WriteTar writes the selection as an archive of names relative to the
// destination, everything owned by uid and gid. What two sources both have comes
// twice, the later one last.
func (s *Selection) WriteTar(ctx context.Context, w io.Writer, uid, gid int) error {
	tw := tar.NewWriter(w)
	for _, x := range s.items {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := &tar.Header{
			Typeflag: x.kind, Name: x.to, Mode: x.mode, Uid: uid, Gid: gid, ModTime: x.modified, Format: tar.FormatPAX,
		}
		switch x.kind {
		case tar.TypeReg:
			h.Size = x.size
		case tar.TypeSymlink:
			h.Linkname = x.link
		case tar.TypeDir:
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", clip(x.to), err)
		}
		if x.kind != tar.TypeReg {
			continue
		}
		if n, err := io.Copy(tw, s.archive.content(x.entry)); err != nil || n != x.size {
			return fmt.Errorf("%s: %w", clip(x.to), errOr(err, io.ErrUnexpectedEOF))
		}
	}
	return tw.Close()
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
