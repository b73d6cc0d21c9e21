package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

// parallelStats bounds how many chunks are looked for in the store at once.
const parallelStats = 16

// claim makes chunks part of an artifact and says where the missing ones go.
func (h *handler) claim(w http.ResponseWriter, r *http.Request, g grant) error {
	var q claimQuestion
	if err := readJSON(w, r, &q); err != nil {
		return err
	}
	if len(q.Chunks) > maxAsk {
		return errs.Invalid("invalid_request", fmt.Sprintf(`The body is {"chunks":[…]} with at most %d of them.`, maxAsk))
	}
	sizes := make(map[artifact.Digest]int64, len(q.Chunks))
	for _, c := range q.Chunks {
		if err := c.Digest.Validate(); err != nil {
			return err
		}
		if _, twice := sizes[c.Digest]; twice || c.Size <= 0 || c.Size > artifact.MaxChunkBytes {
			return errs.Invalid("invalid_request", "Each chunk is named once, with the size it has in the store.")
		}
		sizes[c.Digest] = c.Size
	}
	missing, err := h.ledger.Claim(r.Context(), g.artifact, g.host, q.Chunks)
	if err != nil {
		return err
	}
	answer := claimAnswer{Missing: make(map[artifact.Digest]target, len(missing))}
	for _, key := range missing {
		t, err := h.target(r.Context(), key, sizes[key.Digest])
		if err != nil {
			return err
		}
		answer.Missing[key.Digest] = t
	}
	return writeJSON(w, answer)
}

func (h *handler) target(ctx context.Context, key artifact.Key, size int64) (target, error) {
	if h.presigner == nil {
		return target{URL: "chunks/" + string(key.Digest)}, nil
	}
	url, header, err := h.presigner.PresignPut(ctx, key, size, h.opts.PresignFor)
	if err != nil {
		return target{}, err
	}
	t := target{URL: url, Header: make(map[string]string, len(header))}
	for name := range header {
		t.Header[name] = header.Get(name)
	}
	return t, nil
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
	key, size, err := h.ledger.Wanted(r.Context(), g.artifact, g.host, digest)
	if err != nil {
		return err
	}
	if r.ContentLength != size {
		return mismatch("The chunk has another length than the one that was claimed.").With("digest", string(digest))
	}
	if err := h.store.Put(r.Context(), key, r.Body, size); err != nil {
		return err
	}
	if err := h.ledger.Put(r.Context(), g.artifact, []artifact.Key{key}); err != nil {
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
	pieces, err := m.Pieces()
	if err != nil {
		return err
	}
	if m.Size > h.opts.MaxArtifactBytes {
		return tooLarge(h.opts.MaxArtifactBytes)
	}
	digest := artifact.DigestOf(body)
	if _, err := h.ledger.Upload(r.Context(), g.artifact, g.host); err != nil {
		// The answer to the one before this may have been lost.
		if stored, readyErr := h.ledger.Ready(r.Context(), g.artifact, g.host); readyErr == nil && stored.Manifest.Digest == digest {
			return writeJSON(w, storedAnswer{Digest: digest})
		}
		return err
	}
	if err := h.see(r.Context(), g, pieces); err != nil {
		return err
	}
	key, err := h.ledger.Name(r.Context(), g.artifact, g.host, digest)
	if err != nil {
		return err
	}
	if err := h.store.Put(r.Context(), key, bytes.NewReader(body), int64(len(body))); err != nil {
		return err
	}
	if err := h.ledger.Complete(r.Context(), g.artifact, g.host, m, digest); err != nil {
		return err
	}
	h.opts.Logger.Info("artifact stored", "artifact_id", g.artifact, "host_id", g.host, "manifest", digest)
	return writeJSON(w, storedAnswer{Digest: digest})
}

// see looks in the store for each chunk of the manifest and notes which of them
// are there: those that went there without passing through here, and those that
// others brought long ago. What is lost of the latter is to be brought again:
// nothing is ready that cannot be read. What an earlier try claimed and this one
// has no use for is left alone.
func (h *handler) see(ctx context.Context, g grant, pieces map[artifact.Digest]int64) error {
	digests := slices.Sorted(maps.Keys(pieces))
	for part := range slices.Chunk(digests, maxAsk) {
		keys, err := h.ledger.Keys(ctx, g.artifact, part)
		if err != nil {
			return err
		}
		if err := h.seeSome(ctx, g, slices.Collect(maps.Values(keys)), pieces); err != nil {
			return err
		}
	}
	return nil
}

func (h *handler) seeSome(ctx context.Context, g grant, keys []artifact.Key, pieces map[artifact.Digest]int64) error {
	missing := make([]bool, len(keys))
	group, statCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelStats)
	for i, key := range keys {
		group.Go(func() error {
			info, err := h.store.Stat(statCtx, key)
			if errors.Is(err, artifact.ErrNotFound) || (err == nil && info.Size != pieces[key.Digest]) {
				missing[i] = true
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var there, lost []artifact.Key
	for i, key := range keys {
		if missing[i] {
			lost = append(lost, key)
		} else {
			there = append(there, key)
		}
	}
	if err := h.ledger.Put(ctx, g.artifact, there); err != nil || len(lost) == 0 {
		return err
	}
	if err := h.ledger.Lost(ctx, g.artifact, lost); err != nil {
		return err
	}
	return errs.FailedPrecondition("chunks_missing", "The artifact has a chunk that is not in the store in its size. Store the chunks first.").
		With("digest", string(lost[0].Digest))
}
