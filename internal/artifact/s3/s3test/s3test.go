// Package s3test runs a real S3 server for tests.
package s3test

import (
	"bytes"
	"crypto/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact/s3"
	"skerry.dev/skerry/internal/testkit"
)

// Bucket is there from the start.
const Bucket = "artifacts"

// Serve runs a server on a directory of its own until the test ends. Without one
// on this machine the test needs "s3".
func Serve(t testing.TB) s3.Config {
	t.Helper()
	program := testkit.S3Gateway(t)
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	// The port is free now; another process may take it first, and then the server
	// ends at once.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := s3.Config{
		Endpoint: "http://" + address, Region: "us-east-1", Bucket: Bucket, Prefix: "some/where", PathStyle: true,
		AccessKey: rand.Text(), SecretKey: rand.Text(),
	}
	var said bytes.Buffer // read once the server has ended
	cmd := exec.Command(program, "--port", address, "--region", cfg.Region, "--quiet", "posix", root)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+cfg.AccessKey, "ROOT_SECRET_KEY="+cfg.SecretKey)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() && said.Len() > 0 {
			t.Logf("the S3 server said: %s", said.String())
		}
	})
	testkit.Eventually(t, 10*time.Second, "the S3 server", func() bool {
		select {
		case <-ended:
			t.Fatalf("the S3 server ended: %s", said.String())
		default:
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, cfg.Endpoint, nil)
		if err != nil {
			return false
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil
	})
	return cfg
}
