package web

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/go-faster/jx"
	"github.com/ogen-go/ogen/ogenerrors"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/kernel/errs"
)

// statusOf is the one place where a class of error gets its HTTP status.
func statusOf(code errs.Code) int {
	switch code {
	case errs.CodeInvalid:
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
	case errs.CodeCanceled:
		return http.StatusRequestTimeout
	default:
		return http.StatusInternalServerError
	}
}

// reasonStatus holds the reasons whose status differs from their class's.
func reasonStatus(e *errs.Error) int {
	switch e.Reason {
	case "method_not_allowed":
		return http.StatusMethodNotAllowed
	case "host_deleted":
		return http.StatusGone
	}
	return statusOf(e.Code)
}

// defaultRetryAfter is sent with 429 and 503 when the error names no time.
const defaultRetryAfter = time.Second

// Errors renders errors for generated handlers; the type that serves all
// operations embeds it.
type Errors struct{}

// NewError implements restapi.Handler.
func (Errors) NewError(ctx context.Context, err error) *restapi.ErrorStatusCode {
	e := typed(err)
	st := stateOf(ctx)
	var of ogenerrors.Error
	if st.operation == "" && errors.As(err, &of) {
		st.operation = of.OperationID()
	}
	if e.Reason == errUnauthenticated.Reason && st.sentAPIKey {
		// The generated plumbing looks at no key where none may act.
		e = errNoKeysHere
	}
	st.failure = e
	body := restapi.ErrorError{Code: e.Reason, Message: e.Message, RequestID: st.requestID}
	if len(e.Details) > 0 {
		details := make(restapi.ErrorErrorDetails, len(e.Details))
		for key, value := range e.Details {
			if raw, err := json.Marshal(value); err == nil {
				details[key] = jx.Raw(raw)
			}
		}
		body.Details.SetTo(details)
	}
	return &restapi.ErrorStatusCode{StatusCode: reasonStatus(e), Response: restapi.Error{Error: body}}
}

// WriteError answers a request with an error, for handlers that stand beside
// the generated ones. After the first byte of an answer it only logs.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	answer := Errors{}.NewError(r.Context(), err)
	if st := stateOf(r.Context()); st.started {
		return
	}
	body, encodeErr := answer.Response.MarshalJSON()
	if encodeErr != nil { // cannot happen: strings and checked JSON
		body = []byte(`{"error":{"code":"internal","message":"","request_id":""}}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Del("Content-Length")
	w.WriteHeader(answer.StatusCode)
	_, _ = w.Write(body) // the client is gone, the log has the rest
}

// typed finds the typed error in what a handler or the plumbing returned.
func typed(err error) *errs.Error {
	var e *errs.Error
	if errors.As(err, &e) {
		return e
	}
	if e := fromDecoding(err); e != nil {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return errs.New(errs.CodeCanceled, "canceled", "The request was canceled.").Because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return errs.Unavailable("timeout", "This took too long. Try again.").Because(err)
	}
	return errs.Internal(err)
}

func retryAfterHeader(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
