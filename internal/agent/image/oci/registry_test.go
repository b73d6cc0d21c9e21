package oci

import (
	"context"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/kernel/errs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve is a registry with an image, and something in front of it.
func serve(t *testing.T, before func(w http.ResponseWriter, r *http.Request) bool) (reference string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !before(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	img, err := random.Image(1<<20, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(srv.URL, "http://") + "/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	own := &http.Transport{}
	defer own.CloseIdleConnections()
	if err := remote.Write(ref, img, remote.WithTransport(own)); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

// machine is where the tests' registries are.
func machine() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

func arch(t *testing.T) string { t.Helper(); return "" } // random images name none

// A registry that sends a part and then nothing is given up, and so is one whose
// caller gives up.
func TestP2_ARegistryThatStallsIsGivenUp(t *testing.T) {
	release := make(chan struct{})
	var stalling atomic.Bool
	ref := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !stalling.Load() || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, 1000))
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	})
	defer close(release)
	img, done, err := Registries{Inside: machine(), stall: 200 * time.Millisecond}.Pull(t.Context(), ref, Login{}, arch(t))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	stalling.Store(true)
	content, err := img.Layers[0].Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, content); !errs.Is(err, "registry_timeout") {
		t.Errorf("a stall: %v", err)
	}
	_ = content.Close()
	ctx, cancel := context.WithCancel(t.Context())
	if content, err = img.Layers[1].Open(ctx); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, content); ctx.Err() == nil || err == nil {
		t.Errorf("given up: %v", err)
	}
	_ = content.Close()
}

