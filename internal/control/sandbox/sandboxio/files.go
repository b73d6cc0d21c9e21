package sandboxio

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"

	pb "skerry.dev/skerry/gen/guestrpc/filesystem"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// FileType is what an entry is.
type FileType string

// The types of an entry.
const (
	TypeFile      FileType = "file"
	TypeDirectory FileType = "directory"
	TypeSymlink   FileType = "symlink"
	TypeOther     FileType = "other"
)

// FileEntry is one entry of the sandbox's file system, a link as itself.
type FileEntry struct {
	Name          string
	Path          string // absolute
	Type          FileType
	Size          int64 // bytes
	Mode          string
	Owner, Group  string
	ModifiedAt    time.Time
	SymlinkTarget *string
}

// Bounds of a listing's depth.
const (
	DefaultDepth = 1
	MaxDepth     = 16
)

// Place is a path and whose home and ownership count.
type Place struct {
	Path string
	User string // empty is the default user
}

// StatFile describes one entry; file_not_found when there is none.
func (s *Service) StatFile(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place) (FileEntry, error) {
	return s.atPlace(ctx, by, sandbox, at, func(ctx context.Context) (*pb.EntryInfo, error) {
		res, err := s.files.Stat(ctx, &pb.StatRequest{Path: at.Path})
		return res.GetEntry(), err
	})
}

// MakeDirectory makes a directory and its parents; already_exists when it is
// there.
func (s *Service) MakeDirectory(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place) (FileEntry, error) {
	defer s.listings.forget(sandbox)
	return s.atPlace(ctx, by, sandbox, at, func(ctx context.Context) (*pb.EntryInfo, error) {
		res, err := s.files.MakeDir(ctx, &pb.MakeDirRequest{Path: at.Path})
		return res.GetEntry(), err
	})
}

// MoveFile moves or renames, making the parents of the destination.
func (s *Service) MoveFile(ctx context.Context, by principal.Principal, sandbox id.Sandbox, from Place, to string) (FileEntry, error) {
	if err := checkPath("destination", to); err != nil {
		return FileEntry{}, err
	}
	defer s.listings.forget(sandbox)
	return s.atPlace(ctx, by, sandbox, from, func(ctx context.Context) (*pb.EntryInfo, error) {
		res, err := s.files.Move(ctx, &pb.MoveRequest{Source: from.Path, Destination: to})
		return res.GetEntry(), err
	})
}

// RemoveFile removes a file or a whole directory; what is not there is removed
// already.
func (s *Service) RemoveFile(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place) error {
	if err := checkPath("path", at.Path); err != nil {
		return err
	}
	ctx, v, err := s.enter(ctx, by, sandbox, at.User)
	if err != nil {
		return err
	}
	defer v.leave()
	defer s.listings.forget(sandbox)
	_, err = s.files.Remove(ctx, &pb.RemoveRequest{Path: at.Path})
	return v.fileError(ctx, err, at.Path)
}

// atPlace makes a call that answers with one entry.
func (s *Service) atPlace(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place, call func(context.Context) (*pb.EntryInfo, error)) (FileEntry, error) {
	if err := checkPath("path", at.Path); err != nil {
		return FileEntry{}, err
	}
	ctx, v, err := s.enter(ctx, by, sandbox, at.User)
	if err != nil {
		return FileEntry{}, err
	}
	defer v.leave()
	e, err := call(ctx)
	if err != nil {
		return FileEntry{}, v.fileError(ctx, err, at.Path)
	}
	return entryOf(e)
}

// position is where a page of a listing ended: the last path, and how many
// entries of that very path were given. Names that are no UTF-8 may share one.
type position struct {
	Path string `json:"p"`
	Seen int    `json:"n"`
}

// ListFiles lists what is below a directory, depth first and sorted. A page
// begins behind where the one before ended, whatever came or went meanwhile. The
// first page shows what is there; those after it may show what was there up to
// listingLife ago.
func (s *Service) ListFiles(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place, depth int, req page.Request) (page.Page[FileEntry], error) {
	var none page.Page[FileEntry]
	if err := checkPath("path", at.Path); err != nil {
		return none, err
	}
	if depth < 1 || depth > MaxDepth {
		return none, errs.Field("depth", fmt.Sprintf("depth must be between 1 and %d.", MaxDepth))
	}
	var after position
	if req.Cursor != "" {
		if err := page.Decode(req.Cursor, &after); err != nil {
			return none, err
		}
	}
	ctx, v, err := s.enter(ctx, by, sandbox, at.User)
	if err != nil {
		return none, err
	}
	defer v.leave()
	of := directory{sandbox: v.Sandbox, incarnation: v.Incarnation, user: v.user, path: at.Path, depth: depth}
	var all []FileEntry
	known := false
	if req.Cursor != "" { // whoever begins wants what is there now
		all, known = s.listings.find(of)
	}
	if !known {
		if all, err = s.list(ctx, v, at.Path, depth); err != nil {
			return none, err
		}
		if len(all) > req.Limit {
			s.listings.keep(of, all)
		}
	}
	all = all[skip(all, after, req.Cursor != ""):]
	rows := all[:min(len(all), req.Limit+1):min(len(all), req.Limit+1)]
	return page.Of(rows, req.Limit, func(last FileEntry) any {
		p := position{Path: last.Path}
		for _, r := range rows[:req.Limit] {
			if r.Path == p.Path {
				p.Seen++
			}
		}
		if p.Path == after.Path {
			p.Seen += after.Seen
		}
		return p
	})
}

