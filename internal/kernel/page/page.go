// Package page is keyset paging as every list of the API does it.
package page

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Bounds of the limit parameter.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// Request is the part of a list request that pages.
type Request struct {
	Limit  int
	Cursor string // opaque; empty is the first page
}

// NewRequest checks limit and fills in the default. A nil limit was not sent.
func NewRequest(limit *int, cursor string) (Request, error) {
	r := Request{Limit: DefaultLimit, Cursor: cursor}
	if limit != nil {
		if *limit < 1 || *limit > MaxLimit {
			return r, errs.Field("limit", fmt.Sprintf("limit must be between 1 and %d.", MaxLimit))
		}
		r.Limit = *limit
	}
	return r, nil
}

// Page is one page of items. NextCursor is empty on the last page.
type Page[T any] struct {
	Items      []T
	NextCursor string
}

// Of cuts rows, of which one more than the limit was asked for, to a page; key
// gives the position of a row in the list's order.
func Of[T any](rows []T, limit int, key func(T) any) (Page[T], error) {
	if len(rows) <= limit {
		return Page[T]{Items: rows}, nil
	}
	rows = rows[:limit]
	cursor, err := Encode(key(rows[limit-1]))
	if err != nil {
		return Page[T]{}, err
	}
	return Page[T]{Items: rows, NextCursor: cursor}, nil
}

// Encode turns the position of a row into a cursor.
func Encode(position any) (string, error) {
	raw, err := json.Marshal(position)
	if err != nil {
		return "", fmt.Errorf("encode cursor: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

// Decode reads a cursor into position; a junk cursor is invalid_cursor.
func Decode(cursor string, position any) error {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		err = json.Unmarshal(raw, position)
	}
	if err != nil {
		return errs.Invalid("invalid_cursor", "Use the next_cursor of the previous page as it was given, or leave cursor out.").Because(err)
	}
	return nil
}
