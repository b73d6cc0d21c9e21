package web

import (
	"context"
	"net/http"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Foreign is a route of a protocol that is not ours, served on our rooms: it is
// not in the document, and what it does is an operation of the document.
type Foreign struct {
	// Pattern is as http.ServeMux has it: `GET /sandboxes/{id}`.
	Pattern string
	// Operation names what a request amounts to. That operation's line in the
	// permissions decides who may ask for it.
	Operation func(r *http.Request) string
	// Handler is called as a Route's is. What it returns, and why it was not
	// called, is told to Fail.
	Handler func(w http.ResponseWriter, r *http.Request) error
	// Fail answers in the protocol's own form. The status and the words are those
	// of Errors.NewError, which has to be called.
	Fail func(w http.ResponseWriter, r *http.Request, err error)
}

// MountForeign adds a route of another protocol.
func (s *Server) MountForeign(f Foreign) {
	s.raw.HandleFunc(f.Pattern, func(w http.ResponseWriter, r *http.Request) {
		operation := f.Operation(r)
		stateOf(r.Context()).operation = operation
		ctx, err := s.authenticate(r, operation)
		if err != nil {
			f.Fail(w, r, err)
			return
		}
		limitBody(w, r)
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer s.open.enter(principal.From(ctx), cancel)()
		err = f.Handler(w, r.WithContext(ctx))
		if err != nil && errs.CodeOf(context.Cause(ctx)) == errs.CodeUnauthenticated {
			err = context.Cause(ctx) // why the handler could not go on
		}
		if err != nil {
			f.Fail(w, r, err)
		}
	})
}

// MountNowhere has all paths that a pattern names answered as missing by fail,
// whatever the method.
func (s *Server) MountNowhere(pattern string, fail func(w http.ResponseWriter, r *http.Request, err error)) {
	s.raw.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { fail(w, r, errNoRoute) })
}
