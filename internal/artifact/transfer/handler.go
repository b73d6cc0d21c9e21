package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	defaultMaxArtifact = 64 << 30
	// maxAskBytes bounds the body of a question.
	maxAskBytes = maxAsk * 80
	// cachedManifests is how many manifests stay parsed: reading an artifact asks
	// for one of them once per chunk.
	cachedManifests = 16
)

// Options of the server's side.
type Options struct {
	// MaxArtifactBytes bounds the size a manifest may declare; 0 is 64 GiB.
	MaxArtifactBytes int64
	Logger           *slog.Logger
}

// NewHandler serves the paths under /v1/store/ from store. It is to be mounted
// where no logger writes paths: a grant is in each.
func NewHandler(store artifact.Store, signer *Signer, opts Options) http.Handler {
	if opts.MaxArtifactBytes <= 0 {
		opts.MaxArtifactBytes = defaultMaxArtifact
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	h := &handler{store: store, signer: signer, opts: opts, known: make(map[artifact.Key]map[artifact.Digest]bool)}
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(http.ResponseWriter, *http.Request, grant) error{
		"GET " + pathPrefix + "{grant}/manifest":        h.getManifest,
		"GET " + pathPrefix + "{grant}/chunks/{digest}": h.getChunk,
		"POST " + pathPrefix + "{grant}/chunks":         h.askMissing,
		"PUT " + pathPrefix + "{grant}/chunks/{digest}": h.putChunk,
		"PUT " + pathPrefix + "{grant}/manifest":        h.putManifest,
	} {
		mux.HandleFunc(pattern, h.guard(serve))
	}
	mux.HandleFunc(pathPrefix, func(w http.ResponseWriter, _ *http.Request) {
		h.fail(w, errs.NotFound("no_such_route", "There is nothing at this address of the store, or not for this method."))
	})
	return mux
}

type handler struct {
	store  artifact.Store
	signer *Signer
	opts   Options

	mu    sync.Mutex
	known map[artifact.Key]map[artifact.Digest]bool // manifest to its chunks
}

// guard opens the grant and checks that it is for this kind of request.
func (h *handler) guard(serve func(http.ResponseWriter, *http.Request, grant) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		g, err := h.signer.open(r.PathValue("grant"))
		wanted := opWrite
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			wanted = opRead
		}
		if err == nil && g.op != wanted {
			err = errs.Forbidden("wrong_grant", "This address of the store is not for this operation.")
		}
		if err == nil {
			err = serve(w, r, g)
		}
		if err != nil {
			h.fail(w, err)
		}
	}
}

func (h *handler) getManifest(w http.ResponseWriter, r *http.Request, g grant) error {
	raw, m, err := h.manifest(r.Context(), g)
	if err != nil {
		return err
	}
	answer := manifestAnswer{Manifest: raw, Digest: g.manifest, URLs: make(map[artifact.Digest]string, len(m.Chunks))}
	for _, c := range m.Chunks {
		answer.URLs[c.Digest] = "chunks/" + string(c.Digest)
	}
	return writeJSON(w, answer)
}

// manifest reads the manifest a grant names.
func (h *handler) manifest(ctx context.Context, g grant) ([]byte, artifact.Manifest, error) {
	blob, info, err := h.store.Open(ctx, artifact.ManifestKey(g.team, g.manifest))
	if err != nil {
		return nil, artifact.Manifest{}, err
	}
	defer blob.Close()
	if info.Size > artifact.MaxManifestBytes {
		return nil, artifact.Manifest{}, errs.Internal(errors.New("transfer: a stored manifest is too large"))
	}
	raw, err := io.ReadAll(io.LimitReader(blob, artifact.MaxManifestBytes))
	if err != nil {
		return nil, artifact.Manifest{}, err
	}
	if artifact.DigestOf(raw) != g.manifest {
		return nil, artifact.Manifest{}, errs.Internal(fmt.Errorf("transfer: stored manifest %s is damaged", g.manifest))
	}
	m, err := artifact.ParseManifest(raw)
	return raw, m, err
}

