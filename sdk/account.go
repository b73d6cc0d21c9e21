package sdk

import (
	"context"
	"iter"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// Me is the user and active team of the client's token.
func (c *Client) Me(ctx context.Context) (*Me, error) {
	m, err := c.api.GetMe(ctx)
	return m, c.explain(err)
}

// CreateAPIKey makes a key of the active team; its secret is in this answer
// alone. Without scopes it may do all that keys may.
func (c *Client) CreateAPIKey(ctx context.Context, name string, scopes ...string) (*CreatedAPIKey, error) {
	return c.CreateAPIKeyUntil(ctx, name, time.Time{}, scopes...)
}

// CreateAPIKeyUntil is CreateAPIKey for a key that ends by itself; the zero time
// is never.
func (c *Client) CreateAPIKeyUntil(ctx context.Context, name string, expires time.Time, scopes ...string) (*CreatedAPIKey, error) {
	request := &restapi.CreateAPIKeyRequest{Name: name, Scopes: scopes}
	if !expires.IsZero() {
		request.ExpiresAt.SetTo(expires)
	}
	return create(ctx, c, func(key restapi.OptString) (*CreatedAPIKey, error) {
		return c.api.CreateAPIKey(ctx, request, restapi.CreateAPIKeyParams{IdempotencyKey: key})
	})
}

// APIKeys walks the team's keys, newest first.
func (c *Client) APIKeys(ctx context.Context) iter.Seq2[APIKey, error] {
	return walk(c, func(cursor restapi.OptString) ([]APIKey, restapi.OptString, error) {
		l, err := c.api.ListAPIKeys(ctx, restapi.ListAPIKeysParams{Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// DeleteAPIKey revokes a key; the next request with it is refused.
func (c *Client) DeleteAPIKey(ctx context.Context, id string) error {
	return c.explain(c.api.DeleteAPIKey(ctx, restapi.DeleteAPIKeyParams{ID: id}))
}

// walk reads page after page until the caller has enough.
func walk[T any](c *Client, page func(cursor restapi.OptString) ([]T, restapi.OptString, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var cursor restapi.OptString
		for {
			items, next, err := page(cursor)
			if err != nil {
				var none T
				yield(none, c.explain(err))
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next.Value == "" {
				return
			}
			cursor = next
		}
	}
}

func optString(s string) restapi.OptString {
	if s == "" {
		return restapi.OptString{}
	}
	return restapi.NewOptString(s)
}
