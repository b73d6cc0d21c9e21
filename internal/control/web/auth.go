package web

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Tokens checks signatures; the keyring does.
type Tokens interface {
	VerifyUser(ctx context.Context, token string) (keyring.UserClaims, error)
	VerifyHost(ctx context.Context, token string) (keyring.HostClaims, error)
}

// UserAuthenticator reads who a session belongs to, now, in one query. A
// session that ended is errs.CodeUnauthenticated.
type UserAuthenticator interface {
	AuthenticateUser(ctx context.Context, claims keyring.UserClaims) (principal.Principal, error)
	// LivingSessions are those of the given ones that still stand for somebody,
	// with what that somebody's rights rest on, in one query.
	LivingSessions(ctx context.Context, sessions []id.Session) (map[id.Session]principal.Standing, error)
}

// KeyAuthenticator finds the API key, now, in one query. A key that is unknown,
// revoked or expired is errs.CodeUnauthenticated.
type KeyAuthenticator interface {
	AuthenticateKey(ctx context.Context, key string) (principal.Principal, error)
	// LivingKeys are those of the given keys that still work, in one query.
	LivingKeys(ctx context.Context, keys []id.APIKey) ([]id.APIKey, error)
}

// HostAuthenticator checks that the host and the family of its credentials
// still live. Otherwise errs.CodeUnauthenticated, or a reason of its own such
// as host_deleted.
type HostAuthenticator interface {
	AuthenticateHost(ctx context.Context, claims keyring.HostClaims) (principal.Principal, error)
}

// Tickets stand for a caller on a stream that cannot send headers: each works
// once, for one operation on one resource ("" for none). A ticket that does not
// is errs.CodeUnauthenticated.
type Tickets interface {
	Redeem(ctx context.Context, ticket, operation, resource string) (principal.Principal, error)
}

var (
	errTwoCredentials = errs.Invalid("ambiguous_credentials", "Send one of a bearer token, an API key and a ticket, not several.")
	errHostMismatch   = errs.Unauthenticated("certificate_mismatch", "The client certificate is not that of the token's host.")
)

// security implements restapi.SecurityHandler.
type security struct{ s *Server }

// HandleApiKey implements restapi.SecurityHandler.
func (h security) HandleApiKey(ctx context.Context, operation restapi.OperationName, t restapi.ApiKey) (context.Context, error) { //nolint:revive // the generator's name
	return h.s.withKey(ctx, operationID(operation), t.APIKey)
}

// HandleBearer implements restapi.SecurityHandler.
func (h security) HandleBearer(ctx context.Context, operation restapi.OperationName, t restapi.Bearer) (context.Context, error) {
	return h.s.withUser(ctx, operationID(operation), t.Token)
}

// HandleHostToken implements restapi.SecurityHandler.
func (h security) HandleHostToken(ctx context.Context, operation restapi.OperationName, t restapi.HostToken) (context.Context, error) {
	return h.s.withHost(ctx, operationID(operation), t.Token)
}

// operationID gives the generator's name of an operation back its first
// letter.
func operationID(name string) string { return strings.ToLower(name[:1]) + name[1:] }

// Authenticate finds the caller of a request and decides whether it may call
// the operation; the returned context carries it. Routes beside the generated
// ones go through it before their handler.
func (s *Server) authenticate(r *http.Request, operation string) (context.Context, error) {
	ctx := r.Context()
	permission, ok := permissions[operation]
	if !ok {
		return nil, errs.Internal(fmt.Errorf("operation %q has no line in the permissions", operation))
	}
	if permission.Anonymous {
		return ctx, nil
	}
	key := r.Header.Get("X-API-Key")
	scheme, token, bearer := strings.Cut(r.Header.Get("Authorization"), " ")
	bearer = bearer && strings.EqualFold(scheme, "Bearer")
	ticket := ""
	if ticketed[operation] {
		ticket = r.URL.Query().Get("ticket")
	}
	switch {
	case key != "" && bearer, ticket != "" && (key != "" || bearer):
		return nil, errTwoCredentials
	case ticket != "":
		caller, err := s.guesses.find(stateOf(ctx).ip, ticket, func() (principal.Principal, error) {
			return s.tickets.Redeem(ctx, ticket, operation, r.PathValue("id"))
		})
		if err != nil {
			return nil, err
		}
		return s.admit(ctx, operation, caller)
	case key != "":
		return s.withKey(ctx, operation, key)
	case bearer && permission.Host:
		return s.withHost(ctx, operation, token)
	case bearer:
		return s.withUser(ctx, operation, token)
	default:
		return nil, errUnauthenticated
	}
}

// ticketed are the operations that a ticket may open.
var ticketed = map[string]bool{"streamEvents": true, "streamExec": true, "openPTY": true, "downloadFile": true}

func (s *Server) withUser(ctx context.Context, operation, token string) (context.Context, error) {
	claims, err := s.tokens.VerifyUser(ctx, token)
	if err != nil {
		return nil, err
	}
	caller, err := s.users.AuthenticateUser(ctx, claims)
	if err != nil {
		return nil, err
	}
	return s.admit(ctx, operation, caller)
}

func (s *Server) withKey(ctx context.Context, operation, key string) (context.Context, error) {
	caller, err := s.guesses.find(stateOf(ctx).ip, key, func() (principal.Principal, error) { return s.keys.AuthenticateKey(ctx, key) })
	if err != nil {
		return nil, err
	}
	return s.admit(ctx, operation, caller)
}

func (s *Server) withHost(ctx context.Context, operation, token string) (context.Context, error) {
	claims, err := s.tokens.VerifyHost(ctx, token)
	if err != nil {
		return nil, err
	}
	if named, sent := peerHost(ctx); sent && named != claims.Host {
		return nil, errHostMismatch
	}
	if permissions[operation].Claimed {
		return s.admit(ctx, operation, principal.Principal{Kind: principal.KindHost, HostID: claims.Host, HostFamily: claims.Family})
	}
	caller, err := s.hosts.AuthenticateHost(ctx, claims)
	if err != nil {
		return nil, err
	}
	return s.admit(ctx, operation, caller)
}

// admit gives an authenticated caller what the request knows, counts it, and
// asks the table.
func (s *Server) admit(ctx context.Context, operation string, caller principal.Principal) (context.Context, error) {
	st := stateOf(ctx)
	if st.caller.Kind != principal.KindAnonymous {
		return nil, errTwoCredentials
	}
	caller.RequestID, caller.IP, caller.UserAgent = st.requestID, st.ip, st.userAgent
	st.caller, st.operation = caller, operation
	permission, ok := permissions[operation]
	if !ok {
		return nil, errs.Internal(fmt.Errorf("operation %q has no line in the permissions", operation))
	}
	if err := permission.allow(caller); err != nil {
		return nil, err
	}
	if wait := s.perCaller.Take(caller.Caller()); wait > 0 {
		return nil, errRateLimited.After(wait)
	}
	return principal.With(ctx, caller), nil
}

var errRateLimited = errs.New(errs.CodeExhausted, "rate_limited", "Too many requests. Wait as Retry-After says.")
