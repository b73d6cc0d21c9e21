// Package rpcerr carries errs.Error over Connect between the control plane and
// its hosts: the class becomes a Connect code, the stable reason travels as
// metadata, and both ends see the same typed error. The private cause never
// leaves the process.
package rpcerr

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Metadata of an error. Also used as plain response headers where an answer is
// not Connect, as on CONNECT.
const (
	HeaderReason     = "X-Skerry-Reason"
	HeaderCode       = "X-Skerry-Code"
	HeaderRetryAfter = "Retry-After"
	headerDetails    = "X-Skerry-Details-Bin"
)

// What is believed of a peer's error, in bytes.
const (
	maxMetadata = 128
	maxDetails  = 1 << 10
)

// ToConnect renders err for the wire. An untyped error becomes internal with a
// general message; context errors keep their meaning. Nil stays nil, and an
// error that is one of Connect's already is passed on.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		return err
	}
	var typed *errs.Error
	if !errors.As(err, &typed) {
		typed = untyped(err)
	}
	out := connect.NewError(code(typed.Code), errors.New(typed.Message))
	out.Meta().Set(HeaderReason, typed.Reason)
	out.Meta().Set(HeaderCode, string(typed.Code))
	if typed.RetryAfter > 0 {
		out.Meta().Set(HeaderRetryAfter, seconds(typed.RetryAfter))
	}
	if raw, err := json.Marshal(typed.Details); err == nil && len(typed.Details) > 0 && len(raw) <= maxDetails {
		out.Meta().Set(headerDetails, connect.EncodeBinaryHeader(raw))
	}
	return out
}

// details reads the public facts of a peer's error: strings, booleans and whole
// numbers (int64), and of all else nothing.
func details(header string) map[string]any {
	raw, err := connect.DecodeBinaryHeader(header)
	if err != nil || len(raw) > maxDetails {
		return nil
	}
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	var out map[string]any
	if in.Decode(&out) != nil {
		return nil
	}
	for k, v := range out {
		switch v := v.(type) {
		case string, bool:
		case json.Number:
			if n, err := v.Int64(); err == nil {
				out[k] = n
				continue
			}
			delete(out, k)
		default:
			delete(out, k)
		}
	}
	return out
}

// Untyped gives an error without a class one: context errors are canceled or
// unavailable, all else is internal.
func untyped(err error) *errs.Error {
	switch {
	case errors.Is(err, context.Canceled):
		return errs.New(errs.CodeCanceled, "canceled", "The call was canceled.").Because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return errs.Unavailable("deadline_exceeded", "The call ran out of time. Try it again.").Because(err)
	default:
		return errs.Internal(err)
	}
}

// FromConnect reads an error a client got. A transport failure, which carries
// no reason, is unavailable "host_unavailable": the caller cannot know whether
// the call had an effect, and may repeat it. Nil stays nil.
func FromConnect(err error) error {
	if err == nil {
		return nil
	}
	ce := new(connect.Error)
	if !errors.As(err, &ce) {
		return untyped(err)
	}
	reason := ce.Meta().Get(HeaderReason)
	if reason == "" || len(reason) > maxMetadata {
		return withoutReason(ce)
	}
	out := errs.New(class(ce.Meta().Get(HeaderCode), ce.Code()), reason, ce.Message())
	if s, perr := strconv.Atoi(ce.Meta().Get(HeaderRetryAfter)); perr == nil && s > 0 && s <= int(time.Hour/time.Second) {
		out = out.After(time.Duration(s) * time.Second)
	}
	for k, v := range details(ce.Meta().Get(headerDetails)) {
		out = out.With(k, v)
	}
	return out
}

func withoutReason(ce *connect.Error) error {
	switch ce.Code() {
	case connect.CodeCanceled:
		return errs.New(errs.CodeCanceled, "canceled", "The call was canceled.").Because(ce)
	case connect.CodeDeadlineExceeded:
		return errs.Unavailable("deadline_exceeded", "The host did not answer in time. Try it again.").Because(ce)
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return errs.Unavailable("host_refused", "The host refuses this control plane.").Because(ce)
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeAborted, connect.CodeUnimplemented,
		connect.CodeInternal: // of the transport; a peer's own has a reason
		return errs.Unavailable("host_unavailable", "The host cannot be reached. Try it again.").Because(ce)
	default:
		return errs.Internal(ce)
	}
}

// HTTPStatus is the status of a class where an answer is plain HTTP between
// the two, as on CONNECT.
func HTTPStatus(c errs.Code) int {
	switch c {
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
	case errs.CodeUnavailable, errs.CodeCanceled:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// classes pairs each class with its Connect code. Conflict and too_large share
// a code with others, so the class itself travels too.
func classes() map[errs.Code]connect.Code {
	return map[errs.Code]connect.Code{
		errs.CodeInvalid:            connect.CodeInvalidArgument,
		errs.CodeUnauthenticated:    connect.CodeUnauthenticated,
		errs.CodeForbidden:          connect.CodePermissionDenied,
		errs.CodeNotFound:           connect.CodeNotFound,
		errs.CodeConflict:           connect.CodeAborted,
		errs.CodeFailedPrecondition: connect.CodeFailedPrecondition,
		errs.CodeTooLarge:           connect.CodeInvalidArgument,
		errs.CodeExhausted:          connect.CodeResourceExhausted,
		errs.CodeUnavailable:        connect.CodeUnavailable,
		errs.CodeCanceled:           connect.CodeCanceled,
		errs.CodeInternal:           connect.CodeInternal,
	}
}

func code(c errs.Code) connect.Code {
	if out, ok := classes()[c]; ok {
		return out
	}
	return connect.CodeInternal
}

// class believes the named class only where it agrees with the Connect code.
func class(named string, c connect.Code) errs.Code {
	all := classes()
	if got, ok := all[errs.Code(named)]; ok && got == c {
		return errs.Code(named)
	}
	for k, v := range all {
		if v == c && k != errs.CodeTooLarge {
			return k
		}
	}
	return errs.CodeInternal
}

func seconds(d time.Duration) string {
	return strconv.Itoa(int((d + time.Second - 1) / time.Second))
}
