package keyring

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Lifetimes of the tokens.
const (
	UserTokenLifetime = 15 * time.Minute
	HostTokenLifetime = 7 * 24 * time.Hour
)

const (
	issuer       = "skerry"
	audienceUser = "user"
	audienceHost = "host"
)

// UserClaims is what a user's token says. Only User and Session are believed;
// the rest is for display, because each request reads the truth from the
// database.
type UserClaims struct {
	User    id.User
	Session id.Session
	Team    *id.Team // the active team, nil without one
	Role    string
	Name    string
	Email   string
	IsAdmin bool
}

// HostClaims is what a host's token says. The host's room checks that the
// family of credentials still lives.
type HostClaims struct {
	Host   id.Host
	Family id.HostRefreshToken
}

type userToken struct {
	jwt.RegisteredClaims
	Session string `json:"sid"`
	Team    string `json:"team_id,omitempty"`
	Role    string `json:"role,omitempty"`
	Name    string `json:"name"`
	Email   string `json:"email"`
	IsAdmin bool   `json:"is_admin"`
}

type hostToken struct {
	jwt.RegisteredClaims
	Family string `json:"fam"`
}

// SignUser makes a user's token.
func (k *Keyring) SignUser(c UserClaims) (token string, expires time.Time, err error) {
	registered, expires := k.registered(c.User.String(), audienceUser, UserTokenLifetime)
	claims := userToken{
		RegisteredClaims: registered, Session: c.Session.String(), Role: c.Role, Name: c.Name, Email: c.Email, IsAdmin: c.IsAdmin,
	}
	if c.Team != nil {
		claims.Team = c.Team.String()
	}
	token, err = k.sign(KindUserJWT, claims)
	return token, expires, err
}

// SignHost makes a host's token.
func (k *Keyring) SignHost(c HostClaims) (token string, expires time.Time, err error) {
	registered, expires := k.registered(c.Host.String(), audienceHost, HostTokenLifetime)
	token, err = k.sign(KindHostJWT, hostToken{RegisteredClaims: registered, Family: c.Family.String()})
	return token, expires, err
}

// VerifyUser checks a user's token: our signature by a key for users, in time.
func (k *Keyring) VerifyUser(ctx context.Context, token string) (UserClaims, error) {
	var t userToken
	if err := k.verifyToken(ctx, token, KindUserJWT, audienceUser, &t); err != nil {
		return UserClaims{}, err
	}
	user, errUser := id.ParseUser(t.Subject)
	session, errSession := id.ParseSession(t.Session)
	if err := errors.Join(errUser, errSession); err != nil {
		return UserClaims{}, errInvalidToken.Because(err)
	}
	c := UserClaims{User: user, Session: session, Role: t.Role, Name: t.Name, Email: t.Email, IsAdmin: t.IsAdmin}
	if t.Team != "" {
		team, err := id.ParseTeam(t.Team)
		if err != nil {
			return UserClaims{}, errInvalidToken.Because(err)
		}
		c.Team = &team
	}
	return c, nil
}

// VerifyHost checks a host's token: our signature by a key for hosts, in time.
func (k *Keyring) VerifyHost(ctx context.Context, token string) (HostClaims, error) {
	var t hostToken
	if err := k.verifyToken(ctx, token, KindHostJWT, audienceHost, &t); err != nil {
		return HostClaims{}, err
	}
	host, errHost := id.ParseHost(t.Subject)
	family, errFamily := id.ParseHostRefreshToken(t.Family)
	if err := errors.Join(errHost, errFamily); err != nil {
		return HostClaims{}, errInvalidToken.Because(err)
	}
	return HostClaims{Host: host, Family: family}, nil
}

var (
	errInvalidToken = errs.Unauthenticated("invalid_token", "This token is not one of ours or is of another kind. Log in again.")
	errExpiredToken = errs.Unauthenticated("token_expired", "This token has expired. Log in again, or refresh it.")
)

func (k *Keyring) registered(subject, audience string, lifetime time.Duration) (jwt.RegisteredClaims, time.Time) {
	now := k.clock.Now()
	expires := now.Add(lifetime).Truncate(time.Second)
	return jwt.RegisteredClaims{
		Issuer: issuer, Subject: subject, Audience: jwt.ClaimStrings{audience},
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
	}, expires
}

func (k *Keyring) sign(kind Kind, claims jwt.Claims) (string, error) {
	key := k.signingKey(kind)
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	token.Header["kid"] = key.kid
	signed, err := token.SignedString(key.private)
	if err != nil {
		return "", fmt.Errorf("sign %s: %w", kind, err)
	}
	return signed, nil
}

func (k *Keyring) verifyToken(ctx context.Context, token string, kind Kind, audience string, claims jwt.Claims) error {
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(k.clock.Now),
	)
	_, err := parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		key, ok := k.verifying(ctx, kid)
		if !ok || key.kind != kind {
			return nil, fmt.Errorf("no %s key %q", kind, kid)
		}
		return key.public, nil
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpiredToken.Because(err)
	default:
		return errInvalidToken.Because(err)
	}
}
