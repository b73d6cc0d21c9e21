package web

import (
	"context"
	"net/http"
	"net/netip"

	"skerry.dev/skerry/internal/control/principal"
)

// Refusals keeps who was refused what; the audit room does.
type Refusals interface {
	// Refused is told when a known caller may not do what it tried to do.
	Refused(ctx context.Context, by principal.Principal, operation, reason string)
	// Counted is told when a caller that nobody knows was refused.
	Counted(ip netip.Addr, reason string)
}

// acting are the operations that do something although they are asked for with
// GET.
var acting = map[string]bool{"streamExec": true, "openPTY": true}

// noteRefusal is where the final error of every request passes, from the
// permission table as well as from the rooms. It runs before the last bytes of
// the answer leave, so that who was refused finds it recorded.
func (s *Server) noteRefusal(r *http.Request, status int, st *requestState) {
	if s.refusals == nil || st.failure == nil {
		return
	}
	changes := changing(r.Method) || acting[st.operation]
	by := st.caller
	if status == http.StatusForbidden && by.Kind == principal.KindAnonymous && changes && st.sentAPIKey {
		by = s.holder(r, st)
	}
	switch named, ok := peerHost(r.Context()); {
	case ok && st.failure.Reason == errHostMismatch.Reason:
		// Who came is known, and who it wanted to be taken for is not to be believed.
		by.Kind, by.HostID = principal.KindHost, named
		s.refusals.Refused(r.Context(), by, st.operation, st.failure.Reason)
	case status == http.StatusForbidden && by.Kind != principal.KindAnonymous:
		if changes {
			s.refusals.Refused(r.Context(), by, st.operation, st.failure.Reason)
		}
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		s.refusals.Counted(st.ip, st.failure.Reason)
	}
}

// holder finds whose API key it was that came where none may act: the generated
// plumbing did not look at it.
func (s *Server) holder(r *http.Request, st *requestState) principal.Principal {
	key := r.Header.Get("X-API-Key")
	caller, err := s.guesses.find(st.ip, key, func() (principal.Principal, error) { return s.keys.AuthenticateKey(r.Context(), key) })
	if err != nil {
		return st.caller
	}
	caller.RequestID, caller.IP, caller.UserAgent = st.requestID, st.ip, st.userAgent
	return caller
}

func changing(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}
