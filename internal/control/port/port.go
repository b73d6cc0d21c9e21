// Package port owns who may reach a port inside a sandbox from outside. A port
// is closed until somebody opens it, for everybody or for who shows a token;
// each opening has an end of its own and can be taken back by itself. Only
// hashes of tokens are kept. It carries no bytes: that is the edge's.
package port

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Access is one opening of a port, without its token.
type Access struct {
	ID        id.PortAccess `json:"id"`
	TeamID    id.Team       `json:"team_id"`
	SandboxID id.Sandbox    `json:"sandbox_id"`
	Port      int           `json:"port"`
	Public    bool          `json:"public"` // for everybody
	Name      string        `json:"name"`
	CreatedBy string        `json:"created_by"`
	CreatedAt time.Time     `json:"created_at"`
	ExpiresAt *time.Time    `json:"expires_at,omitempty"`
}

// Opened is a new Access with its token, which is shown this once; a public one
// has none.
type Opened struct {
	Access Access `json:"access"`
	Token  string `json:"token,omitempty"`
}

// OpenRequest is what is asked for.
type OpenRequest struct {
	Port   int
	Public bool
	Name   string
	// ExpiresInSec nil is for as long as the sandbox exists.
	ExpiresInSec *int64
}

// Control is the port of the guest's own daemon. It is nobody's to open.
const Control = guestapi.DefaultPort

const (
	tokenPrefix = "skp_"
	tokenBytes  = 20
	maxName     = 100
	maxExpires  = 365 * 86400
	// MaxPerSandbox bounds how many accesses one sandbox has at a time.
	MaxPerSandbox = 100
)

func (r OpenRequest) normalize() (OpenRequest, error) {
	if r.Port < 1 || r.Port > 65535 {
		return r, errs.Field("port", "port must be between 1 and 65535.")
	}
	if r.Port == Control {
		return r, errs.Field("port", fmt.Sprintf("%d is the port of the sandbox's own daemon; choose another.", Control))
	}
	r.Name = strings.TrimSpace(r.Name)
	if utf8.RuneCountInString(r.Name) > maxName || !utf8.ValidString(r.Name) || strings.ContainsFunc(r.Name, unicode.IsControl) {
		return r, errs.Field("name", fmt.Sprintf("name may have up to %d printable characters.", maxName))
	}
	if r.ExpiresInSec != nil && (*r.ExpiresInSec < 1 || *r.ExpiresInSec > maxExpires) {
		return r, errs.Field("expires_in_sec", fmt.Sprintf("expires_in_sec must be between 1 and %d.", maxExpires))
	}
	return r, nil
}

func newToken() string {
	var b [tokenBytes]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return tokenPrefix + hex.EncodeToString(b[:])
}

// hashOf is what is stored of a token: 160 random bits need no slow hash. Nil
// for what is none, without asking anybody.
func hashOf(token string) []byte {
	digits, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok || len(digits) != 2*tokenBytes || strings.Trim(digits, "0123456789abcdef") != "" {
		return nil
	}
	sum := sha256.Sum256([]byte(digits))
	return sum[:]
}

// Origin is where sandboxes are reached: a scheme, a domain and perhaps a port.
// Each port of each sandbox has a host of its own below the domain.
type Origin struct {
	Scheme string // http or https
	Domain string // in lower case, without a port
	Port   string // empty is the scheme's
}

// ParseOrigin reads http://localhost:7075 or https://sandboxes.example.net.
func ParseOrigin(s string) (Origin, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" || u.Scheme != "http" && u.Scheme != "https" {
		return Origin{}, fmt.Errorf("must be http://domain[:port] or https://domain[:port], not %q", s)
	}
	o := Origin{Scheme: u.Scheme, Domain: strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), Port: u.Port()}
	if o.Domain == "" || net.ParseIP(o.Domain) != nil {
		return Origin{}, fmt.Errorf("must name a domain, below which every port has a name of its own, not the address %q", u.Hostname())
	}
	return o, nil
}

// Host is the host, with its port, of a port of a sandbox.
func (o Origin) Host(sandbox id.Sandbox, port int) string {
	host := strconv.Itoa(port) + "-" + sandbox.String() + "." + o.Domain
	if o.Port != "" {
		host += ":" + o.Port
	}
	return host
}

// URL is where a port of a sandbox is reached.
func (o Origin) URL(sandbox id.Sandbox, port int) string {
	return o.Scheme + "://" + o.Host(sandbox, port) + "/"
}
