package filesystem

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/passwd"
)

const (
	partsMax   = 10_000
	composeMax = 1 << 20 // bytes of a compose request
)

// written is one line of an upload's answer.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func entryOf(path string, metadata map[string]string) written {
	return written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: metadata}
}

// handleUpload writes the body to one or more files. It answers only when all
// of them are in place; each is replaced as a whole or not at all.
func (s *Service) handleUpload(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query().Get("path")
	done, err := s.upload(r)
	if err != nil {
		s.httpError(w, err, asked)
		return
	}
	writeJSON(w, http.StatusOK, done)
}

func (s *Service) upload(r *http.Request) ([]written, error) {
	q := r.URL.Query()
	if err := s.allow(r, opWrite); err != nil {
		return nil, err
	}
	u, err := s.account(q.Get("username"))
	if err != nil {
		return nil, err
	}
	metadata, err := metadataOf(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := decoded(r)
	if err != nil {
		return nil, err
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil && r.Header.Get("Content-Type") != "" {
		return nil, fail(kindInvalid, "malformed Content-Type: %s", err)
	}
	switch media {
	case "multipart/form-data":
		if params["boundary"] == "" {
			return nil, fail(kindInvalid, "the multipart boundary is missing")
		}
		return s.uploadParts(multipart.NewReader(body, params["boundary"]), u, q.Get("path"), metadata)
	case "application/octet-stream":
		if q.Get("path") == "" {
			return nil, fail(kindInvalid, "path query parameter is required for application/octet-stream")
		}
		path, err := resolve(u, q.Get("path"))
		if err != nil {
			return nil, err
		}
		if err := s.saveBody(path, u, metadata, body); err != nil {
			return nil, err
		}
		return []written{entryOf(path, metadata)}, nil
	default:
		return nil, fail(kindInvalid, "Content-Type must be multipart/form-data or application/octet-stream")
	}
}

func (s *Service) uploadParts(parts *multipart.Reader, u passwd.User, asked string, metadata map[string]string) ([]written, error) {
	done := []written{}
	seen := make(map[string]bool)
	for n := 0; ; n++ {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fail(kindInvalid, "reading the upload: %s", err)
		}
		if n >= partsMax {
			return nil, fail(kindTooMany, "an upload may have at most %d parts", partsMax)
		}
		name, file := partName(part.Header.Get("Content-Disposition"))
		if name != "file" {
			part.Close()
			continue
		}
		if asked != "" {
			file = asked
		}
		if file == "" {
			return nil, fail(kindInvalid, "neither a path query parameter nor a filename was given")
		}
		path, err := resolve(u, file)
		if err != nil {
			return nil, err
		}
		if seen[path] {
			return nil, fail(kindInvalid, "path '%s' is written twice in one upload", path)
		}
		seen[path] = true
		if err := s.saveBody(path, u, metadata, part); err != nil {
			return nil, err
		}
		done = append(done, entryOf(path, metadata))
	}
	if len(done) == 0 {
		return nil, fail(kindInvalid, "the upload has no part named file")
	}
	return done, nil
}

// partName returns a part's field name and raw file name. The standard reader
// would cut the directories off the latter, and they are wanted here.
func partName(header string) (name, file string) {
	_, params, err := mime.ParseMediaType(header)
	if err != nil {
		return "", ""
	}
	return params["name"], params["filename"]
}

// bodyError marks what went wrong on the sender's side.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }

type bodyReader struct{ r io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &bodyError{err}
	}
	return n, err
}

func (s *Service) saveBody(path string, u passwd.User, metadata map[string]string, body io.Reader) error {
	err := save(path, u, metadata, func(w io.Writer) error {
		_, err := stream(w, bodyReader{body})
		return err
	})
	var cut *bodyError
	if errors.As(err, &cut) {
		return fail(kindInvalid, "reading the upload: %s", cut)
	}
	if err != nil {
		return classify(err, path)
	}
	s.wrote(path)
	return nil
}

func decoded(r *http.Request) (io.Reader, error) {
	switch enc := strings.ToLower(strings.TrimSpace(r.Header.Get("Content-Encoding"))); enc {
	case "", "identity":
		return r.Body, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, fail(kindInvalid, "malformed gzip body: %s", err)
		}
		return z, nil
	default:
		return nil, fail(kindInvalid, "Content-Encoding %q is not supported: use identity or gzip", enc)
	}
}

// metadataOf collects the metadata headers of an upload; nil when there are none.
func metadataOf(h http.Header) (map[string]string, error) {
	var m map[string]string
	total := 0
	for name, values := range h {
		if len(name) <= len(guestapi.HeaderMetadataPrefix) || !strings.EqualFold(name[:len(guestapi.HeaderMetadataPrefix)], guestapi.HeaderMetadataPrefix) {
			continue
		}
		key, value := strings.ToLower(name[len(guestapi.HeaderMetadataPrefix):]), values[0]
		if len(key) > metadataKeyMax || !printable(key) || !printable(value) {
			return nil, fail(kindInvalid, "metadata %q: key and value must be printable ASCII, the key at most %d bytes", key, metadataKeyMax)
		}
		if total += len(key) + len(value); total > metadataTotalMax {
			return nil, fail(kindInvalid, "metadata may have at most %d bytes in all", metadataTotalMax)
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[key] = value
	}
	return m, nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// handleCompose joins parts that were uploaded before into one file and
// removes them. Until the result is in place the parts stay.
func (s *Service) handleCompose(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Sources     []string `json:"source_paths"`
		Destination string   `json:"destination"`
		Username    string   `json:"username"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, composeMax)).Decode(&req); err != nil {
		s.httpError(w, fail(kindInvalid, "malformed request: %s", err), "")
		return
	}
	if req.Username == "" {
		req.Username = r.URL.Query().Get("username")
	}
	path, err := s.compose(req.Sources, req.Destination, req.Username)
	if err != nil {
		s.httpError(w, err, req.Destination)
		return
	}
	writeJSON(w, http.StatusOK, entryOf(path, nil))
}

func (s *Service) compose(sources []string, destination, username string) (string, error) {
	u, err := s.account(username)
	if err != nil {
		return "", err
	}
	if len(sources) == 0 || len(sources) > partsMax || destination == "" {
		return "", fail(kindInvalid, "source_paths must name 1 to %d files and destination one", partsMax)
	}
	path, err := resolve(u, destination)
	if err != nil {
		return "", err
	}
	parts := make([]string, len(sources))
	for i, p := range sources {
		if parts[i], err = resolve(u, p); err != nil {
			return "", err
		}
	}
	err = save(path, u, nil, func(w io.Writer) error {
		for _, p := range parts {
			if err := appendFile(w, p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", classify(err, path)
	}
	s.wrote(path)
	for _, p := range parts {
		if p == path {
			continue
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", classify(fmt.Errorf("the file is complete, a part is left: %w", err), p)
		}
	}
	return path, nil
}

func appendFile(w io.Writer, path string) error {
	f, err := openRegular(path)
	if err != nil {
		return classify(err, path)
	}
	defer f.Close()
	_, err = stream(w, f)
	return err
}
