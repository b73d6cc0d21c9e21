package guestlink

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"syscall"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// inward opens a port that only the sandbox's own loopback has, through the
// daemon. refused is what a plain connection met, and what is returned when
// nothing listens there either.
func (l *Link) inward(ctx context.Context, port int, refused error) (net.Conn, error) {
	if port == l.opts.Port || !errors.Is(refused, syscall.ECONNREFUSED) {
		return nil, refused
	}
	c, err := l.open(ctx, l.opts.Port)
	if err != nil {
		return nil, refused
	}
	reader, err := l.tunnel(ctx, c, port)
	if err != nil {
		_ = c.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, refused
	}
	return &loopback{conn: c, reader: reader}, nil
}

// tunnel asks the daemon for the bytes of a port; ctx bounds the answer.
func (l *Link) tunnel(ctx context.Context, c *conn, port int) (*bufio.Reader, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://guest"+guestapi.PathTunnel+"?port="+strconv.Itoa(port), nil)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	req.Header.Set(guestapi.HeaderInit, l.secret)
	l.mu.Unlock()
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", guestapi.TunnelProtocol)
	if err := req.Write(c); err != nil {
		return nil, err
	}
	// What a hostile daemon may say before the bytes begin.
	reader := bufio.NewReaderSize(c, 4<<10)
	res, err := http.ReadResponse(bufio.NewReader(&capped{reader: reader, left: maxAnswer}), req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.New("guestlink: " + res.Status)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return reader, nil
}

// capped hands out a byte at a time, so that nothing behind the answer is read
// with it, and not many.
type capped struct {
	reader *bufio.Reader
	left   int
}

// Read implements io.Reader.
func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("guestlink: the answer has no end")
	}
	if len(p) == 0 {
		return 0, nil
	}
	b, err := c.reader.ReadByte()
	if err != nil {
		return 0, err
	}
	c.left--
	p[0] = b
	return 1, nil
}

// loopback is a connection through the daemon.
type loopback struct {
	*conn
	reader *bufio.Reader
}

// Read implements net.Conn; what came with the daemon's answer comes first.
func (c *loopback) Read(p []byte) (int, error) {
	if c.reader.Buffered() > 0 {
		return c.reader.Read(p)
	}
	return c.conn.Read(p)
}
