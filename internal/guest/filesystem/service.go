// Package filesystem serves the sandbox's files: the Filesystem RPC service
// and the /files endpoints. It works with the daemon's rights, gives what it
// creates to the acting user, and never holds a whole file in memory.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	pb "skerry.dev/skerry/gen/guestrpc/filesystem"
	"skerry.dev/skerry/gen/guestrpc/filesystem/filesystemconnect"
	"skerry.dev/skerry/internal/guest/passwd"
)

// listMax bounds the entries of one listing.
const listMax = 100_000

// Options of a Service. All but Log are required.
type Options struct {
	Accounts *passwd.Database
	// DefaultUser acts for callers who name none.
	DefaultUser func() string
	// AccessToken is what signatures are made with; empty means open access.
	AccessToken func() string
	Log         *slog.Logger
}

// Service owns the watchers; everything else is stateless.
type Service struct {
	opt      Options
	watchers *watchers

	mu     sync.Mutex
	active map[*watch]struct{}
}

var _ filesystemconnect.FilesystemHandler = (*Service)(nil)

// New makes a service. Close ends its watchers.
func New(opt Options) *Service {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{opt: opt, watchers: newWatchers(), active: make(map[*watch]struct{})}
}

// Close ends all watchers.
func (s *Service) Close() { s.watchers.close() }

// rpcError is the one place where failures become codes of the RPC protocol.
func rpcError(err error, path string) error {
	if err == nil {
		return nil
	}
	var f *failure
	if !errors.As(classify(err, path), &f) {
		return connect.NewError(connect.CodeInternal, err)
	}
	code := map[kind]connect.Code{
		kindInvalid: connect.CodeInvalidArgument, kindUser: connect.CodeUnauthenticated,
		kindNotFound: connect.CodeNotFound, kindExists: connect.CodeAlreadyExists,
		kindFull: connect.CodeResourceExhausted, kindTooMany: connect.CodeResourceExhausted,
		kindDenied: connect.CodePermissionDenied, kindInternal: connect.CodeInternal,
	}[f.kind]
	return connect.NewError(code, f)
}

// target resolves a request's path for its acting user.
func (s *Service) target(ctx context.Context, path string) (string, passwd.User, error) {
	u, err := s.acting(ctx)
	if err != nil {
		return "", u, err
	}
	p, err := resolve(u, path)
	return p, u, err
}

// Stat describes one path.
func (s *Service) Stat(ctx context.Context, req *pb.StatRequest) (*pb.StatResponse, error) {
	p, _, err := s.target(ctx, req.GetPath())
	if err != nil {
		return nil, rpcError(err, req.GetPath())
	}
	e, err := s.entry(p)
	if err != nil {
		return nil, rpcError(err, p)
	}
	return &pb.StatResponse{Entry: s.trim(ctx, e)}, nil
}

// MakeDir creates a directory and its parents; already_exists when it is there.
func (s *Service) MakeDir(ctx context.Context, req *pb.MakeDirRequest) (*pb.MakeDirResponse, error) {
	p, u, err := s.target(ctx, req.GetPath())
	if err != nil {
		return nil, rpcError(err, req.GetPath())
	}
	created, err := makeDirs(p, u)
	if err == nil && !created {
		err = fail(kindExists, "directory '%s' already exists", p)
	}
	if err != nil {
		return nil, rpcError(err, p)
	}
	e, err := s.entry(p)
	if err != nil {
		return nil, rpcError(err, p)
	}
	return &pb.MakeDirResponse{Entry: s.trim(ctx, e)}, nil
}

// Move renames, over file system borders by copying; it creates the parents.
func (s *Service) Move(ctx context.Context, req *pb.MoveRequest) (*pb.MoveResponse, error) {
	from, u, err := s.target(ctx, req.GetSource())
	if err != nil {
		return nil, rpcError(err, req.GetSource())
	}
	to, err := resolve(u, req.GetDestination())
	if err != nil {
		return nil, rpcError(err, req.GetDestination())
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, rpcError(err, from)
	}
	if _, err := makeDirs(filepath.Dir(to), u); err != nil {
		return nil, rpcError(err, to)
	}
	err = os.Rename(from, to)
	if errors.Is(err, unix.EXDEV) {
		err = moveByCopy(ctx, from, to)
	}
	if err != nil {
		return nil, rpcError(err, to)
	}
	e, err := s.entry(to)
	if err != nil {
		return nil, rpcError(err, to)
	}
	return &pb.MoveResponse{Entry: s.trim(ctx, e)}, nil
}

