package sdk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ogen-go/ogen/ogenerrors"

	"skerry.dev/skerry/gen/restapi"
)

// What the API's answers look like; field by field as in its OpenAPI document.
type (
	Sandbox       = restapi.Sandbox
	SandboxEvent  = restapi.SandboxEvent
	ExecResult    = restapi.ExecResult
	FileEntry     = restapi.FileEntry
	Template      = restapi.Template
	APIKey        = restapi.APIKey
	CreatedAPIKey = restapi.CreatedAPIKey
	Host          = restapi.Host
	CreatedHost   = restapi.CreatedHost
	HostRequest   = restapi.CreateHostRequest
	HostChange    = restapi.UpdateHostRequest
	HostLoss      = restapi.HostLoss
	Me            = restapi.Me
)

// Client talks to one Skerry. It is safe for concurrent use.
type Client struct {
	base   *url.URL
	http   *http.Client
	api    *restapi.Client
	apiKey string
	token  string
	tokens func(context.Context) (string, error)
	agent  string
}

// Option changes how a Client talks.
type Option func(*Client)

// WithAPIKey sends a team's API key, which acts on sandboxes and templates.
func WithAPIKey(key string) Option { return func(c *Client) { c.apiKey = key } }

// WithToken sends a session's token, which people get from Login and which also
// acts on keys and hosts. It wins over an API key.
func WithToken(token string) Option { return func(c *Client) { c.token = token } }

// WithTokenSource asks for the session's token before each call, for programs
// that outlive one. It is called from several goroutines, and wins over the
// other two.
func WithTokenSource(source func(context.Context) (string, error)) Option {
	return func(c *Client) { c.tokens = source }
}

// WithHTTPClient replaces the HTTP client. It must not have a Timeout, for a
// stream lives as long as its sandbox.
func WithHTTPClient(h *http.Client) Option { return func(c *Client) { c.http = h } }

// WithUserAgent names the program in the server's log.
func WithUserAgent(name string) Option { return func(c *Client) { c.agent = name } }

// New returns a client of the Skerry at base, such as "http://127.0.0.1:7070".
func New(base string, options ...Option) (*Client, error) {
	u, err := url.Parse(strings.TrimRight(base, "/"))
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q is not the URL of a server: it looks like https://skerry.example.com", base)
	}
	c := &Client{base: u, agent: "skerry-sdk-go"}
	for _, o := range options {
		o(c)
	}
	if c.http == nil {
		c.http = &http.Client{Transport: transport()}
	}
	c.api, err = restapi.NewClient(u.String(), source{c}, restapi.WithClient(doer{c}))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// URL is the server's address.
func (c *Client) URL() string { return c.base.String() }

func transport() *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
		// Uploads ask before they send gigabytes to somebody who refuses.
		ExpectContinueTimeout: time.Second,
	}
}

// authorize puts the client's proof of identity on a request.
func (c *Client) authorize(ctx context.Context, h http.Header) error {
	h.Set("User-Agent", c.agent)
	token := c.token
	if c.tokens != nil {
		var err error
		if token, err = c.tokens(ctx); err != nil {
			return &sourceError{err}
		}
	}
	switch {
	case token != "":
		h.Set("Authorization", "Bearer "+token)
	case c.apiKey != "":
		h.Set("X-API-Key", c.apiKey)
	}
	return nil
}

// doer sends the generated client's requests with our headers.
type doer struct{ c *Client }

func (d doer) Do(r *http.Request) (*http.Response, error) {
	if err := d.c.authorize(r.Context(), r.Header); err != nil {
		return nil, err
	}
	v, ok := r.Context().Value(visitKey{}).(*visit)
	if !ok {
		return d.c.http.Do(r)
	}
	v.leave(r)
	answer, err := d.c.http.Do(r)
	if err == nil {
		v.take(answer)
	}
	return answer, err
}

// source answers the generated client, which picks a scheme per operation. The
// headers themselves are set by doer, so that a call whose scheme the client
// cannot serve gets the server's own words.
type source struct{ c *Client }

func (s source) ApiKey(context.Context, restapi.OperationName) (restapi.ApiKey, error) { //nolint:revive // the generated interface's name
	return restapi.ApiKey{APIKey: s.c.apiKey}, nil
}

func (s source) Bearer(context.Context, restapi.OperationName) (restapi.Bearer, error) {
	return restapi.Bearer{Token: s.c.token}, nil
}

func (source) HostToken(context.Context, restapi.OperationName) (restapi.HostToken, error) {
	return restapi.HostToken{}, ogenerrors.ErrSkipClientSecurity
}

// request makes a call that the generated client does not know.
func (c *Client) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if err := c.authorize(ctx, r.Header); err != nil {
		return nil, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/octet-stream")
		r.Header.Set("Expect", "100-continue")
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, c.explain(err)
	}
	if answer.StatusCode >= 300 {
		defer answer.Body.Close()
		return nil, readError(answer)
	}
	return answer, nil
}

const (
	attempts   = 4
	firstPause = 200 * time.Millisecond
)

// create makes something under one idempotency key, so that a call whose answer
// was lost can be sent again without making two.
func create[T any](ctx context.Context, c *Client, call func(key restapi.OptString) (T, error)) (T, error) {
	key := restapi.NewOptString(rand.Text())
	pause := firstPause
	for try := 1; ; try++ {
		v, err := call(key)
		err = c.explain(err)
		var unreachable *UnreachableError
		if err == nil || try == attempts || !errors.As(err, &unreachable) {
			return v, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause *= 2
		case <-ctx.Done():
			timer.Stop()
			return v, err
		}
	}
}
