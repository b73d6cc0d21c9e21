package app

import (
	"strings"
	"testing"
)

// What sandboxes serve and the dashboard are different sites, or the server does
// not start.
func TestS11_SandboxesAreAnotherSiteThanTheDashboard(t *testing.T) {
	for name, c := range map[string]struct {
		api, sandboxes string
		fault          string
	}{
		"as it comes":            {"http://127.0.0.1:7070", "http://localhost:7075", ""},
		"by the machine's name":  {"http://localhost:7070", "http://localhost:7075", ""},
		"another site":           {"https://skerry.example.com", "https://example-sandboxes.net", ""},
		"a domain of its own":    {"https://skerry.example.com", "https://sbx.example.co.uk", ""},
		"the same host":          {"https://skerry.example.com", "https://skerry.example.com:8443", "another site"},
		"below it":               {"https://skerry.example.com", "https://sbx.skerry.example.com", "another site"},
		"above it":               {"https://skerry.example.com", "https://example.com", "another site"},
		"beside it":              {"https://skerry.example.com", "https://sbx.example.com", "another site"},
		"beside it, in capitals": {"https://SKERRY.example.com", "https://sbx.EXAMPLE.com.", "another site"},
		"in a local network":     {"https://skerry.lan", "https://sbx.lan", ""},
		"beside it there":        {"https://skerry.office.lan", "https://sbx.office.lan", "another site"},
		"an address":             {"http://127.0.0.1:7070", "http://127.0.0.1:7075", "must name a domain"},
		"an address of six":      {"http://127.0.0.1:7070", "http://[::1]:7075", "must name a domain"},
		"no URL":                 {"http://127.0.0.1:7070", "localhost:7075", "http://domain"},
		"with a path":            {"http://127.0.0.1:7070", "http://localhost/x", "http://domain"},
	} {
		err := Config{URL: c.api, SandboxURL: c.sandboxes}.Defaults("/data").Validate() // the rest is missing
		_, fault, found := strings.Cut(err.Error(), "SKERRY_SANDBOX_URL: ")
		if found != (c.fault != "") || !strings.Contains(fault, c.fault) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestS11_WherePortsAreWhenNobodySays(t *testing.T) {
	for listen, want := range map[string]string{
		"": "http://localhost:7075", "127.0.0.1:9": "http://localhost:9", "[::1]:9": "http://localhost:9", "192.0.2.1:9": "http://localhost:9", "sbx.example.net:9": "http://sbx.example.net:9",
	} {
		if got := (Config{SandboxListen: listen}).Defaults("/data").SandboxURL; got != want {
			t.Errorf("%q: %s, want %s", listen, got, want)
		}
	}
	if got := (Config{SandboxListen: "sbx.example.net:443", SandboxTLSCert: "x"}).Defaults("/data").SandboxURL; got != "https://sbx.example.net:443" {
		t.Error(got)
	}
}