// ListDir lists down to a depth, directories before what is in them, sorted.
func (s *Service) ListDir(ctx context.Context, req *pb.ListDirRequest) (*pb.ListDirResponse, error) {
	base, _, err := s.target(ctx, req.GetPath())
	if err != nil {
		return nil, rpcError(err, req.GetPath())
	}
	fi, err := os.Stat(base)
	if err == nil && !fi.IsDir() {
		err = fail(kindInvalid, "path '%s' is not a directory", base)
	}
	if err != nil {
		return nil, rpcError(err, base)
	}
	res := &pb.ListDirResponse{}
	if err := s.list(ctx, res, base, max(int(min(req.GetDepth(), 1<<16)), 1), once(s.opt.Accounts.Names)); err != nil {
		return nil, rpcError(err, base)
	}
	return res, nil
}

func (s *Service) list(ctx context.Context, res *pb.ListDirResponse, dir string, depth int, names namesFunc) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		p := filepath.Join(dir, d.Name())
		fi, err := os.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed while listing
		}
		if err != nil {
			return err
		}
		if len(res.Entries) >= listMax {
			return fail(kindTooMany, "'%s' has more than %d entries: list with less depth", dir, listMax)
		}
		res.Entries = append(res.Entries, s.trim(ctx, describe(p, fi, names)))
		if fi.IsDir() && depth > 1 {
			if err := s.list(ctx, res, p, depth-1, names); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Remove deletes recursively and is silent when nothing is there.
func (s *Service) Remove(ctx context.Context, req *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	p, _, err := s.target(ctx, req.GetPath())
	if err == nil && p == "/" {
		err = fail(kindInvalid, "the root directory cannot be removed")
	}
	if err != nil {
		return nil, rpcError(err, req.GetPath())
	}
	if err := os.RemoveAll(p); err != nil {
		return nil, rpcError(err, p)
	}
	return &pb.RemoveResponse{}, nil
}

// trim leaves out what the oldest Python clients do not know and would refuse.
func (s *Service) trim(ctx context.Context, e *pb.EntryInfo) *pb.EntryInfo {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok || !strings.HasPrefix(info.RequestHeader().Get("User-Agent"), "connect-python") {
		return e
	}
	return &pb.EntryInfo{Name: e.Name, Type: e.Type, Path: e.Path}
}

// moveByCopy copies a tree with modes, owners, times and metadata, renames it
// into place and only then removes the source. A failure leaves the source.
func moveByCopy(ctx context.Context, from, to string) error {
	tmp, err := os.MkdirTemp(filepath.Dir(to), tempPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	staged := filepath.Join(tmp, "x")
	if err := copyTree(ctx, from, staged); err != nil {
		return err
	}
	if err := os.Rename(staged, to); err != nil {
		return err
	}
	return os.RemoveAll(from)
}

func copyTree(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch m := fi.Mode(); {
	case m.IsDir():
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		entries, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		for _, d := range entries {
			if err := copyTree(ctx, filepath.Join(from, d.Name()), filepath.Join(to, d.Name())); err != nil {
				return err
			}
		}
	case m&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	case m.IsRegular():
		if err := copyFile(from, to); err != nil {
			return err
		}
	default:
		return fail(kindInvalid, "'%s' is a device, pipe or socket and cannot be moved to another file system", from)
	}
	return copyAttributes(from, to, fi)
}

func copyAttributes(from, to string, fi fs.FileInfo) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if fi.Mode()&os.ModeSymlink != 0 {
		return nil
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := writeMetadata(to, readMetadata(from)); err != nil {
		return fmt.Errorf("copying metadata: %w", err)
	}
	return os.Chtimes(to, fi.ModTime(), fi.ModTime())
}
