// Package apikey owns the keys by which programs act for a team. A key acts on
// sandboxes, snapshots and templates, never on members, keys or hosts. Only
// its hash is kept.
package apikey

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Key is a key without its secret.
type Key struct {
	ID         id.APIKey         `json:"id"`
	TeamID     id.Team           `json:"team_id"`
	Name       string            `json:"name"`
	Prefix     string            `json:"prefix"` // the beginning of the secret, for lists
	Scopes     []principal.Scope `json:"scopes"`
	CreatedBy  id.User           `json:"created_by"`
	Creator    string            `json:"creator"` // name; empty when that account is gone
	CreatedAt  time.Time         `json:"created_at"`
	ExpiresAt  *time.Time        `json:"expires_at,omitempty"`
	LastUsedAt *time.Time        `json:"last_used_at,omitempty"` // within a minute
}

// Created is a new key with its secret, which is shown this once.
type Created struct {
	Key    Key    `json:"key"`
	Secret string `json:"secret"`
}

// CreateRequest is what is asked for. No scopes are all scopes.
type CreateRequest struct {
	Name      string
	Scopes    []string
	ExpiresAt *time.Time
}

const (
	// prefix and e2bPrefix name the same key: clients of either accept it.
	prefix, e2bPrefix = "skerry_", "e2b_"
	secretBytes       = 20
	shownDigits       = 6
	maxName           = 100
	maxYear           = 9998 // in UTC; the fifth digit of a year has no form in JSON, wherever one reads it
)

var allScopes = []principal.Scope{
	principal.ScopeSandboxes, principal.ScopeSnapshots, principal.ScopeTemplates, principal.ScopeRead,
}

func (r CreateRequest) normalize(now time.Time) (CreateRequest, []principal.Scope, error) {
	r.Name = strings.TrimSpace(r.Name)
	if n := utf8.RuneCountInString(r.Name); n < 1 || n > maxName || strings.ContainsFunc(r.Name, unicode.IsControl) {
		return r, nil, errs.Field("name", fmt.Sprintf("name must have 1 to %d printable characters.", maxName))
	}
	scopes := allScopes
	if r.Scopes != nil {
		scopes = nil
		for _, s := range r.Scopes {
			scope := principal.Scope(s)
			if !slices.Contains(allScopes, scope) {
				return r, nil, errs.Field("scopes", "scopes must be of sandboxes, snapshots, templates, read.")
			}
			if !slices.Contains(scopes, scope) {
				scopes = append(scopes, scope)
			}
		}
		if len(scopes) == 0 {
			return r, nil, errs.Field("scopes", "Name at least one scope, or leave scopes out for all.")
		}
	}
	if r.ExpiresAt != nil && (!r.ExpiresAt.After(now) || r.ExpiresAt.UTC().Year() > maxYear) {
		return r, nil, errs.Field("expires_at", fmt.Sprintf("expires_at must be in the future and not after the year %d.", maxYear))
	}
	return r, scopes, nil
}

// newSecret makes the 40 hex digits of a key.
func newSecret() string {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// hashOf is what is stored of a key: 160 random bits need no slow hash.
func hashOf(digits string) []byte {
	sum := sha256.Sum256([]byte(digits))
	return sum[:]
}

// digitsOf reads the form that is presented: either prefix, 40 hex digits.
func digitsOf(presented string) (string, bool) {
	digits, ok := strings.CutPrefix(presented, prefix)
	if !ok {
		digits, ok = strings.CutPrefix(presented, e2bPrefix)
	}
	if !ok || len(digits) != 2*secretBytes || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", false
	}
	return digits, true
}
