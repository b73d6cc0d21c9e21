package filesystem

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// codeNotAcceptable is the one status that no failure kind stands for.
const codeNotAcceptable = http.StatusNotAcceptable

// Routes mounts the file endpoints. They check a caller's access themselves,
// because here a signature may stand for the token.
func (s *Service) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+guestapi.PathFiles, s.handleDownload)
	mux.HandleFunc("POST "+guestapi.PathFiles, s.handleUpload)
	mux.HandleFunc("POST "+guestapi.PathCompose, s.handleCompose)
}

// allow decides by the token header when there is one, else by the signature.
func (s *Service) allow(r *http.Request, operation string) error {
	token := s.opt.AccessToken()
	if token == "" {
		return nil
	}
	if got := r.Header.Values(guestapi.HeaderAccessToken); len(got) > 0 {
		if subtle.ConstantTimeCompare([]byte(got[0]), []byte(token)) == 1 {
			return nil
		}
		return fail(kindUser, "%s", AccessDenied)
	}
	return checkSignature(r.URL.Query(), operation, token, time.Now())
}

// Authorized reports whether a request of PathFiles will be let in.
func (s *Service) Authorized(r *http.Request) bool {
	operation := opRead
	if r.Method == http.MethodPost {
		operation = opWrite
	}
	return s.allow(r, operation) == nil
}

// AccessDenied is what a caller without a good token reads; clients match on
// its beginning.
const AccessDenied = "unauthorized access, please provide a valid access token or method signing if supported"

// httpError is the one place where failures become HTTP.
func (s *Service) httpError(w http.ResponseWriter, err error, path string) {
	var f *failure
	if !errors.As(classify(err, path), &f) {
		f = &failure{kind: kindInternal, text: err.Error()}
	}
	status := map[kind]int{
		kindInvalid: http.StatusBadRequest, kindUser: http.StatusUnauthorized,
		kindNotFound: http.StatusNotFound, kindExists: http.StatusBadRequest,
		kindFull: http.StatusInsufficientStorage, kindTooMany: http.StatusBadRequest,
		kindDenied: http.StatusBadRequest, kindInternal: http.StatusInternalServerError,
	}[f.kind]
	if status == http.StatusInternalServerError {
		s.opt.Log.Error("file request failed", "path", path, "error", f.text)
	}
	WriteError(w, status, f.text)
}

// WriteError answers with the daemon's JSON error.
func WriteError(w http.ResponseWriter, status int, message string) {
	for _, h := range []string{"Content-Disposition", "Content-Encoding", "Content-Length", "Last-Modified"} {
		w.Header().Del(h)
	}
	writeJSON(w, status, map[string]any{"code": status, "message": text(message)})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