func TestP2_CredentialsGoToTheirRegistryAlone(t *testing.T) {
	var elsewhere, asked atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "" {
			elsewhere.Add(1)
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer other.Close()
	var armed atomic.Bool
	ref := serve(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !armed.Load() {
			return false
		}
		if user, password, _ := r.BasicAuth(); user != "u" || password != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			// The same machine by another name.
			http.Redirect(w, r, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	armed.Store(true)
	if _, _, err := (Registries{Inside: machine()}).Pull(t.Context(), ref, Login{}, ""); !errs.Is(err, "registry_unauthorized") {
		t.Errorf("nobody: %v", err)
	}
	_, _, err := Registries{Inside: machine()}.Pull(t.Context(), ref, Login{"u", "p"}, "")
	if !errs.Is(err, "image_not_found") || asked.Load() == 0 || elsewhere.Load() != 0 {
		t.Errorf("%v; asked %d times, %d of them with credentials", err, asked.Load(), elsewhere.Load())
	}
	if strings.Contains(err.Error(), `"p"`) {
		t.Errorf("the error tells the password: %v", err)
	}
}

// A proxy may be on this machine, where a registry that others name may not. One of
// the environment finds out by itself where names lead, and is not used.
func TestP2_NW08_AProxyIsUsedThatIsMeant(t *testing.T) {
	var asked atomic.Value
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"} {
		t.Setenv(name, proxy.URL)
	}
	_, _, err = Registries{}.Pull(t.Context(), "192.168.0.1/a:1", Login{}, "amd64")
	if !errs.Is(err, "registry_denied") || asked.Load() != nil {
		t.Errorf("past the rule: %v; the environment's proxy was asked for %v", err, asked.Load())
	}
	r := Registries{Proxy: at}
	_, _, err = r.Pull(t.Context(), "registry.example/a:1", Login{}, "amd64")
	if !errs.Is(err, "registry_unreachable") || asked.Load() != "CONNECT registry.example:443" {
		t.Errorf("%v; the proxy was asked for %v", err, asked.Load())
	}
}

func TestP2_WhereRegistriesMayBe(t *testing.T) {
	networks := func(s ...string) (out []netip.Prefix) {
		for _, n := range s {
			out = append(out, netip.MustParsePrefix(n))
		}
		return out
	}
	for _, c := range []struct {
		registry, ip string
		inside       []netip.Prefix
		ok           bool
	}{
		{"registry.example", "192.0.2.1", nil, true},
		{"registry.example", "2606:4700::1", nil, true},
		{"registry.example", "64:ff9b::192.0.2.1", nil, true}, // the same without IPv4
		{"registry.example", "10.0.0.1", nil, false},
		{"registry.example", "10.0.0.1", networks("10.0.0.0/24"), true}, // an operator's own
		{"registry.example", "10.0.1.1", networks("10.0.0.0/24"), false},
		{"registry.example", "172.16.0.1", nil, false},
		{"registry.example", "192.168.1.1", nil, false},
		{"registry.example", "100.64.0.1", nil, false},
		{"registry.example", "::ffff:10.0.0.1", nil, false},
		{"registry.example", "64:ff9b::10.0.0.1", nil, false},
		{"registry.example", "64:ff9b::169.254.169.254", nil, false},
		{"registry.example", "64:ff9b:1::1", nil, false},
		{"registry.example", "2002:a00:1::1", nil, false},
		{"registry.example", "2001:0:a00:1::1", nil, false},
		{"registry.example", "fd00:ec2::254", nil, false},
		{"registry.example", "::10.0.0.1", nil, false},
		{"registry.example", "127.0.0.1", machine(), false}, // a name that leads here
		{"registry.example", "::1", machine(), false},
		{"registry.example", "::ffff:127.0.0.1", machine(), false},
		{"registry.example", "169.254.169.254", networks("0.0.0.0/0"), false},
		{"registry.example", "fe80::1%eth0", networks("::/0"), false},
		{"registry.example", "0.0.0.0", networks("0.0.0.0/0"), false},
		{"registry.example", "255.255.255.255", nil, false},
		{"registry.example", "203.0.113.9", nil, false}, // denied
		{"registry.example", "203.0.113.9", networks("203.0.113.0/24"), false},
		{"localhost:5000", "127.0.0.1", nil, false},
		{"127.0.0.1:5000", "127.0.0.1", nil, false},
		{"[::1]:5000", "::1", nil, false},
		{"localhost:5000", "127.0.0.1", machine(), true},
		{"127.0.0.1:5000", "127.0.0.1", machine(), true},
		{"[::1]:5000", "::1", machine(), true},
		{"localhost:5000", "169.254.169.254", machine(), false},
	} {
		reg, err := name.NewRegistry(c.registry)
		if err != nil {
			t.Fatal(err)
		}
		cl := Registries{Denied: networks("203.0.113.0/24"), Inside: c.inside}.client(reg)
		if err := cl.allowed(netip.MustParseAddr(c.ip)); (err == nil) != c.ok {
			t.Errorf("%s at %s: %v", c.registry, c.ip, err)
		}
	}
}

// Whatever a reference or a registry names, nobody who is not on the public
// internet is connected to.
func TestNW08_PullsAreNoDoorToTheInside(t *testing.T) {
	var asked atomic.Int32
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1) }))
	defer inside.Close()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(inside.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"} {
		if _, _, err := (Registries{}).Pull(t.Context(), host+":"+port+"/a:1", Login{}, "amd64"); err == nil {
			t.Errorf("%s: pulled", host)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
}

// Sizes that add up to nothing are no way around the bound.
func TestP2_LayersHaveSizesThatLayersHave(t *testing.T) {
	config := []byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`)
	for _, size := range []int64{-1, 1 << 62, math.MaxInt64} {
		descs := []v1.Descriptor{{MediaType: types.OCILayer, Size: size, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}}}
		_, err := assemble(config, "", descs, func(int) func(context.Context) (io.ReadCloser, error) { return nil })
		if !errs.Is(err, "image_unknown") {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// What cannot be given to a program is refused when the image is read; lines in a
// value can.
func TestP2_TS06_WhatAnImageSaysIsText(t *testing.T) {
	for said, reason := range map[string]string{
		`"Env":["A=two\nlines"],"Cmd":["a\nb"]`: "",
		`"Env":["A=b\u0000C=d"]`:                "invalid_image",
		`"User":"u\u0000"`:                      "invalid_image",
		`"WorkingDir":"/\u0000"`:                "invalid_image",
		`"Entrypoint":["a","\u0000"]`:           "invalid_image",
	} {
		raw := `{"os":"linux","architecture":"amd64","config":{` + said + `},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("a", 64) + `"]}}`
		img, err := assemble([]byte(raw), "amd64", make([]v1.Descriptor, 1), func(int) func(context.Context) (io.ReadCloser, error) { return nil })
		if reason == "" && (err != nil || img.Variables()["A"] != "two\nlines") || reason != "" && !errs.Is(err, reason) {
			t.Errorf("%s: %+v, %v", said, img, err)
		}
	}
}
