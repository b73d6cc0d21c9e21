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
	defaultParallel = 4
	// attempts and firstPause bound how long a failing request is repeated: some
	// six seconds, in which a control plane restarts.
	attempts   = 6
	firstPause = 200 * time.Millisecond
	// oneRequest is the longest a single attempt may take.
	oneRequest   = 2 * time.Minute
	maxAnswer    = artifact.MaxManifestBytes + 4096
	maxErrorBody = 64 << 10
	// maxTargets bounds an answer with the URLs of maxAsk chunks.
	maxTargets = maxAsk * 8192
)

// Clients are what a host speaks with: the control plane by its own certificate,
// and whoever a presigned URL names, who is shown none. Without Direct such URLs
// are refused.
type Clients struct {
	Control *http.Client
	Direct  *http.Client
}

// Progress is told the bytes that are done, of all files and with their zeros.
// Calls are serial.
type Progress func(done, total int64)

// Options of either direction; the zero value will do.
type Options struct {
	Progress Progress
	// MaxBytes bounds the files together; 0 is 64 GiB.
	MaxBytes int64
	// Parallel is how many chunks move at once; 0 is 4. Each takes 9 MB of memory,
	// 13 MB in an upload.
	Parallel int
}

func (o Options) filled() Options {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxArtifact
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	return o
}

// retry repeats once while it says so, with growing pauses.
func retry(ctx context.Context, once func() (again bool, err error)) error {
	pause := firstPause
	for try := 1; ; try++ {
		again, err := once()
		if err == nil || !again || try == attempts || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause *= 2
	}
}

// request is one HTTP request that can be sent again.
type request struct {
	method, url string
	body        []byte
	contentType string
	header      map[string]string
	limit       int64 // of the answer
}

// do sends the request to the control plane until it gets an answer that is
// final, and returns the body. Errors of the line and of the server's side (5xx,
// 429) are tried again.
func (q request) do(ctx context.Context, hc *http.Client) (body []byte, err error) {
	err = retry(ctx, func() (again bool, err error) {
		body, again, err = q.once(ctx, hc, nil)
		return again, err
	})
	return body, err
}

// ask sends a question in JSON and reads the answer.
func ask(ctx context.Context, hc *http.Client, to string, question, answer any, limit int64) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	b, err := request{method: http.MethodPost, url: to, body: body, contentType: "application/json", limit: limit}.do(ctx, hc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return errs.Invalid("invalid_answer", "The store's answer makes no sense.").Because(err)
	}
	return nil
}

func (q request) once(ctx context.Context, hc *http.Client, into []byte) (body []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, oneRequest)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, q.method, q.url, bytes.NewReader(q.body))
	if err != nil {
		return nil, false, hideURL(err)
	}
	if q.contentType != "" {
		r.Header.Set("Content-Type", q.contentType)
	}
	for k, v := range q.header {
		r.Header.Set(k, v)
	}
	resp, err := hc.Do(r)
	if err != nil {
		return nil, true, hideURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, remoteError(resp)
	}
	buf := bytes.NewBuffer(into[:0])
	n, err := buf.ReadFrom(io.LimitReader(resp.Body, q.limit+1))
	switch {
	case err != nil:
		return nil, true, hideURL(err)
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

// statusError is an answer that carried no error of ours, as an object store's.
type statusError int

func (s statusError) Error() string { return fmt.Sprintf("status %d", int(s)) }

// remoteError gives back the server's own error, where it sent one.
func remoteError(resp *http.Response) error {
	var a errorAnswer
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if err == nil && json.Unmarshal(b, &a) == nil && a.Error.Reason != "" {
		e := errs.New(errs.Code(a.Error.Code), a.Error.Reason, a.Error.Message)
		e.Details = a.Error.Details
		return e
	}
	return errs.Unavailable("store_unavailable", fmt.Sprintf("The artifact store answered with status %d.", resp.StatusCode)).
		Because(statusError(resp.StatusCode))
}

// reach finds which client goes to an address in an answer: relative ones are
// the control plane's own. Only HTTP goes out.
func (c Clients) reach(base, ref string) (hc *http.Client, to string, direct bool, err error) {
	bad := errs.Invalid("invalid_store_url", "The store named an address that nobody here may ask.")
	b, err := url.Parse(base)
	if err != nil {
		return nil, "", false, bad
	}
	r, err := url.Parse(ref)
	if err != nil {
		return nil, "", false, bad
	}
	u := b.ResolveReference(r)
	switch {
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		return nil, "", false, bad
	case !r.IsAbs() && r.Host == "":
		return c.Control, u.String(), false, nil
	case c.Direct == nil:
		return nil, "", false, bad
	}
	return c.Direct, u.String(), true, nil
}

// chunkOnce moves one chunk. What a presigned URL refuses is asked again with a
// new one, for it may have expired: fresh says that it is to be made anew.
func (c Clients) chunkOnce(ctx context.Context, base, ref string, q request, into []byte) (body []byte, again, fresh bool, err error) {
	hc, to, direct, err := c.reach(base, ref)
	if err != nil {
		return nil, false, false, err
	}
	q.url = to
	body, again, err = q.once(ctx, hc, into)
	var status statusError
	if direct && errors.As(err, &status) {
		switch status {
		case http.StatusNotFound:
			return nil, false, false, errs.NotFound("chunk_missing", "A chunk of the artifact is not in the store.").Because(err)
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			return nil, true, true, err
		}
	}
	return body, again, false, err
}

// at names a chunk in an error.
func at(err error, file string, c artifact.Chunk) error {
	if err == nil {
		return nil
	}
	var e *errs.Error
	if errors.As(err, &e) {
		return e.With("file", file).With("offset", c.Offset).With("digest", string(c.Digest)).Because(err)
	}
	return fmt.Errorf("chunk at %d of %s: %w", c.Offset, file, err)
}
