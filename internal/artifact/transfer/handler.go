package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

const (
	defaultMaxArtifact = 64 << 30
	// presignFor is how long an address of an object store is good, also for a host
	// that was deleted since: a line of 12 Mbit/s brings the chunks asked for at once
	// in that time, and clocks may differ. Who is slower asks again.
	presignFor = 3 * time.Minute
)

// HandlerOptions of the server's side.
type HandlerOptions struct {
	// MaxArtifactBytes bounds the size a manifest may declare; 0 is 64 GiB.
	MaxArtifactBytes int64
	// PresignFor is how long addresses of the store itself are good, where it has
	// such; 0 is 3 minutes.
	PresignFor time.Duration
	// Peer is the host that a request comes from, by its certificate; an address
	// that was given to another one is refused. Left out, whoever has an address
	// may use it.
	Peer   func(r *http.Request) id.Host
	Logger *slog.Logger
}

// NewHandler serves the paths under /v1/store/ from store, as the ledger says.
// Hosts are sent to the store itself where it is a Presigner. It is to be
// mounted where no logger writes paths: a grant is in each.
func NewHandler(store artifact.Store, signer *Signer, ledger Ledger, opts HandlerOptions) http.Handler {
	if opts.MaxArtifactBytes <= 0 {
		opts.MaxArtifactBytes = defaultMaxArtifact
	}
	if opts.PresignFor <= 0 {
		opts.PresignFor = presignFor
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	h := &handler{store: store, signer: signer, ledger: ledger, opts: opts}
	h.presigner, _ = store.(artifact.Presigner)
	mux := http.NewServeMux()
	route := func(pattern string, op operation, serve func(http.ResponseWriter, *http.Request, grant) error) {
		mux.HandleFunc(pattern, h.guard(op, serve))
	}
	route("GET "+pathPrefix+"{grant}/manifest", opRead, h.getManifest)
	route("POST "+pathPrefix+"{grant}/urls", opRead, h.askURLs)
	route("GET "+pathPrefix+"{grant}/chunks/{digest}", opRead, h.getChunk)
	route("POST "+pathPrefix+"{grant}/chunks/{digest}/doubt", opRead, h.doubt)
	route("POST "+pathPrefix+"{grant}/chunks", opWrite, h.claim)
	route("PUT "+pathPrefix+"{grant}/chunks/{digest}", opWrite, h.putChunk)
	route("PUT "+pathPrefix+"{grant}/manifest", opWrite, h.putManifest)
	mux.HandleFunc(pathPrefix, func(w http.ResponseWriter, _ *http.Request) {
		h.fail(w, errs.NotFound("no_such_route", "There is nothing at this address of the store, or not for this method."))
	})
	return mux
}

type handler struct {
	store     artifact.Store
	presigner artifact.Presigner // nil when the store has no addresses of its own
	signer    *Signer
	ledger    Ledger
	opts      HandlerOptions
}

// guard opens the grant and checks that it is for this kind of request.
func (h *handler) guard(op operation, serve func(http.ResponseWriter, *http.Request, grant) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		g, err := h.signer.open(r.PathValue("grant"))
		if err == nil && g.op != op {
			err = errs.Forbidden("wrong_grant", "This address of the store is not for this operation.")
		}
		if err == nil && h.opts.Peer != nil && h.opts.Peer(r) != g.host {
			err = errs.Forbidden("wrong_host", "This address of the store was given to another host.")
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
	stored, err := h.ledger.Ready(r.Context(), g.artifact, g.host)
	if err != nil {
		return err
	}
	blob, info, err := h.store.Open(r.Context(), stored.Manifest)
	if err != nil {
		return err
	}
	defer blob.Close()
	if info.Size > artifact.MaxManifestBytes {
		return errs.Internal(errors.New("transfer: a stored manifest is too large"))
	}
	raw, err := io.ReadAll(io.LimitReader(blob, artifact.MaxManifestBytes))
	if err != nil {
		return err
	}
	if artifact.DigestOf(raw) != stored.Manifest.Digest {
		return mismatch("The manifest in the store does not match its digest.").With("digest", string(stored.Manifest.Digest))
	}
	return writeJSON(w, manifestAnswer{Manifest: raw, Digest: stored.Manifest.Digest, Direct: h.presigner != nil})
}

// keys finds chunks of an artifact that is ready, for a host that may have it.
func (h *handler) keys(ctx context.Context, g grant, digests []artifact.Digest) (map[artifact.Digest]artifact.Key, error) {
	for _, d := range digests {
		if err := d.Validate(); err != nil {
			return nil, err
		}
	}
	if _, err := h.ledger.Ready(ctx, g.artifact, g.host); err != nil {
		return nil, err
	}
	return h.ledger.Keys(ctx, g.artifact, digests)
}

// named is the chunk that a reader's request is about.
func (h *handler) named(r *http.Request, g grant) (artifact.Key, error) {
	digest, err := artifact.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return artifact.Key{}, err
	}
	keys, err := h.keys(r.Context(), g, []artifact.Digest{digest})
	if err != nil {
		return artifact.Key{}, err
	}
	key, ok := keys[digest]
	if !ok {
		return key, errs.Forbidden("chunk_not_granted", "The artifact of this grant has no such chunk.")
	}
	return key, nil
}

// doubt is told by a reader that a chunk is not there, or not what it should be.
// It is not believed, but looked after: what is found so is brought again by the
// next who has it.
func (h *handler) doubt(w http.ResponseWriter, r *http.Request, g grant) error {
	key, err := h.named(r, g)
	if err != nil {
		return err
	}
	sound, err := artifact.Sound(r.Context(), h.store, key)
	if err != nil {
		return err
	}
	if !sound {
		h.opts.Logger.Error("a chunk of the store is damaged or missing", "chunk", key, "artifact_id", g.artifact)
		if err := h.ledger.Lost(r.Context(), g.artifact, []artifact.Key{key}); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *handler) getChunk(w http.ResponseWriter, r *http.Request, g grant) error {
	key, err := h.named(r, g)
	if err != nil {
		return err
	}
	blob, info, err := h.store.Open(r.Context(), key)
	if errors.Is(err, artifact.ErrNotFound) {
		return chunkMissing(key.Digest).Because(err)
	}
	if err != nil {
		return err
	}
	defer blob.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
	if _, err := io.Copy(w, blob); err != nil {
		h.opts.Logger.Debug("a chunk was not read to its end", "err", err)
	}
	return nil
}

func chunkMissing(d artifact.Digest) *errs.Error {
	return errs.NotFound("chunk_missing", "A chunk of the artifact is not in the store.").With("digest", string(d))
}

func (h *handler) askURLs(w http.ResponseWriter, r *http.Request, g grant) error {
	var q urlsQuestion
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if len(q.Digests) > maxAsk {
		return errs.Invalid("invalid_request", fmt.Sprintf(`The body is {"digests":[…]} with at most %d of them.`, maxAsk))
	}
	keys, err := h.keys(r.Context(), g, q.Digests)
	if err != nil {
		return err
	}
	answer := urlsAnswer{URLs: make(map[artifact.Digest]string, len(keys))}
	for d, key := range keys {
		if h.presigner == nil {
			answer.URLs[d] = "chunks/" + string(d)
			continue
		}
		if answer.URLs[d], err = h.presigner.PresignGet(r.Context(), key, h.opts.PresignFor); err != nil {
			return err
		}
	}
	return writeJSON(w, answer)
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r, maxAskBytes)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return errs.Invalid("invalid_request", "The body is not JSON of this kind.")
	}
	return nil
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
	case errors.Is(err, artifact.ErrNotFound) && errs.As(err).Code != errs.CodeNotFound:
		err = errs.NotFound("no_such_artifact", "The artifact, or a part of it, is not in the store.").Because(err)
	case errors.Is(err, artifact.ErrDigestMismatch), errors.Is(err, artifact.ErrSizeMismatch):
		err = mismatch("The content does not match its digest or its length. Send it again.").Because(err)
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
	_ = json.NewEncoder(w).Encode(errorAnswer{Error: errorBody{Code: string(e.Code), Reason: e.Reason, Message: e.Message, Details: e.Details}})
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
