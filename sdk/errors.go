package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// Error is what the server refused and why.
type Error struct {
	Status     int            // HTTP
	Code       string         // stable, snake_case: "not_found", "quota_exceeded", …
	Message    string         // for people: what is wrong and what to do
	Details    map[string]any // public facts, by code
	RequestID  string         // quote it when reporting a fault
	RetryAfter time.Duration  // zero: the server did not say
}

// Error returns the message, with the code for programs that only have text.
func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Code) }

// UnreachableError is a server that did not answer.
type UnreachableError struct {
	URL   string
	cause error
}

// Error says which server and what happened.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no answer from %s: %v", e.URL, e.cause)
}

// Unwrap returns what happened.
func (e *UnreachableError) Unwrap() error { return e.cause }

// sourceError is what a token source said, unchanged on its way through others.
type sourceError struct{ said error }

func (e *sourceError) Error() string { return e.said.Error() }
func (e *sourceError) Unwrap() error { return e.said }

// Is reports whether err is the server's error with this code.
func Is(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

type wireError struct {
	Error struct {
		Code      string         `json:"code"`
		Message   string         `json:"message"`
		Details   map[string]any `json:"details"`
		RequestID string         `json:"request_id"`
	} `json:"error"`
}

func (w wireError) typed(status int) *Error {
	return &Error{Status: status, Code: w.Error.Code, Message: w.Error.Message, Details: w.Error.Details, RequestID: w.Error.RequestID}
}

// maxError bounds what is read of an error's body.
const maxError = 64 << 10

// readError turns an answer that is no success into an *Error, whoever sent it:
// a proxy in between knows nothing of our shape.
func readError(r *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(r.Body, maxError))
	var w wireError
	if json.Unmarshal(raw, &w) != nil || w.Error.Code == "" {
		w.Error.Code = "unexpected_answer"
		w.Error.Message = fmt.Sprintf("The server answered %s, and not as Skerry does: check the URL and what stands in between.", r.Status)
	}
	e := w.typed(r.StatusCode)
	if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// explain types what the generated client returns.
func (c *Client) explain(err error) error {
	if err == nil {
		return nil
	}
	var source *sourceError
	if errors.As(err, &source) {
		return source.said
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	var status *restapi.ErrorStatusCode
	if errors.As(err, &status) {
		body := status.Response.Error
		e := &Error{Status: status.StatusCode, Code: body.Code, Message: body.Message, RequestID: body.RequestID}
		for k, raw := range body.Details.Value {
			var v any
			if json.Unmarshal(raw, &v) == nil {
				if e.Details == nil {
					e.Details = make(map[string]any, len(body.Details.Value))
				}
				e.Details[k] = v
			}
		}
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var transport *url.Error
	if errors.As(err, &transport) {
		return &UnreachableError{URL: c.URL(), cause: transport.Err}
	}
	return fmt.Errorf("the answer of %s was not understood; is it a Skerry of this version? %w", c.URL(), err)
}
