package edge

import (
	"math/big"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/kernel/id"
)

// Headers by which a client names a sandbox and a port whatever the host is.
const (
	HeaderSandbox = "E2b-Sandbox-Id"
	HeaderPort    = "E2b-Sandbox-Port"
)

// Target is where a request leads.
type Target struct {
	Sandbox id.Sandbox
	Port    int
	// Name is the sandbox's id in the form that was asked with.
	Name string
	// ByHost: the host says so, and no header. Only then is the origin the port's
	// own, and a cookie of it believed.
	ByHost bool
}

// target finds where a request leads. Headers come before the host; one of the
// two alone is nothing.
func target(origin port.Origin, r *http.Request) (Target, *refusal) {
	names, ports := r.Header.Values(HeaderSandbox), r.Header.Values(HeaderPort)
	if len(names) == 0 && len(ports) == 0 {
		t, ok := ParseHost(origin.Domain, r.Host)
		if !ok {
			return Target{}, errNowhere
		}
		return t, nil
	}
	if len(names) != 1 || len(ports) != 1 {
		return Target{}, errHalfRouted
	}
	sandbox, ok := ParseName(names[0])
	number, valid := parsePort(ports[0])
	if !ok || !valid {
		return Target{}, errHalfRouted
	}
	return Target{Sandbox: sandbox, Port: number, Name: names[0]}, nil
}

// ParseHost reads {port}-{sandbox}.{domain}, with any port behind it.
func ParseHost(domain, host string) (Target, bool) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		if strings.Trim(host[i+1:], "0123456789") != "" {
			return Target{}, false
		}
		host = host[:i]
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	label, ok := strings.CutSuffix(host, "."+domain)
	if !ok || strings.Contains(label, ".") {
		return Target{}, false
	}
	digits, name, ok := strings.Cut(label, "-")
	if !ok {
		return Target{}, false
	}
	number, ok := parsePort(digits)
	if !ok {
		return Target{}, false
	}
	sandbox, ok := ParseName(name)
	return Target{Sandbox: sandbox, Port: number, Name: name, ByHost: true}, ok
}

func parsePort(s string) (int, bool) {
	if len(s) < 1 || len(s) > 5 || s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= 65535
}

// A short name is `i` and the id in base 36, of a fixed length. It is for
// clients that allow no dash in an id.
const (
	shortPrefix = "i"
	shortDigits = 25 // 36^25 > 2^128
)

// ShortName is a sandbox's id without dashes.
func ShortName(x id.Sandbox) string {
	u := x.UUID()
	s := new(big.Int).SetBytes(u[:]).Text(36)
	return shortPrefix + strings.Repeat("0", shortDigits-len(s)) + s
}

// ParseName reads a sandbox's id in its wire form or as ShortName, which may
// have a tail that clients of old put behind it.
func ParseName(s string) (id.Sandbox, bool) {
	if x, err := id.ParseSandbox(s); err == nil {
		return x, true
	}
	s, _, _ = strings.Cut(s, "-")
	if len(s) != len(shortPrefix)+shortDigits || s[:1] != shortPrefix || strings.Trim(s[1:], "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return id.Sandbox{}, false
	}
	n, ok := new(big.Int).SetString(s[1:], 36)
	if !ok || n.BitLen() > 128 {
		return id.Sandbox{}, false
	}
	var u uuid.UUID
	n.FillBytes(u[:])
	return id.Sandbox{}.FromUUID(u), true
}
