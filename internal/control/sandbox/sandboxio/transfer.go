package sandboxio

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	pb "skerry.dev/skerry/gen/guestrpc/filesystem"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	pathFiles      = "/files"
	maxGuestAnswer = 64 << 10 // of JSON around a transfer, in bytes
)

// Conditions of a download, as HTTP has them; empty is none.
type Conditions struct {
	Range           string
	IfRange         string
	IfNoneMatch     string
	IfModifiedSince string
}

// Download is a file on its way. The caller must Close it.
type Download struct {
	// Partial tells that only the range asked for comes; Unchanged that nothing
	// comes, because the caller has the file already.
	Partial, Unchanged bool
	// Length in bytes, or -1 when it is known only at the end.
	Length       int64
	ContentRange string
	ETag         string
	LastModified string

	ctx   context.Context
	visit *visit
	body  io.ReadCloser
}

// DownloadFile opens a file for reading.
func (s *Service) DownloadFile(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place, cond Conditions) (*Download, error) {
	if err := checkPath("path", at.Path); err != nil {
		return nil, err
	}
	ctx, v, err := s.enter(ctx, by, sandbox, at.User)
	if err != nil {
		return nil, err
	}
	d, err := s.download(ctx, v, at, cond)
	if err != nil {
		v.leave()
		return nil, err
	}
	return d, nil
}

func (s *Service) download(ctx context.Context, v *visit, at Place, cond Conditions) (*Download, error) {
	req, err := v.request(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	// Several ranges at once would come as multipart, which is no file.
	if cond.Range != "" && !strings.Contains(cond.Range, ",") {
		req.Header.Set("Range", cond.Range)
		setIf(req.Header, "If-Range", cond.IfRange)
	}
	setIf(req.Header, "If-None-Match", cond.IfNoneMatch)
	setIf(req.Header, "If-Modified-Since", cond.IfModifiedSince)
	res, err := v.Transport.RoundTrip(req)
	if err != nil {
		return nil, v.cut(ctx, err)
	}
	h := res.Header
	d := &Download{
		Partial: res.StatusCode == http.StatusPartialContent, Unchanged: res.StatusCode == http.StatusNotModified,
		Length: res.ContentLength, ContentRange: word(h, "Content-Range"), ETag: word(h, "ETag"), LastModified: word(h, "Last-Modified"),
		ctx: ctx, visit: v, body: res.Body,
	}
	encoded := h.Get("Content-Encoding") != "" && h.Get("Content-Encoding") != "identity"
	switch {
	case res.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		res.Body.Close()
		return nil, errs.Invalid("range_not_satisfiable", "The file is shorter than where the range begins. Ask without Range.").With("content_range", d.ContentRange)
	case res.StatusCode != http.StatusOK && !d.Partial && !d.Unchanged:
		defer res.Body.Close()
		return nil, s.transferError(ctx, v, res, at)
	case encoded, d.Partial && req.Header.Get("Range") == "", d.Partial && d.ContentRange == "":
		res.Body.Close()
		return nil, misbehaves("an encoding or a range nobody asked for")
	}
	return d, nil
}

// Read reads the file. A connection that breaks and a sandbox that ends are
// errors, never an end of file.
func (d *Download) Read(p []byte) (int, error) {
	n, err := d.body.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = d.visit.cut(d.ctx, err)
	}
	return n, err
}

// Close ends the download; safe to repeat.
func (d *Download) Close() error {
	err := d.body.Close()
	d.visit.leave()
	return err
}

