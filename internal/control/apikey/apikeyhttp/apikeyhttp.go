// Package apikeyhttp serves the API keys' operations.
package apikeyhttp

import (
	"context"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/apikey"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// APIKeys is the keys' slice of restapi.Handler.
type APIKeys struct {
	service *apikey.Service
	replays *idempotency.Service
}

// New returns the slice.
func New(service *apikey.Service, replays *idempotency.Service) *APIKeys {
	return &APIKeys{service: service, replays: replays}
}

// CreateAPIKey implements restapi.Handler.
func (a *APIKeys) CreateAPIKey(ctx context.Context, req *restapi.CreateAPIKeyRequest, _ restapi.CreateAPIKeyParams) (*restapi.CreatedAPIKey, error) {
	created, err := idempotency.Do(ctx, a.replays, func(ctx context.Context) (apikey.Created, error) {
		r := apikey.CreateRequest{Name: req.Name, Scopes: req.Scopes}
		if at, ok := req.ExpiresAt.Get(); ok {
			r.ExpiresAt = &at
		}
		return a.service.Create(ctx, principal.From(ctx), r)
	})
	if err != nil {
		return nil, err
	}
	return &restapi.CreatedAPIKey{APIKey: KeyOf(created.Key), Key: created.Secret}, nil
}

// ListAPIKeys implements restapi.Handler.
func (a *APIKeys) ListAPIKeys(ctx context.Context, params restapi.ListAPIKeysParams) (*restapi.APIKeyList, error) {
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	request, err := page.NewRequest(limit, params.Cursor.Or(""))
	if err != nil {
		return nil, err
	}
	found, err := a.service.List(ctx, principal.From(ctx), request)
	if err != nil {
		return nil, err
	}
	list := &restapi.APIKeyList{Items: make([]restapi.APIKey, len(found.Items))}
	for i, key := range found.Items {
		list.Items[i] = KeyOf(key)
	}
	if found.NextCursor != "" {
		list.NextCursor.SetTo(found.NextCursor)
	}
	return list, nil
}

// DeleteAPIKey implements restapi.Handler.
func (a *APIKeys) DeleteAPIKey(ctx context.Context, params restapi.DeleteAPIKeyParams) error {
	key, err := id.ParseAPIKey(params.ID)
	if err != nil {
		return err
	}
	return a.service.Revoke(ctx, principal.From(ctx), key)
}

// KeyOf is a key as the API shows it.
func KeyOf(k apikey.Key) restapi.APIKey {
	out := restapi.APIKey{
		ID: k.ID.String(), Name: k.Name, Prefix: k.Prefix, Scopes: make([]string, len(k.Scopes)), CreatedBy: k.Creator, CreatedAt: k.CreatedAt.UTC(),
	}
	for i, scope := range k.Scopes {
		out.Scopes[i] = string(scope)
	}
	set := func(to *restapi.OptDateTime, at *time.Time) {
		if at != nil {
			to.SetTo(at.UTC())
		}
	}
	set(&out.LastUsedAt, k.LastUsedAt)
	set(&out.ExpiresAt, k.ExpiresAt)
	return out
}
