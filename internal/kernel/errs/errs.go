// Package errs is the one kind of error that crosses a boundary. An error has
// a class, which every transport maps to its own status exactly once; a stable
// reason in snake_case, which programs match on; a message for people that
// says what to do; and a private cause, which is logged and never sent.
package errs

import (
	"errors"
	"fmt"
	"time"
)

// Code is the class of an error.
type Code string

// The classes, and nothing else is ever mapped to a status.
const (
	CodeInvalid            Code = "invalid"
	CodeUnauthenticated    Code = "unauthenticated"
	CodeForbidden          Code = "forbidden"
	CodeNotFound           Code = "not_found"
	CodeConflict           Code = "conflict"
	CodeFailedPrecondition Code = "failed_precondition"
	CodeTooLarge           Code = "too_large"
	CodeExhausted          Code = "exhausted"
	CodeUnavailable        Code = "unavailable"
	CodeCanceled           Code = "canceled"
	CodeInternal           Code = "internal"
)

// Error is an error with everything a caller or an operator needs.
type Error struct {
	Code    Code
	Reason  string         // stable, snake_case
	Message string         // for people: what is wrong and what to do
	Details map[string]any // public facts: the field, the limit, the actual status
	// RetryAfter is how long to wait before trying again; zero says nothing.
	RetryAfter time.Duration
	cause      error
}

// Error returns the message with its reason and cause, for logs.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Reason, e.Message, e.cause)
	}
	return e.Reason + ": " + e.Message
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.cause }

// With returns a copy that carries one more public detail.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Details = make(map[string]any, len(e.Details)+1)
	for k, v := range e.Details {
		c.Details[k] = v
	}
	c.Details[key] = value
	return &c
}

// Because returns a copy whose private cause is err.
func (e *Error) Because(err error) *Error {
	c := *e
	c.cause = err
	return &c
}

// After returns a copy that tells callers when to try again.
func (e *Error) After(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// Invalid is bad input: the same request can never succeed.
func Invalid(reason, message string) *Error { return New(CodeInvalid, reason, message) }

// Field is bad input in one named field.
func Field(field, message string) *Error {
	return New(CodeInvalid, "invalid_request", message).With("field", field)
}

// NotFound is a thing that does not exist, or not for this caller.
func NotFound(reason, message string) *Error { return New(CodeNotFound, reason, message) }

// Conflict is a request that lost against the state of the thing.
func Conflict(reason, message string) *Error { return New(CodeConflict, reason, message) }

// Forbidden is a known caller who may not do this.
func Forbidden(reason, message string) *Error { return New(CodeForbidden, reason, message) }

// Unauthenticated is a caller whose proof of identity is missing or refused.
func Unauthenticated(reason, message string) *Error {
	return New(CodeUnauthenticated, reason, message)
}

// Unavailable is a part that cannot be reached now; trying again may help.
func Unavailable(reason, message string) *Error { return New(CodeUnavailable, reason, message) }

// Exhausted is a limit that was reached.
func Exhausted(reason, message string) *Error { return New(CodeExhausted, reason, message) }

// FailedPrecondition is a request that the state of the world rules out.
func FailedPrecondition(reason, message string) *Error {
	return New(CodeFailedPrecondition, reason, message)
}

// Internal is a fault of ours; the message stays general, the cause is logged.
func Internal(cause error) *Error {
	return New(CodeInternal, "internal", "Something went wrong on our side. Quote the request id when reporting it.").Because(cause)
}

// New makes an error of a class.
func New(code Code, reason, message string) *Error {
	return &Error{Code: code, Reason: reason, Message: message}
}

// As returns the typed error in err's chain, or wraps err as internal. Nil
// stays nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Internal(err)
}

// CodeOf returns the class of err; CodeInternal for an untyped one.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return As(err).Code
}

// Is reports whether err carries the reason.
func Is(err error, reason string) bool {
	var e *Error
	return errors.As(err, &e) && e.Reason == reason
}
