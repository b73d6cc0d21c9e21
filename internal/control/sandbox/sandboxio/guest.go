package sandboxio

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"

	"skerry.dev/skerry/internal/kernel/errs"
)

// The guest's wire: headers and paths, fixed by its protocol.
const (
	guestURL        = "http://guest"
	headerToken     = "X-Access-Token"
	headerKeepalive = "Keepalive-Ping-Interval"
	headerLifetime  = "Connect-Timeout-Ms"
	// keepaliveSeconds is how often an idle stream of the guest shows that it is
	// alive. It keeps every leg in between from calling the stream idle.
	keepaliveSeconds = "20"
)

type visitKey struct{}

type lifetimeKey struct{}

// within returns a context whose calls go to v's guest.
func (v *visit) within(ctx context.Context) context.Context {
	return context.WithValue(ctx, visitKey{}, v)
}

// withLifetime makes the Start called with ctx end its command after d, rounded
// up to a millisecond.
func withLifetime(ctx context.Context, d time.Duration) context.Context {
	ms := (d + time.Millisecond - 1) / time.Millisecond
	return context.WithValue(ctx, lifetimeKey{}, strconv.FormatInt(int64(ms), 10))
}

// courier sends the calls of the generated clients to the guest that their
// context names, so that the clients are made once and not with each call. It
// follows no redirect: what comes back is a guest's word.
type courier struct{}

// Do implements connect.HTTPClient.
func (courier) Do(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	v, ok := ctx.Value(visitKey{}).(*visit)
	if !ok {
		return nil, errors.New("a call to no sandbox")
	}
	v.sign(r.Header)
	r.Header.Set(headerKeepalive, keepaliveSeconds)
	if ms, ok := ctx.Value(lifetimeKey{}).(string); ok {
		r.Header.Set(headerLifetime, ms)
	}
	return v.Transport.RoundTrip(r)
}

// sign says who is calling and as whom.
func (v *visit) sign(h http.Header) {
	if v.AccessToken != "" {
		h.Set(headerToken, v.AccessToken)
	}
	if v.user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(v.user+":")))
	}
}

// outage is a failure of the way to the guest, or of the guest itself: it says
// nothing about whether the call had an effect, and may be over in a moment.
func outage(err error) *errs.Error {
	return errs.Unavailable("sandbox_unreachable",
		"The sandbox did not answer. It may or may not have done what was asked; look before you try again.").Because(err)
}

// said returns err as what the guest itself said, or nil when it is a failure on
// the way there.
func said(err error) *connect.Error {
	var ce *connect.Error
	if !errors.As(err, &ce) || !connect.IsWireError(err) {
		return nil
	}
	switch ce.Code() {
	case connect.CodeUnavailable, connect.CodeCanceled:
		return nil // a daemon that is starting or being replaced
	default:
		return ce
	}
}

// over returns why a visit's context ended, as its caller is to be told: nil
// while it has not.
func (v *visit) over(ctx context.Context) *errs.Error {
	switch {
	case v.ended():
		return sandboxEnded()
	case ctx.Err() != nil:
		return errs.New(errs.CodeCanceled, "canceled", "The request was canceled.").Because(context.Cause(ctx))
	default:
		return nil
	}
}

// refusal turns what a guest said of a command into an error. The texts that
// are looked at are part of the guest's wire protocol, which has no finer codes.
func (v *visit) refusal(ce *connect.Error, cmd, cwd string) *errs.Error {
	text := ce.Message()
	switch ce.Code() {
	case connect.CodeUnauthenticated:
		return v.unknownUser(text).Because(ce)
	case connect.CodeInvalidArgument:
		switch {
		case strings.HasPrefix(text, "cwd "):
			return errs.Invalid("invalid_cwd", fmt.Sprintf("The working directory %s cannot be used: name a directory that exists.", quote(cwd))).
				With("field", "cwd").With("guest", clean(text)).Because(ce)
		case strings.HasPrefix(text, "error starting process"):
			return errs.Invalid("command_not_found", fmt.Sprintf("The program %s cannot be started: name an executable that exists in the sandbox.", quote(cmd))).
				With("field", "cmd").With("guest", clean(text)).Because(ce)
		}
		return errs.Invalid("invalid_command", "The sandbox refuses this command: "+clean(text)).Because(ce)
	case connect.CodeNotFound:
		return errs.NotFound("exec_not_found", "The sandbox has no such command any more. Results are kept for a day and for the last thousand commands.").Because(ce)
	case connect.CodeResourceExhausted:
		return errs.Exhausted("sandbox_limit_reached", "The sandbox has no room for another command: "+clean(text)).Because(ce)
	default:
		return outage(ce)
	}
}

func (v *visit) unknownUser(text string) *errs.Error {
	if !strings.HasPrefix(text, "invalid username") {
		// Our own token was refused: nothing a caller can help.
		return errs.Unavailable("sandbox_refused", "The sandbox refuses the control plane. Restart it, or create another.")
	}
	return errs.Invalid("invalid_user", fmt.Sprintf("The sandbox has no user %s. Leave user out for its default one.", quote(v.user))).With("field", "user")
}

const maxGuestText = 300

// clean makes a text of the guest fit to be shown: short, one line, valid UTF-8.
func clean(s string) string {
	if len(s) > maxGuestText {
		s = s[:maxGuestText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
}

func quote(s string) string { return "'" + clean(s) + "'" }

const maxUser = 64

// checkUser refuses names that could not travel; empty is the default user.
func checkUser(name string) error {
	if len(name) > maxUser || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r == ':' || !unicode.IsPrint(r) }) {
		return errs.Invalid("invalid_user", fmt.Sprintf("user must be a name of at most %d printable bytes without a colon.", maxUser)).With("field", "user")
	}
	return nil
}
