package sandboxio_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"testing"

	"connectrpc.com/connect"

	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiotest"
)

// BenchmarkExec compares a command through the service with the same Start made
// at the guest directly, in one run; the difference is what the service costs.
func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	b.Run("direct", func(b *testing.B) {
		client := processconnect.NewProcessClient(&http.Client{Transport: direct{w.link}}, "http://guest", connect.WithAcceptCompression("gzip", nil, nil))
		for b.Loop() {
			no := false
			s, err := client.Start(context.Background(), &pb.StartRequest{Process: &pb.ProcessConfig{Cmd: "/bin/true"}, Stdin: &no})
			if err != nil {
				b.Fatal(err)
			}
			for s.Receive() {
			}
			if err := s.Err(); err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
	b.Run("service", func(b *testing.B) {
		for b.Loop() {
			w.exec(b, sandboxio.ExecRequest{Command: sandboxio.Command{Cmd: "/bin/true", Args: []string{}}})
		}
	})
}

// direct is a guest's client of its own.
type direct struct{ way http.RoundTripper }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-Access-Token", sandboxiotest.Token)
	r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("user:")))
	return d.way.RoundTrip(r)
}
