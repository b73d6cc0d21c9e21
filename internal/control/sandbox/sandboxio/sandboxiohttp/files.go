package sandboxiohttp

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// stall is how long a transfer may stand still before its client counts as
	// gone. There is no limit on the whole.
	stall      = 5 * time.Minute
	copyBuffer = 64 << 10
)

func place(r *http.Request) (id.Sandbox, sandboxio.Place, error) {
	sandbox, err := id.ParseSandbox(r.PathValue("id"))
	if err != nil {
		return sandbox, sandboxio.Place{}, err
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return sandbox, sandboxio.Place{}, errs.Invalid("invalid_path", "The query is not well formed: encode the path.").With("field", "path").Because(err)
	}
	return sandbox, sandboxio.Place{Path: q.Get("path"), User: q.Get("user")}, nil
}

// DownloadFile serves GET files: the bytes, whole or the range asked for. When
// the way to the sandbox breaks after the first byte it panics with
// http.ErrAbortHandler, which is how a client is shown that the file is not
// whole; a middleware that recovers panics must let that one through.
func (h *Handlers) DownloadFile(w http.ResponseWriter, r *http.Request) {
	sandbox, at, err := place(r)
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	d, err := h.io.DownloadFile(r.Context(), principal.From(r.Context()), sandbox, at, sandboxio.Conditions{
		Range: r.Header.Get("Range"), IfRange: r.Header.Get("If-Range"),
		IfNoneMatch: r.Header.Get("If-None-Match"), IfModifiedSince: r.Header.Get("If-Modified-Since"),
	})
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	defer d.Close()
	head := w.Header()
	// What a sandbox holds is never shown by a browser as part of our origin.
	head.Set("Content-Type", "application/octet-stream")
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	head.Set("Content-Disposition", disposition(at.Path))
	head.Set("Cache-Control", "private, no-cache")
	head.Set("Accept-Ranges", "bytes")
	for key, value := range map[string]string{"ETag": d.ETag, "Last-Modified": d.LastModified, "Content-Range": d.ContentRange} {
		if value != "" {
			head.Set(key, value)
		}
	}
	status := http.StatusOK
	switch {
	case d.Unchanged:
		w.WriteHeader(http.StatusNotModified)
		return
	case d.Partial:
		status = http.StatusPartialContent
	}
	if d.Length >= 0 {
		head.Set("Content-Length", strconv.FormatInt(d.Length, 10))
	}
	w.WriteHeader(status)
	to := patientWriter{w, http.NewResponseController(w)}
	if _, err := io.CopyBuffer(to, struct{ io.Reader }{d}, make([]byte, copyBuffer)); err != nil {
		h.opt.Log.DebugContext(r.Context(), "a download broke off", "sandbox_id", sandbox.String(), "error", err)
		panic(http.ErrAbortHandler)
	}
}

// UploadFile serves PUT files: the body becomes the file, whole or not at all.
func (h *Handlers) UploadFile(w http.ResponseWriter, r *http.Request) {
	sandbox, at, err := place(r)
	if err == nil {
		err = rawBody(r)
	}
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	body := patientReader{r.Body, http.NewResponseController(w)}
	e, err := h.io.UploadFile(r.Context(), principal.From(r.Context()), sandbox, at, body, r.ContentLength)
	if err != nil {
		h.opt.WriteError(w, r, err)
		return
	}
	raw, err := entry(e).MarshalJSON()
	if err != nil {
		h.opt.WriteError(w, r, errs.Internal(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(raw)
}

// rawBody refuses bodies that are something else than the bytes of the file.
func rawBody(r *http.Request) error {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return errs.Invalid("unsupported_encoding", "Send the file as it is, without Content-Encoding.").With("field", "Content-Encoding")
	}
	if strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "multipart/") {
		return errs.Invalid("unsupported_media_type", "Send the bytes of the file as the body (application/octet-stream), not as a form.").With("field", "Content-Type")
	}
	return nil
}

// patientWriter lets a transfer take as long as it moves.
type patientWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (p patientWriter) Write(b []byte) (int, error) {
	_ = p.rc.SetWriteDeadline(time.Now().Add(stall)) // not every server has deadlines
	return p.w.Write(b)
}

type patientReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (p patientReader) Read(b []byte) (int, error) {
	_ = p.rc.SetReadDeadline(time.Now().Add(stall))
	return p.r.Read(b)
}

// disposition makes browsers save the file under its own name: an ASCII form
// for old ones, and the exact name as RFC 5987 has it.
func disposition(file string) string {
	name := path.Base(file)
	plain := strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || r < ' ' || r == 0x7f || r == '"' || r == '\\' || r == '/' {
			return '_'
		}
		return r
	}, name)
	var exact strings.Builder
	for i := range len(name) {
		if c := name[i]; c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&+-.^_`|~", c) >= 0 {
			exact.WriteByte(c)
		} else {
			fmt.Fprintf(&exact, "%%%02X", c)
		}
	}
	return fmt.Sprintf(`attachment; filename="%s"; filename*=UTF-8''%s`, plain, exact.String())
}