// UploadFile writes a file from body, which has the given size in bytes, or -1
// when that is known only at its end. The file appears whole, with its parents,
// when body ended well; otherwise what was there before stays.
func (s *Service) UploadFile(ctx context.Context, by principal.Principal, sandbox id.Sandbox, at Place, body io.Reader, size int64) (FileEntry, error) {
	if err := checkPath("path", at.Path); err != nil {
		return FileEntry{}, err
	}
	ctx, v, err := s.enter(ctx, by, sandbox, at.User)
	if err != nil {
		return FileEntry{}, err
	}
	defer v.leave()
	defer s.listings.forget(sandbox)
	from := &upload{from: body}
	req, err := v.request(ctx, http.MethodPost, at, from)
	if err != nil {
		return FileEntry{}, err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.ContentLength = size
	if size == 0 {
		req.Body = http.NoBody
	}
	res, err := v.Transport.RoundTrip(req)
	if err != nil {
		if cause := from.failed(); cause != nil && v.over(ctx) == nil {
			return FileEntry{}, errs.Invalid("upload_cut", "The upload broke off before its end; nothing was written. Send it again.").Because(cause)
		}
		return FileEntry{}, v.cut(ctx, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return FileEntry{}, s.transferError(ctx, v, res, at)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxGuestAnswer)); err != nil {
		return FileEntry{}, v.cut(ctx, err)
	}
	e, err := s.files.Stat(ctx, &pb.StatRequest{Path: at.Path})
	if err != nil {
		return FileEntry{}, v.fileError(ctx, err, at.Path)
	}
	return entryOf(e.GetEntry())
}

// request makes a request to the guest's file endpoint.
func (v *visit) request(ctx context.Context, method string, at Place, body io.Reader) (*http.Request, error) {
	q := url.Values{"path": {at.Path}}
	if v.user != "" {
		q.Set("username", v.user)
	}
	req, err := http.NewRequestWithContext(ctx, method, guestURL+pathFiles+"?"+q.Encode(), body)
	if err != nil {
		return nil, errs.Internal(err)
	}
	v.sign(req.Header)
	return req, nil
}

// cut is an error of a transfer that broke.
func (v *visit) cut(ctx context.Context, err error) error {
	if over := v.over(ctx); over != nil {
		return over
	}
	return outage(err)
}

// transferError turns the guest's answer to a transfer into an error.
func (s *Service) transferError(ctx context.Context, v *visit, res *http.Response, at Place) error {
	var said struct {
		Message string `json:"message"`
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxGuestAnswer))
	if err == nil {
		err = json.Unmarshal(raw, &said)
	}
	if err != nil {
		said.Message = ""
	}
	text := clean(said.Message)
	switch res.StatusCode {
	case http.StatusBadRequest:
		// The guest has one status for both; a directory is worth its own word.
		if e, err := s.files.Stat(ctx, &pb.StatRequest{Path: at.Path}); err == nil && e.GetEntry().GetType() == pb.FileType_FILE_TYPE_DIRECTORY {
			return errs.Invalid("is_a_directory", "The path is a directory. Name a file, or use files/list.").With("field", "path")
		}
		return errs.Invalid("invalid_path", "The sandbox refuses this path: "+text).With("field", "path")
	case http.StatusUnauthorized:
		return v.unknownUser(said.Message)
	case http.StatusForbidden:
		return errs.Forbidden("permission_denied", "The sandbox's system does not allow this: "+text)
	case http.StatusNotFound:
		return fileNotFound(at.Path)
	case http.StatusInsufficientStorage:
		return diskFull()
	default:
		return v.cut(ctx, errors.New("the guest answered "+strconv.Itoa(res.StatusCode)+": "+text))
	}
}

// upload remembers whether the caller's side of an upload failed. The transport
// reads it on a goroutine of its own.
type upload struct {
	from io.Reader
	err  atomic.Pointer[error]
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	n, err := u.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		u.err.Store(&err)
	}
	return n, err
}

func (u *upload) failed() error {
	if err := u.err.Load(); err != nil {
		return *err
	}
	return nil
}

func setIf(h http.Header, key, value string) {
	if value != "" {
		h.Set(key, value)
	}
}

const maxWord = 256

// word is a header of the guest's answer that is short enough to be passed on.
func word(h http.Header, key string) string {
	if v := h.Get(key); len(v) <= maxWord {
		return v
	}
	return ""
}