// list reads what is below a directory, sorted.
func (s *Service) list(ctx context.Context, v *visit, path string, depth int) ([]FileEntry, error) {
	res, err := s.files.ListDir(ctx, &pb.ListDirRequest{Path: path, Depth: uint32(depth)})
	if err != nil {
		return nil, v.fileError(ctx, err, path)
	}
	if len(res.GetEntries()) > maxListed {
		return nil, tooManyEntries()
	}
	all := make([]FileEntry, len(res.GetEntries()))
	for i, e := range res.GetEntries() {
		if all[i], err = entryOf(e); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b FileEntry) int { return comparePaths(a.Path, b.Path) })
	return all, nil
}

// skip returns where the page after the position begins.
func skip(all []FileEntry, after position, given bool) int {
	if !given {
		return 0
	}
	i := sort.Search(len(all), func(i int) bool { return comparePaths(all[i].Path, after.Path) >= 0 })
	for n := 0; n < after.Seen && i < len(all) && all[i].Path == after.Path; n++ {
		i++
	}
	return i
}

// comparePaths orders depth first: a directory comes right before what is in it.
func comparePaths(a, b string) int {
	for a != "" && b != "" {
		x, restA, _ := strings.Cut(a, "/")
		y, restB, _ := strings.Cut(b, "/")
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = restA, restB
	}
	return strings.Compare(a, b)
}

func tooManyEntries() *errs.Error {
	return errs.Exhausted("too_many_entries",
		fmt.Sprintf("The listing has more than %d entries or 64 MiB. List a smaller directory, or with less depth.", maxListed))
}

// entryOf believes of a guest's entry only what makes sense.
func entryOf(e *pb.EntryInfo) (FileEntry, error) {
	if e == nil || len(e.GetPath()) > 4*maxPath || len(e.GetName()) > maxPath {
		return FileEntry{}, misbehaves("an entry without a path")
	}
	out := FileEntry{
		Name: e.GetName(), Path: e.GetPath(), Size: max(e.GetSize(), 0), Mode: clean(e.GetPermissions()),
		Owner: clean(e.GetOwner()), Group: clean(e.GetGroup()), SymlinkTarget: e.SymlinkTarget,
	}
	switch {
	case e.SymlinkTarget != nil:
		out.Type = TypeSymlink
	case e.GetType() == pb.FileType_FILE_TYPE_FILE:
		out.Type = TypeFile
	case e.GetType() == pb.FileType_FILE_TYPE_DIRECTORY:
		out.Type = TypeDirectory
	case e.GetType() == pb.FileType_FILE_TYPE_SYMLINK:
		out.Type = TypeSymlink
	default:
		out.Type = TypeOther
	}
	if ts := e.GetModifiedTime(); ts.IsValid() {
		out.ModifiedAt = ts.AsTime()
	} else {
		out.ModifiedAt = time.Unix(0, 0).UTC()
	}
	return out, nil
}

func checkPath(field, p string) error {
	if p == "" || len(p) > maxPath || !utf8.ValidString(p) || strings.IndexByte(p, 0) >= 0 {
		return errs.Invalid("invalid_path", fmt.Sprintf("%s must be 1 to %d bytes of UTF-8 without a zero byte.", field, maxPath)).With("field", field)
	}
	return nil
}

// fileError turns an error of the filesystem service into ours.
func (v *visit) fileError(ctx context.Context, err error, path string) error {
	if err == nil {
		return nil
	}
	if over := v.over(ctx); over != nil {
		return over
	}
	ce := said(err)
	if ce == nil {
		if connect.CodeOf(err) == connect.CodeResourceExhausted {
			return tooManyEntries().Because(err)
		}
		return outage(err)
	}
	text := clean(ce.Message())
	switch ce.Code() {
	case connect.CodeInvalidArgument:
		return errs.Invalid("invalid_path", "The sandbox refuses this path: "+text).With("field", "path").Because(ce)
	case connect.CodeUnauthenticated:
		return v.unknownUser(ce.Message()).Because(ce)
	case connect.CodeNotFound:
		return fileNotFound(path).Because(ce)
	case connect.CodeAlreadyExists:
		return errs.Conflict("already_exists", fmt.Sprintf("%s exists already.", quote(path))).Because(ce)
	case connect.CodePermissionDenied:
		return errs.Forbidden("permission_denied", "The sandbox's system does not allow this: "+text).Because(ce)
	case connect.CodeResourceExhausted:
		if strings.HasPrefix(ce.Message(), "not enough disk space") {
			return diskFull().Because(ce)
		}
		return tooManyEntries().Because(ce)
	default:
		return outage(ce)
	}
}

func fileNotFound(path string) *errs.Error {
	return errs.NotFound("file_not_found", fmt.Sprintf("There is no %s in the sandbox.", quote(path)))
}

func diskFull() *errs.Error {
	return errs.Exhausted("disk_full", "The sandbox's disk is full; what was there before is unchanged. Remove something, or use a sandbox with a larger disk.")
}
