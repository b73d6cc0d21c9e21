// Package oauthprovider speaks to those who know people: OpenID Connect issuers
// and GitHub.
package oauthprovider

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"skerry.dev/skerry/internal/control/oauth"
)

// callWithin bounds each exchange with a provider.
const callWithin = 15 * time.Second

// OIDC is an OpenID Connect issuer. It is asked for its addresses at the first
// login, so that one that is away does not keep the platform from starting.
type OIDC struct {
	id, name, issuer, client, secret string

	mu       sync.Mutex
	provider *oidc.Provider
}

// GoogleIssuer is Google's.
const GoogleIssuer = "https://accounts.google.com"

// NewOIDC returns a provider.
func NewOIDC(id, name, issuer, client, secret string) *OIDC {
	return &OIDC{id: id, name: name, issuer: issuer, client: client, secret: secret}
}

// ID implements oauth.Provider.
func (o *OIDC) ID() string { return o.id }

// Name implements oauth.Provider.
func (o *OIDC) Name() string { return o.name }

func (o *OIDC) discover(ctx context.Context) (*oidc.Provider, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.provider != nil {
		return o.provider, nil
	}
	p, err := oidc.NewProvider(ctx, o.issuer)
	if err != nil {
		return nil, fmt.Errorf("ask %s for its addresses: %w", o.issuer, err)
	}
	o.provider = p
	return p, nil
}

func (o *OIDC) config(p *oidc.Provider, redirect string) oauth2.Config {
	return oauth2.Config{
		ClientID: o.client, ClientSecret: o.secret, Endpoint: p.Endpoint(), RedirectURL: redirect, Scopes: []string{oidc.ScopeOpenID, "email", "profile"},
	}
}

// AuthURL implements oauth.Provider.
func (o *OIDC) AuthURL(ctx context.Context, a oauth.Attempt) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	p, err := o.discover(ctx)
	if err != nil {
		return "", err
	}
	config := o.config(p, a.Redirect)
	return config.AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), nil
}

// Exchange implements oauth.Provider.
func (o *OIDC) Exchange(ctx context.Context, a oauth.Attempt, code string) (oauth.Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	p, err := o.discover(ctx)
	if err != nil {
		return oauth.Claim{}, err
	}
	config := o.config(p, a.Redirect)
	token, err := config.Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return oauth.Claim{}, fmt.Errorf("exchange the code: %w", err)
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return oauth.Claim{}, errors.New("the answer holds no id_token")
	}
	// The keys are fetched for longer than this request lives.
	idToken, err := p.VerifierContext(context.WithoutCancel(ctx), &oidc.Config{ClientID: o.client}).Verify(ctx, raw)
	if err != nil {
		return oauth.Claim{}, fmt.Errorf("verify the id_token: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(idToken.Nonce), []byte(a.Nonce)) != 1 {
		return oauth.Claim{}, errors.New("the id_token is of another login")
	}
	var said struct {
		Email    string `json:"email"`
		Verified any    `json:"email_verified"` // some issuers send text
		Name     string `json:"name"`
		Login    string `json:"preferred_username"`
	}
	if err := idToken.Claims(&said); err != nil {
		return oauth.Claim{}, fmt.Errorf("read the id_token: %w", err)
	}
	c := oauth.Claim{Subject: idToken.Subject, Email: said.Email, EmailVerified: said.Verified == true || said.Verified == "true", Name: said.Name}
	if c.Name == "" {
		c.Name = said.Login
	}
	return c, nil
}
