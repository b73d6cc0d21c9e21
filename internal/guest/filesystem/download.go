package filesystem

import (
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

var gzips = sync.Pool{New: func() any { z, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed); return z }}

// handleDownload serves one file. Identity bodies know ranges and conditions;
// gzip is used when the caller asks for it and for neither of those.
func (s *Service) handleDownload(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if err := s.allow(r, opRead); err != nil {
		s.httpError(w, err, q.Get("path"))
		return
	}
	u, err := s.account(q.Get("username"))
	if err != nil {
		s.httpError(w, err, q.Get("path"))
		return
	}
	path, err := resolve(u, q.Get("path"))
	if err != nil {
		s.httpError(w, err, q.Get("path"))
		return
	}
	f, err := openRegular(path)
	if err != nil {
		s.httpError(w, err, path)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		s.httpError(w, err, path)
		return
	}
	w.Header().Set("Vary", "Accept-Encoding")
	zip, plain := acceptEncoding(r.Header.Values("Accept-Encoding"))
	if zip <= 0 && plain <= 0 {
		WriteError(w, codeNotAcceptable, "no acceptable encoding: identity and gzip are on offer")
		return
	}
	// Files of size 0 may have content all the same: those of /proc do.
	var first [4096]byte
	unsized := 0
	if fi.Size() == 0 {
		if unsized, err = f.Read(first[:]); err != nil && !errors.Is(err, io.EOF) {
			s.httpError(w, err, path)
			return
		}
	}
	w.Header().Set("Content-Disposition", disposition(filepath.Base(path)))
	useZip := zip > 0 && (zip >= plain || plain <= 0)
	if plain > 0 && (partial(r) || (fi.Size() == 0 && unsized == 0)) {
		useZip = false
	}
	switch {
	case !useZip && unsized == 0:
		http.ServeContent(w, r, filepath.Base(path), fi.ModTime(), f)
		return
	case w.Header().Get("Content-Type") == "":
		w.Header().Set("Content-Type", contentType(path))
	}
	var body io.Reader = io.MultiReader(strings.NewReader(string(first[:unsized])), f)
	if !useZip {
		if _, err := stream(w, body); err != nil {
			panic(http.ErrAbortHandler) // half a file must not look like a whole one
		}
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	z := gzips.Get().(*gzip.Writer)
	defer gzips.Put(z)
	z.Reset(w)
	if _, err := stream(z, body); err != nil {
		panic(http.ErrAbortHandler)
	}
	if err := z.Close(); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// partial reports whether the request only makes sense with an identity body.
func partial(r *http.Request) bool {
	for _, h := range []string{"Range", "If-Modified-Since", "If-None-Match", "If-Range", "If-Match", "If-Unmodified-Since"} {
		if r.Header.Get(h) != "" {
			return true
		}
	}
	return false
}

func contentType(path string) string {
	if t := mime.TypeByExtension(filepath.Ext(path)); t != "" {
		return t
	}
	return "application/octet-stream"
}

func disposition(name string) string {
	if v := mime.FormatMediaType("inline", map[string]string{"filename": text(name)}); v != "" {
		return v
	}
	return "inline"
}

// acceptEncoding returns the weights of gzip and identity, 0 for refused.
func acceptEncoding(values []string) (zip, plain float64) {
	plain = 1
	star, gzipSaid, plainSaid := -1.0, false, false
	for _, value := range values {
		for item := range strings.SplitSeq(value, ",") {
			name, params, _ := strings.Cut(item, ";")
			weight := 1.0
			if k, v, ok := strings.Cut(strings.TrimSpace(params), "="); ok && strings.TrimSpace(k) == "q" {
				if n, err := strconv.ParseFloat(strings.TrimSpace(v), 64); err == nil {
					weight = min(max(n, 0), 1)
				}
			}
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "gzip", "x-gzip":
				zip, gzipSaid = weight, true
			case "identity":
				plain, plainSaid = weight, true
			case "*":
				star = weight
			}
		}
	}
	if star == 0 && !plainSaid {
		plain = 0
	}
	if star > 0 && !gzipSaid {
		zip = 0 // "anything" is no wish for gzip
		if !plainSaid {
			plain = star
		}
	}
	return zip, plain
}
