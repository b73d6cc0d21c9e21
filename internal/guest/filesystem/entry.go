package filesystem

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "skerry.dev/skerry/gen/guestrpc/filesystem"
)

// metadataPrefix is where file metadata lives among the extended attributes.
const (
	metadataPrefix   = "user.e2b."
	metadataKeyMax   = 246
	metadataTotalMax = 4096
)

// entry describes the path as asked for, which is not resolved. For a symbolic
// link type and mode are the target's, size and permissions the link's.
func (s *Service) entry(path string) (*pb.EntryInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return s.describe(path, fi), nil
}

func (s *Service) describe(path string, fi os.FileInfo) *pb.EntryInfo {
	return describe(path, fi, s.opt.Accounts.Names)
}

// namesFunc says what a user and a group are called.
type namesFunc func(uid, gid uint32) (user, group string)

// once asks for each pair a single time: every question opens files, which in a
// large directory takes longer than all the rest.
func once(names namesFunc) namesFunc {
	type ids struct{ uid, gid uint32 }
	type called struct{ user, group string }
	known := map[ids]called{}
	return func(uid, gid uint32) (string, string) {
		c, ok := known[ids{uid, gid}]
		if !ok {
			c.user, c.group = names(uid, gid)
			known[ids{uid, gid}] = c
		}
		return c.user, c.group
	}
}

func describe(path string, fi os.FileInfo, names namesFunc) *pb.EntryInfo {
	e := &pb.EntryInfo{
		Name: text(filepath.Base(path)), Path: text(path), Type: typeOf(fi.Mode()),
		Size: fi.Size(), Mode: uint32(fi.Mode().Perm()), Permissions: fi.Mode().String(),
		ModifiedTime: timestamppb.New(fi.ModTime()),
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		owner, group := names(st.Uid, st.Gid)
		e.Owner, e.Group = text(owner), text(group)
	}
	if fi.Mode()&os.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(path)
		if err == nil {
			if real, err := os.Stat(target); err == nil {
				e.Type, e.Mode = typeOf(real.Mode()), uint32(real.Mode().Perm())
			}
		} else if target, err = os.Readlink(path); err == nil && !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target) // dangling: where it would point
		}
		target = text(target)
		e.SymlinkTarget = &target
	}
	if m := readMetadata(path); len(m) > 0 {
		e.Metadata = m
	}
	return e
}

// text makes any file name a valid string of the protocol, which knows no
// others; such a name cannot be used to come back.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func typeOf(m os.FileMode) pb.FileType {
	switch {
	case m.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	case m.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	case m&os.ModeSymlink != 0:
		return pb.FileType_FILE_TYPE_SYMLINK
	default:
		return pb.FileType_FILE_TYPE_UNSPECIFIED
	}
}

// readMetadata returns what an upload stored with the file; nil where the file
// system knows no extended attributes.
func readMetadata(path string) map[string]string {
	n, err := unix.Listxattr(path, nil)
	if err != nil || n <= 0 || n > 64<<10 {
		return nil
	}
	buf := make([]byte, n)
	if n, err = unix.Listxattr(path, buf); err != nil {
		return nil
	}
	var m map[string]string
	value := make([]byte, metadataTotalMax)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok || key == "" {
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			continue
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[text(key)] = text(string(value[:n]))
	}
	return m
}

// writeMetadata stores the set on a file that has none yet.
func writeMetadata(path string, m map[string]string) error {
	for _, k := range sortedKeys(m) {
		if err := unix.Setxattr(path, metadataPrefix+k, []byte(m[k]), 0); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
