package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	parallel = 4
	// attempts and firstPause bound how long a failing request is repeated.
	attempts   = 4
	firstPause = 200 * time.Millisecond
	// oneRequest is the longest a single attempt may take.
	oneRequest = 2 * time.Minute
	// maxAnswer bounds what a server may answer: the largest manifest, its URLs
	// (presigned ones are long) and some room.
	maxAnswer    = artifact.MaxManifestBytes + artifact.MaxChunks*1024
	maxErrorBody = 64 << 10
)

// Progress is told the bytes of the file that are done. Calls are serial.
type Progress func(done, total int64)

// request is one HTTP request that can be sent again.
type request struct {
	method, url string
	body        []byte
	contentType string
	limit       int64 // of the answer
}

// do sends the request until it gets an answer that is final and returns the
// body. Errors of the line and of the server's side (5xx, 429) are tried again.
func (q request) do(ctx context.Context, hc *http.Client, into []byte) ([]byte, error) {
	pause := firstPause
	for try := 1; ; try++ {
		body, again, err := q.once(ctx, hc, into[:0])
		if err == nil || !again || try == attempts || ctx.Err() != nil {
			return body, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		pause *= 2
	}
}

func (q request) once(ctx context.Context, hc *http.Client, into []byte) (body []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, oneRequest)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, q.method, q.url, bytes.NewReader(q.body))
	if err != nil {
		return nil, false, err
	}
	if q.contentType != "" {
		r.Header.Set("Content-Type", q.contentType)
	}
	resp, err := hc.Do(r)
	if err != nil {
		return nil, true, hideURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, remoteError(resp)
	}
	buf := bytes.NewBuffer(into)
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, q.limit+1))
	switch {
	case err != nil:
		return nil, true, err
	case n > q.limit:
		return nil, false, errs.Invalid("answer_too_large", "The store answered more than it may.")
	}
	return buf.Bytes(), false, nil
}

// hideURL takes the address out of a client's error: it carries the grant.
func hideURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("asking the store: %w", u.Err)
	}
	return err
}

// remoteError gives back the server's own error, where it sent one.
func remoteError(resp *http.Response) error {
	var a errorAnswer
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil && json.Unmarshal(b, &a) == nil && a.Error.Reason != "" {
		return errs.New(errs.Code(a.Error.Code), a.Error.Reason, a.Error.Message)
	}
	return errs.Unavailable("store_unavailable", fmt.Sprintf("The artifact store answered with status %d.", resp.StatusCode))
}

// resolve makes an address in an answer absolute. Only HTTP goes out.
func resolve(base, ref string) (string, error) {
	b, err := url.Parse(base)
	if err != nil {
		return "", errs.Invalid("invalid_store_url", "The address of the store is malformed.")
	}
	u, err := b.Parse(ref)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", errs.Invalid("invalid_store_url", "The store named an address that is not HTTP.")
	}
	return u.String(), nil
}
