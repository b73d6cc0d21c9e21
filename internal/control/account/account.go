// Package account owns users, their passwords and their sessions. It never
// decides what a user may do to a thing: that is the thing's room.
package account

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/team"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// User is a person with an account.
type User struct {
	ID      id.User `json:"id"`
	Email   string  `json:"email"`
	Name    string  `json:"name"`
	IsAdmin bool    `json:"is_admin"` // of the platform
}

// Auth is the answer to whoever just logged in or signed up.
type Auth struct {
	Token     string     `json:"token"`
	ExpiresAt time.Time  `json:"expires_at"`
	User      User       `json:"user"`
	Team      *team.Team `json:"team"` // the active team, nil without one
	// Refresh is the session's refresh token. It goes into a cookie that no
	// script can read, never into a body.
	Refresh string `json:"refresh"`
}

// Session is one login.
type Session struct {
	ID          id.Session
	User        id.User
	Team        *id.Team
	RefreshHash []byte // of the first refresh token
}

// SessionLifetime is how long a session lives without being refreshed.
const SessionLifetime = 30 * 24 * time.Hour

// SignupRequest is what a new user gives.
type SignupRequest struct {
	Email, Password, Name string
	// Invitation is the token of one that names this address; "" for none.
	Invitation string
}

// Bounds, in characters.
const (
	minPassword, maxPassword = 8, 128
	maxName                  = 100
	minEmail, maxEmail       = 3, 254
)

// normalize trims and checks; the first fault is named.
func (r SignupRequest) normalize() (SignupRequest, error) {
	var err error
	if r.Email, err = NormalizeEmail(r.Email); err != nil {
		return r, err
	}
	if r.Name, err = NormalizeName(r.Name); err != nil {
		return r, err
	}
	return r, CheckPassword(r.Password)
}

// NormalizeName trims and checks a person's name.
func NormalizeName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", errs.Field("name", fmt.Sprintf("name must have 1 to %d printable characters.", maxName))
	}
	return name, nil
}

// NormalizeEmail trims and lower-cases an address and checks its form.
func NormalizeEmail(email string) (string, error) {
	email = strings.ToLower(strings.TrimSpace(email))
	local, domain, ok := strings.Cut(email, "@")
	bad := !ok || local == "" || domain == "" || strings.Contains(domain, "@") || len(email) < minEmail || len(email) > maxEmail ||
		strings.ContainsFunc(email, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == utf8.RuneError })
	if bad {
		return "", errs.Field("email", "email must be an address such as ada@example.com.")
	}
	return email, nil
}

// CheckPassword checks the policy. Length is counted in characters, so that
// every script has the same room; all bytes count when it is hashed.
func CheckPassword(password string) error { return checkPassword("password", password) }

func checkPassword(field, password string) error {
	if n := utf8.RuneCountInString(password); n < minPassword || n > maxPassword {
		return errs.Field(field, fmt.Sprintf("%s must have %d to %d characters.", field, minPassword, maxPassword))
	}
	return nil
}

// SignupPolicy says who may sign up: SKERRY_SIGNUP.
type SignupPolicy struct {
	open    bool
	domains []string
}

// The policies without a list.
var (
	SignupOpen   = SignupPolicy{open: true}
	SignupClosed = SignupPolicy{}
)

// ParseSignupPolicy reads "open", "closed", or mail domains, comma separated.
func ParseSignupPolicy(s string) (SignupPolicy, error) {
	switch strings.TrimSpace(s) {
	case "open":
		return SignupOpen, nil
	case "closed":
		return SignupClosed, nil
	}
	var p SignupPolicy
	for part := range strings.SplitSeq(s, ",") {
		domain := strings.ToLower(strings.TrimPrefix(strings.TrimSpace(part), "@"))
		if !strings.Contains(domain, ".") || strings.ContainsAny(domain, " @/") {
			return SignupPolicy{}, errs.Invalid("invalid_signup", fmt.Sprintf("SKERRY_SIGNUP must be open, closed or a list of mail domains; %q is none of these.", part))
		}
		p.domains = append(p.domains, domain)
	}
	return p, nil
}

// Describe names the policy, "open", "closed" or "domains", and its domains.
func (p SignupPolicy) Describe() (kind string, domains []string) {
	switch {
	case p.open:
		return "open", nil
	case len(p.domains) > 0:
		return "domains", slices.Clone(p.domains)
	default:
		return "closed", nil
	}
}

// ErrSignupClosed is the answer to those the policy leaves out.
var ErrSignupClosed = errs.Forbidden("signup_closed", "Sign-up is closed here. Ask an admin of this Skerry for an account.")

func (p SignupPolicy) allow(email string) error {
	if p.open {
		return nil
	}
	_, domain, _ := strings.Cut(email, "@")
	for _, allowed := range p.domains {
		if domain == allowed {
			return nil
		}
	}
	return ErrSignupClosed
}
