package bench

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/test/instance"
)

// serving starts a sandbox that answers on port 3000 and returns its id, the
// address of that port on this machine, and where it is reached from outside.
func serving(b *testing.B) (direct, outside string) {
	b.Helper()
	program, err := instance.BuildProgram("../e2e/testdata/portapp")
	if err != nil {
		b.Fatal(err)
	}
	box := skerry.Create(b, map[string]any{"timeout_sec": 7200})
	req, err := skerry.Request(b.Context(), http.MethodPut, "/v1/sandboxes/"+box.ID+"/files?path=/tmp/portapp", strings.NewReader(string(program)))
	if err != nil {
		b.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	_ = res.Body.Close()
	said := skerry.Sh(b, box.ID, "chmod +x /tmp/portapp; setsid /tmp/portapp >/dev/null 2>&1 </dev/null & sleep 0.2; hostname -I")
	fields := strings.Fields(said.Stdout)
	if len(fields) == 0 {
		b.Fatalf("the sandbox does not know its address: %+v", said)
	}
	var opened struct {
		Access struct{ URL string }
	}
	skerry.Must(b, "POST", "/v1/sandboxes/"+box.ID+"/ports", map[string]any{"port": 3000, "public": true}, &opened)
	return "http://" + net.JoinHostPort(fields[0], "3000") + "/", opened.Access.URL
}

// caller keeps its connections, as browsers do, and finds names below localhost.
func caller(b *testing.B) *http.Client {
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if host, _, _ := net.SplitHostPort(address); strings.HasSuffix(host, ".localhost") {
			address = skerry.Sandboxes
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	b.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func fetch(b *testing.B, client *http.Client, url string) time.Duration {
	b.Helper()
	start := time.Now()
	res, err := client.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		b.Fatal(res.Status, err)
	}
	return time.Since(start)
}

// BenchmarkPortRequest is a small request to an application in a sandbox through
// the edge, beside the same straight to the sandbox's address.
func BenchmarkPortRequest(b *testing.B) {
	direct, outside := serving(b)
	client := caller(b)
	compareIn(b, 1000,
		func() time.Duration { return fetch(b, client, outside) },
		func() time.Duration { return fetch(b, client, direct) })
}

// BenchmarkPortDownload is 256 MB from an application in a sandbox, likewise.
func BenchmarkPortDownload(b *testing.B) {
	direct, outside := serving(b)
	client := caller(b)
	const path = "source?n=268435456"
	compareIn(b, 5,
		func() time.Duration { return fetch(b, client, outside+path) },
		func() time.Duration { return fetch(b, client, direct+path) })
}
