package web

import (
	"context"
	"net/http"
)

// SetCookie adds a cookie to the answer of the request that ctx belongs to. The
// generated handlers see no ResponseWriter; call it before they return.
func SetCookie(ctx context.Context, cookie *http.Cookie) {
	if answer := stateOf(ctx).answer; answer != nil {
		answer.Add("Set-Cookie", cookie.String())
	}
}

// Cookie returns the value of a cookie that the request carries; "" for none.
func Cookie(ctx context.Context, name string) string {
	cookie, err := (&http.Request{Header: stateOf(ctx).sent}).Cookie(name)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// Origin returns which page a browser says the request comes from; "" when it
// does not say.
func Origin(ctx context.Context) string { return stateOf(ctx).sent.Get("Origin") }
