package edge

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/kernel/id"
)

var (
	origin = port.Origin{Scheme: "http", Domain: "localhost", Port: "7075"}
	one    = id.Sandbox{}.FromUUID(uuid.MustParse("01936d5a-0000-7000-8000-000000000001"))
)

func TestS11_WhereARequestLeads(t *testing.T) {
	const wire = "sb-01936d5a-0000-7000-8000-000000000001"
	short := ShortName(one)
	at := func(name string, port int, byHost bool) *Target {
		return &Target{Sandbox: one, Port: port, Name: name, ByHost: byHost}
	}
	for name, c := range map[string]struct {
		host, id, port string
		want           *Target
		refused        *refusal
	}{
		"a host":                      {host: "3000-" + wire + ".localhost:7075", want: at(wire, 3000, true)},
		"another port behind it":      {host: "3000-" + wire + ".localhost:80", want: at(wire, 3000, true)},
		"none":                        {host: "1-" + wire + ".localhost", want: at(wire, 1, true)},
		"in capitals, with a dot":     {host: "65535-" + strings.ToUpper(wire) + ".LOCALHOST.:7075", want: at(wire, 65535, true)},
		"a short name":                {host: "3000-" + short + ".localhost", want: at(short, 3000, true)},
		"and its tail":                {host: "3000-" + short + "-abc123.localhost", want: at(short+"-abc123", 3000, true)},
		"a tail of a long one":        {host: "3000-" + wire + "-abc.localhost", refused: errNowhere},
		"the domain itself":           {host: "localhost:7075", refused: errNowhere},
		"another domain":              {host: "3000-" + wire + ".example.com", refused: errNowhere},
		"one that ends alike":         {host: "3000-" + wire + ".notlocalhost", refused: errNowhere},
		"a label more":                {host: "x.3000-" + wire + ".localhost", refused: errNowhere},
		"port 0":                      {host: "0-" + wire + ".localhost", refused: errNowhere},
		"a port too large":            {host: "65536-" + wire + ".localhost", refused: errNowhere},
		"a port with a zero before":   {host: "03000-" + wire + ".localhost", refused: errNowhere},
		"a port with a sign":          {host: "+300-" + wire + ".localhost", refused: errNowhere},
		"no port":                     {host: wire + ".localhost", refused: errNowhere},
		"no sandbox":                  {host: "3000-.localhost", refused: errNowhere},
		"a word for the port behind":  {host: "3000-" + wire + ".localhost:x", refused: errNowhere},
		"an address":                  {host: "[::1]:7075", refused: errNowhere},
		"nothing":                     {host: "", refused: errNowhere},
		"a short name too large":      {host: "3000-i" + strings.Repeat("z", 25) + ".localhost", refused: errNowhere},
		"headers":                     {host: "x", id: wire, port: "49999", want: at(wire, 49999, false)},
		"headers before the host":     {host: "1-" + wire + ".localhost", id: short, port: "2", want: at(short, 2, false)},
		"one header":                  {host: "1-" + wire + ".localhost", id: wire, refused: errHalfRouted},
		"the other":                   {host: "1-" + wire + ".localhost", port: "1", refused: errHalfRouted},
		"a header that is no sandbox": {host: "1-" + wire + ".localhost", id: "debug_sandbox_id", port: "1", refused: errHalfRouted},
		"a header that is no port":    {host: "1-" + wire + ".localhost", id: wire, port: "1 ", refused: errHalfRouted},
	} {
		t.Run(name, func(t *testing.T) {
			r := &http.Request{Host: c.host, Header: http.Header{}}
			if c.id != "" {
				r.Header.Set(HeaderSandbox, c.id)
			}
			if c.port != "" {
				r.Header.Set(HeaderPort, c.port)
			}
			got, refused := target(origin, r)
			if refused != c.refused {
				t.Fatalf("refused with %v, want %v", refused, c.refused)
			}
			if c.want != nil {
				if d := cmp.Diff(*c.want, got, cmpopts.EquateComparable(id.Sandbox{})); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func TestS11_TwoValuesOfAHeaderAreNone(t *testing.T) {
	r := &http.Request{Header: http.Header{HeaderSandbox: {one.String(), one.String()}, HeaderPort: {"1"}}}
	if _, refused := target(origin, r); refused != errHalfRouted {
		t.Errorf("%v", refused)
	}
}

// Whatever the host is: a target comes back as its own host, or there is none.
func FuzzS11_HostIsExactOrNowhere(f *testing.F) {
	for _, host := range []string{
		"", ".", ":", "-", "localhost", "3000-" + one.String() + ".localhost:7075", "3000-" + ShortName(one) + "-x.localhost",
		"3000-sb-.localhost", "3000-i.localhost", "99999-" + one.String() + ".localhost", strings.Repeat("3", 300) + ".localhost", "1-\xff.localhost", "1-i" + strings.Repeat("z", 25) + ".localhost",
	} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		got, ok := ParseHost("localhost", host)
		if !ok {
			return
		}
		if got.Port < 1 || got.Port > 65535 || !got.ByHost {
			t.Errorf("%q is %+v", host, got)
		}
		again, ok := ParseHost("localhost", origin.Host(got.Sandbox, got.Port))
		if !ok || again.Sandbox != got.Sandbox || again.Port != got.Port {
			t.Errorf("%q is %+v, which is %+v", host, got, again)
		}
		if !strings.HasPrefix(strings.ToLower(host), strconv.Itoa(got.Port)+"-"+got.Name) {
			t.Errorf("%q is %+v", host, got)
		}
		back, ok := ParseName(ShortName(got.Sandbox))
		if !ok || back != got.Sandbox {
			t.Errorf("%s comes back from %s as %s", got.Sandbox, ShortName(got.Sandbox), back)
		}
	})
}
