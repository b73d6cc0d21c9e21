package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Bounds of archives.
const (
	contextLife = 24 * time.Hour
	maxContexts = 50 // of a team at a time
	maxUploads  = 8  // on this server at a time
	teamUploads = 3  // of them of one team
	// uploadLife is how long one is kept that is not complete.
	uploadLife = time.Hour
)

// Upload stores an archive. It is there once this returns, and not at all when
// it fails.
func (s *Service) Upload(ctx context.Context, by principal.Principal, body io.Reader) (Context, error) {
	team, err := writer(by)
	if err != nil {
		return Context{}, err
	}
	done, ok := s.uploads.begin(team)
	if !ok {
		return Context{}, errs.Unavailable("server_busy", "This server takes as many archives as it can. Try again in a moment.").After(2 * time.Second)
	}
	defer done()
	f, err := os.CreateTemp(s.scratch, "upload-*")
	if err != nil {
		return Context{}, errs.Internal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	c := Context{ID: id.NewBuildContext(), TeamID: team, Artifact: id.NewArtifact()}
	if c.SizeBytes, c.Digest, err = s.spool(f, body); err != nil {
		return Context{}, err
	}
	if err := s.store.BeginContext(ctx, c, artifact.New{ID: c.Artifact, Team: team, Kind: artifact.KindContext}, uploadLife, maxContexts); err != nil {
		return Context{}, err
	}
	to, err := s.artifacts.Source(ctx, c.Artifact, id.Host{}, artifact.Write)
	if err == nil {
		err = s.artifacts.PutContext(ctx, to, f.Name())
	}
	if err == nil {
		c, err = s.store.CompleteContext(ctx, c, contextLife)
	}
	if err != nil {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
		defer cancel()
		if derr := s.store.DropContext(dctx, c.ID); derr != nil {
			s.log.WarnContext(dctx, "cannot give up an archive now; its time will be over", "error", derr)
		}
		return Context{}, err
	}
	return c, nil
}

// uploads are those under way on this server.
type uploads struct {
	mu    sync.Mutex
	total int
	of    map[id.Team]int
}

// begin takes a place, unless there is none for the team.
func (u *uploads) begin(team id.Team) (done func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.total >= maxUploads || u.of[team] >= teamUploads {
		return nil, false
	}
	u.total++
	u.of[team]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.total--
		if u.of[team]--; u.of[team] == 0 {
			delete(u.of, team)
		}
	}, true
}

// spool writes what is sent to a file, as much as may be.
func (s *Service) spool(f *os.File, body io.Reader) (int64, string, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, s.maxBytes+1))
	var disk *os.PathError
	switch {
	case errors.As(err, &disk):
		return 0, "", errs.Internal(fmt.Errorf("keep an upload: %w", err))
	case err != nil:
		return 0, "", errs.Invalid("upload_cut", "The upload broke off before its end; nothing is kept of it. Send it again.").Because(err)
	case n > s.maxBytes:
		return 0, "", errs.Invalid("context_too_large", fmt.Sprintf(
			"An archive may have %d MB (SKERRY_MAX_CONTEXT_MB). Leave out what is not needed, by .dockerignore.", s.maxBytes>>20)).With("limit_mb", s.maxBytes>>20)
	case n == 0:
		return 0, "", errs.Invalid("invalid_context", "The archive is empty. Send a tar archive, as it is or packed by gzip or zstd.")
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}
