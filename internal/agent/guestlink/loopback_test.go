package guestlink

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// inwardLink is a link to a sandbox in which nothing listens but the daemon,
// which answers what comes on its port by serve.
func inwardLink(t *testing.T, serve func(conn net.Conn, req *http.Request)) *Link {
	t.Helper()
	return newLink(t, Options{InitSecret: "secret", Dial: func(_ context.Context, port int) (net.Conn, error) {
		if port != guestapi.DefaultPort {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		outer, inner := net.Pipe()
		go func() {
			defer inner.Close()
			req, err := http.ReadRequest(bufio.NewReader(inner))
			if err == nil {
				serve(inner, req)
			}
		}()
		return outer, nil
	}})
}

func TestS11_LoopbackIsReachedThroughTheDaemon(t *testing.T) {
	l := inwardLink(t, func(conn net.Conn, req *http.Request) {
		if req.URL.Path != guestapi.PathTunnel || req.URL.Query().Get("port") != "3001" || req.Header.Get(guestapi.HeaderInit) != "secret" || req.Header.Get("Upgrade") != guestapi.TunnelProtocol {
			_, _ = io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+guestapi.TunnelProtocol+"\r\n\r\nand what came with it")
		_, _ = io.Copy(conn, conn)
	})
	conn, err := l.Dial(t.Context(), 3001)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, len("and what came with it"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "and what came with it" {
		t.Errorf("%q, %v", got, err)
	}
	_, _ = conn.Write([]byte("hello"))
	if _, err := io.ReadFull(conn, got[:5]); err != nil || string(got[:5]) != "hello" {
		t.Errorf("%q, %v", got[:5], err)
	}
	l.Close()
	if _, err := conn.Read(got); err == nil {
		t.Error("it outlives the link")
	}
}

// What listens nowhere is refused as such, whatever a daemon answers, and no
// connection of it is left.
func TestS11_WhereNothingListensInsideItIsRefused(t *testing.T) {
	for name, answer := range map[string]string{
		"no":             "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
		"an old one":     "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
		"200":            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"nonsense":       "nonsense\r\n\r\n",
		"nothing":        "",
		"without an end": "HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 200),
	} {
		t.Run(name, func(t *testing.T) {
			l := inwardLink(t, func(conn net.Conn, _ *http.Request) { _, _ = io.WriteString(conn, answer) })
			if _, err := l.Dial(t.Context(), 3001); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v", err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.conns) != 0 {
				t.Errorf("%d connections are left", len(l.conns))
			}
		})
	}
}

func TestS11_ADaemonThatSaysNothingHoldsNobody(t *testing.T) {
	l := inwardLink(t, func(conn net.Conn, _ *http.Request) { _, _ = io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Dial(ctx, 3001); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
