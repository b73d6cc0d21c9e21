package guestlink

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/guest/guestapi"
)

// Run runs a program inside, without arguments, as the default user, and returns
// at its end. Its result, which only the guest knows, is not asked for; nor is
// it a failure when there is no such program.
func (l *Link) Run(ctx context.Context, path string) error {
	stdin := false
	stream, err := processconnect.NewProcessClient(caller{l}, "http://guest", connect.WithReadMaxBytes(maxAnswer)).Start(ctx, &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: path}, Stdin: &stdin,
	})
	if err != nil {
		return fmt.Errorf("guestlink: %w", err)
	}
	defer stream.Close()
	for stream.Receive() {
		if stream.Msg().GetEvent().GetEnd() != nil {
			return nil
		}
	}
	err = stream.Err()
	var said *connect.Error
	if errors.As(err, &said) && connect.IsWireError(err) && said.Code() != connect.CodeUnavailable && said.Code() != connect.CodeUnauthenticated {
		return nil // it was tried
	}
	if err == nil {
		err = errors.New("no end was told")
	}
	return fmt.Errorf("guestlink: run %s: %w", path, err)
}

// caller is the link's client for what the daemon's other callers may do.
type caller struct{ l *Link }

// Do implements connect.HTTPClient.
func (c caller) Do(r *http.Request) (*http.Response, error) {
	c.l.mu.Lock()
	token := c.l.opts.AccessToken
	c.l.mu.Unlock()
	if token != "" {
		r.Header.Set(guestapi.HeaderAccessToken, token)
	}
	return c.l.http.Do(r)
}
