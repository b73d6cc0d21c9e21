package multihost

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/fleet"
)

// papers are what a host proves itself with.
type papers struct {
	JWT         string `json:"host_jwt"`
	Certificate string
	CA          string
	key         []byte
}

func papersOf(t *testing.T, h *fleet.Host) papers {
	t.Helper()
	var p papers
	raw, err := h.Read("agent/identity/credentials.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	if p.key, err = h.Read("agent/identity/host.key"); err != nil {
		t.Fatal(err)
	}
	return p
}

// One host's certificate opens nothing of another's, in neither direction: the
// servers refuse its calls in the other's name, and do not take it for the
// other at the other's address.
func TestHI06_ACertificateIsNobodyElses(t *testing.T) {
	w := open(t)
	a, b := w.Hosts[0], w.Hosts[1]
	one, other := papersOf(t, a), papersOf(t, b)
	pair, err := tls.X509KeyPair([]byte(one.Certificate), one.key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(one.CA))
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	as := func(jwt, path string, body any) int {
		t.Helper()
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), "POST", w.AgentURL()+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+jwt)
		req.Header.Set("Content-Type", "application/json")
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	beat := map[string]any{"generation": 1, "address": "198.18.255.1:1", "version": "x", "load": map[string]any{"sandboxes": 0, "cpu_millis": 0, "memory_bytes": 0, "disk_free_bytes": 0}}
	for name, call := range map[string]struct {
		path string
		body any
	}{
		"heartbeat": {"/v1/hosts/" + b.ID + "/heartbeat", beat},
		"events":    {"/v1/hosts/" + b.ID + "/events", map[string]any{"generation": 1, "events": []any{}}},
		"samples":   {"/v1/hosts/" + b.ID + "/samples", map[string]any{"samples": []any{}}},
	} {
		if status := as(other.JWT, call.path, call.body); status != 401 {
			t.Errorf("%s with another's token under the own certificate: %d, want 401", name, status)
		}
		if status := as(one.JWT, call.path, call.body); status != 401 && status != 403 {
			t.Errorf("%s in another's name: %d, want 401 or 403", name, status)
		}
	}
	testkit.Eventually(t, 2*time.Minute, "HI-06: the audit tells of it", func() bool {
		n, err := w.AuditCount(t.Context(), "certificate_mismatch")
		return err == nil && n > 0
	})

	// Now a says that it is at b's address.
	before := w.on(t, b)
	a.Set("SKERRY_HOST_ADDRESS=" + b.Addr.String() + ":7072")
	defer func() {
		a.Set("SKERRY_HOST_ADDRESS=" + a.Addr.String() + ":7072")
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
		w.revive(t)
	}()
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "a host that names another's address is not in service", func() bool {
		now, err := a.State(t.Context())
		return err == nil && now.Status == "unreachable" && now.Reason != ""
	})
	before.look(t)
	if now, err := b.State(t.Context()); err != nil || now.Status != "online" {
		t.Errorf("the other host is %+v: %v", now, err)
	}
}