// chunksOf tells which chunks a read grant covers.
func (h *handler) chunksOf(ctx context.Context, g grant) (map[artifact.Digest]bool, error) {
	key := artifact.ManifestKey(g.team, g.manifest)
	h.mu.Lock()
	known := h.known[key]
	h.mu.Unlock()
	if known != nil {
		return known, nil
	}
	_, m, err := h.manifest(ctx, g)
	if err != nil {
		return nil, err
	}
	known = make(map[artifact.Digest]bool, len(m.Chunks))
	for _, c := range m.Chunks {
		known[c.Digest] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for old := range h.known { // any one: what is asked for again comes back
		if len(h.known) < cachedManifests {
			break
		}
		delete(h.known, old)
	}
	h.known[key] = known
	return known, nil
}

func (h *handler) getChunk(w http.ResponseWriter, r *http.Request, g grant) error {
	digest, err := artifact.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	covered, err := h.chunksOf(r.Context(), g)
	if err != nil {
		return err
	}
	if !covered[digest] {
		return errs.Forbidden("chunk_not_granted", "The manifest of this grant has no such chunk.")
	}
	blob, info, err := h.store.Open(r.Context(), artifact.ChunkKey(g.team, digest))
	if err != nil {
		return err
	}
	defer blob.Close()
	w.Header().Set("Content-Type", "application/zstd")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
	if _, err := io.Copy(w, blob); err != nil {
		h.opts.Logger.Debug("a chunk was not read to its end", "err", err)
	}
	return nil
}

func (h *handler) askMissing(w http.ResponseWriter, r *http.Request, g grant) error {
	body, err := readBody(w, r, maxAskBytes)
	if err != nil {
		return err
	}
	var q missingQuestion
	if err := json.Unmarshal(body, &q); err != nil || len(q.Digests) > maxAsk {
		return errs.Invalid("invalid_request", fmt.Sprintf(`The body is {"digests":[…]} with at most %d of them.`, maxAsk))
	}
	answer := missingAnswer{Missing: make(map[artifact.Digest]string)}
	for _, d := range q.Digests {
		_, err := h.store.Stat(r.Context(), artifact.ChunkKey(g.team, d))
		switch {
		case errors.Is(err, artifact.ErrNotFound):
			answer.Missing[d] = "chunks/" + string(d)
		case err != nil:
			return err
		}
	}
	return writeJSON(w, answer)
}

func (h *handler) putChunk(w http.ResponseWriter, r *http.Request, g grant) error {
	digest, err := artifact.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	if r.ContentLength <= 0 {
		return errs.Invalid("length_required", "A chunk comes with its Content-Length.")
	}
	if r.ContentLength > artifact.MaxChunkBytes {
		return tooLarge(artifact.MaxChunkBytes)
	}
	if err := h.store.Put(r.Context(), artifact.ChunkKey(g.team, digest), r.Body, r.ContentLength); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) putManifest(w http.ResponseWriter, r *http.Request, g grant) error {
	body, err := readBody(w, r, artifact.MaxManifestBytes)
	if err != nil {
		return err
	}
	m, err := artifact.ParseManifest(body)
	if err != nil {
		return err
	}
	if m.Size > h.opts.MaxArtifactBytes {
		return tooLarge(h.opts.MaxArtifactBytes)
	}
	for _, c := range m.Chunks {
		info, err := h.store.Stat(r.Context(), artifact.ChunkKey(g.team, c.Digest))
		if errors.Is(err, artifact.ErrNotFound) || (err == nil && info.Size != c.Size) {
			return errs.FailedPrecondition("chunks_missing", "The manifest names a chunk that is not stored in that size. Store the chunks first.").With("digest", string(c.Digest))
		}
		if err != nil {
			return err
		}
	}
	digest := artifact.DigestOf(body)
	if err := h.store.Put(r.Context(), artifact.ManifestKey(g.team, digest), bytes.NewReader(body), int64(len(body))); err != nil {
		return err
	}
	h.opts.Logger.Info("artifact stored", "team_id", g.team, "upload_id", g.uploadID, "manifest", digest)
	return writeJSON(w, storedAnswer{Digest: digest})
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return nil, tooLarge(limit)
	}
	if err != nil {
		return nil, errs.Invalid("unreadable_body", "The body ended early.").Because(err)
	}
	return b, nil
}

func tooLarge(limit int64) error {
	return errs.New(errs.CodeTooLarge, "too_large", fmt.Sprintf("More than the %d bytes that are allowed.", limit)).With("limit", limit)
}

func writeJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the client is gone: nobody is left to tell
	return nil
}

// fail renders an error; after the first byte of a body it has no effect.
func (h *handler) fail(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, artifact.ErrNotFound):
		err = errs.NotFound("no_such_artifact", "The artifact, or a part of it, is not in the store.").Because(err)
	case errors.Is(err, artifact.ErrDigestMismatch), errors.Is(err, artifact.ErrSizeMismatch):
		err = errs.Invalid("content_mismatch", "The content does not match its digest or its length. Send it again.").Because(err)
	case errors.Is(err, context.Canceled), errors.Is(err, io.ErrUnexpectedEOF):
		err = errs.New(errs.CodeCanceled, "canceled", "The request ended before its body did.").Because(err)
	}
	e := errs.As(err)
	status := statusOf(e.Code)
	if status >= http.StatusInternalServerError {
		h.opts.Logger.Error("store request failed", "err", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(errorAnswer{Error: errorBody{Code: string(e.Code), Reason: e.Reason, Message: e.Message}})
}

func statusOf(c errs.Code) int {
	switch c {
	case errs.CodeInvalid, errs.CodeCanceled:
		return http.StatusBadRequest
	case errs.CodeUnauthenticated:
		return http.StatusUnauthorized
	case errs.CodeForbidden:
		return http.StatusForbidden
	case errs.CodeNotFound:
		return http.StatusNotFound
	case errs.CodeConflict, errs.CodeFailedPrecondition:
		return http.StatusConflict
	case errs.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case errs.CodeExhausted:
		return http.StatusTooManyRequests
	case errs.CodeUnavailable:
		return http.StatusServiceUnavailable
	case errs.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}
