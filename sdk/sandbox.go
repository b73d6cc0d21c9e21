package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// CreateSandbox says what a sandbox is made of. Zero values are the template's
// or the server's defaults.
type CreateSandbox struct {
	Template    string // name or id; "base" comes with Skerry
	Snapshot    string // instead of a template: name or id of a saved state
	VCPUs       float64
	MemoryMB    int
	DiskMB      int
	Timeout     time.Duration // until its deadline, whole seconds; default 5 minutes
	OnTimeout   string        // "pause" or "kill"; default pause
	IdleTimeout time.Duration
	AutoResume  bool          // traffic to its open ports resumes it
	PausedTTL   time.Duration // how long it is kept once it is paused; default 30 days
	Checkpoint  time.Duration // save its state so often while it runs; zero: never
	Metadata    map[string]string
	Env         map[string]string
	Engine      string            // "auto", "gvisor", "microvm"
	HostLabels  map[string]string // only on a host that carries all of them
	NoInternet  bool              // no way out at all
}

func (o CreateSandbox) request() *restapi.CreateSandboxRequest {
	r := &restapi.CreateSandboxRequest{}
	if o.Template != "" {
		r.Template.SetTo(o.Template)
	}
	if o.Snapshot != "" {
		r.Snapshot.SetTo(o.Snapshot)
	}
	if o.Checkpoint != 0 {
		r.CheckpointIntervalSec.SetTo(int(o.Checkpoint / time.Second))
	}
	if o.VCPUs != 0 {
		r.Vcpus.SetTo(o.VCPUs)
	}
	if o.MemoryMB != 0 {
		r.MemoryMB.SetTo(o.MemoryMB)
	}
	if o.DiskMB != 0 {
		r.DiskMB.SetTo(o.DiskMB)
	}
	if o.Timeout != 0 {
		r.TimeoutSec.SetTo(int(o.Timeout / time.Second))
	}
	if o.OnTimeout != "" {
		r.OnTimeout.SetTo(restapi.CreateSandboxRequestOnTimeout(o.OnTimeout))
	}
	if o.IdleTimeout != 0 {
		r.IdleTimeoutSec.SetTo(int(o.IdleTimeout / time.Second))
	}
	if o.PausedTTL != 0 {
		r.PausedTTLSec.SetTo(int(o.PausedTTL / time.Second))
	}
	if o.AutoResume {
		r.AutoResume.SetTo(true)
	}
	if len(o.Metadata) > 0 {
		r.Metadata.SetTo(o.Metadata)
	}
	if len(o.Env) > 0 {
		r.Env.SetTo(o.Env)
	}
	if o.Engine != "" {
		r.Engine.SetTo(restapi.CreateSandboxRequestEngine(o.Engine))
	}
	if len(o.HostLabels) > 0 {
		r.HostLabels.SetTo(o.HostLabels)
	}
	if o.NoInternet {
		r.Network.SetTo(restapi.NetworkRequest{Internet: restapi.NewOptBool(false)})
	}
	return r
}

// CreateSandbox starts a sandbox and returns when it runs and answers. A call
// whose answer is lost on the way is repeated and makes no second one.
func (c *Client) CreateSandbox(ctx context.Context, o CreateSandbox) (*Sandbox, error) {
	request := o.request()
	answer, err := create(ctx, c, func(key restapi.OptString) (restapi.CreateSandboxRes, error) {
		return c.api.CreateSandbox(ctx, request, restapi.CreateSandboxParams{IdempotencyKey: key})
	})
	if err != nil {
		return nil, err
	}
	switch a := answer.(type) {
	case *restapi.Sandbox:
		return a, nil
	case *restapi.AcceptedSandbox:
		return &a.Sandbox, nil
	}
	return nil, fmt.Errorf("unknown answer %T to a create", answer)
}

// Sandbox returns one sandbox; ended ones stay readable for 30 days.
func (c *Client) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	s, err := c.api.GetSandbox(ctx, restapi.GetSandboxParams{ID: id})
	return s, c.explain(err)
}

// SandboxFilter chooses sandboxes. Its zero value is all that have not ended.
type SandboxFilter struct {
	Status   []string
	Template string
	Metadata map[string]string // all must match
}

// Sandboxes walks the team's sandboxes, newest first.
func (c *Client) Sandboxes(ctx context.Context, f SandboxFilter) iter.Seq2[Sandbox, error] {
	params := restapi.ListSandboxesParams{Status: optString(strings.Join(f.Status, ",")), Template: optString(f.Template)}
	for k, v := range f.Metadata {
		params.Metadata = append(params.Metadata, k+"="+v)
	}
	return walk(c, func(cursor restapi.OptString) ([]Sandbox, restapi.OptString, error) {
		params.Cursor = cursor
		l, err := c.api.ListSandboxes(ctx, params)
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// DeleteSandbox ends a sandbox, whatever it is doing. Repeating it is harmless.
func (c *Client) DeleteSandbox(ctx context.Context, id string) error {
	return c.explain(c.api.DeleteSandbox(ctx, restapi.DeleteSandboxParams{ID: id}))
}

// SandboxEvents walks what happened to a sandbox, newest first.
func (c *Client) SandboxEvents(ctx context.Context, id string) iter.Seq2[SandboxEvent, error] {
	return walk(c, func(cursor restapi.OptString) ([]SandboxEvent, restapi.OptString, error) {
		l, err := c.api.ListSandboxEvents(ctx, restapi.ListSandboxEventsParams{ID: id, Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// Exec runs a command and waits for it. Each of its outputs is cut after 1 MiB
// (Truncated says so); Start has no such bound.
func (c *Client) Exec(ctx context.Context, id string, cmd Command) (*ExecResult, error) {
	r := &restapi.ExecRequest{Cmd: cmd.Cmd, Args: cmd.Args, Cwd: optString(cmd.Dir), User: optString(cmd.User)}
	if len(cmd.Env) > 0 {
		r.Env.SetTo(cmd.Env)
	}
	if cmd.Timeout != 0 {
		r.TimeoutSec.SetTo(cmd.Timeout.Seconds())
	}
	if cmd.Stdin != nil {
		raw, err := io.ReadAll(cmd.Stdin)
		if err != nil {
			return nil, err
		}
		r.Stdin.SetTo(string(raw))
	}
	a, err := c.api.ExecSandbox(ctx, r, restapi.ExecSandboxParams{ID: id})
	return a, c.explain(err)
}

// Template returns a template by name or id.
func (c *Client) Template(ctx context.Context, id string) (*Template, error) {
	t, err := c.api.GetTemplate(ctx, restapi.GetTemplateParams{ID: id})
	return t, c.explain(err)
}

// Templates walks the team's templates and the platform's, newest first.
func (c *Client) Templates(ctx context.Context) iter.Seq2[Template, error] {
	return walk(c, func(cursor restapi.OptString) ([]Template, restapi.OptString, error) {
		l, err := c.api.ListTemplates(ctx, restapi.ListTemplatesParams{Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// BuildBase builds the platform's base template on a host and tells log what
// happens, a line at a time. It needs a platform admin's token.
func (c *Client) BuildBase(ctx context.Context, log func(line string)) (*Template, error) {
	answer, err := c.request(ctx, "POST", "/v1/templates/base/build", nil, nil)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	lines := json.NewDecoder(answer.Body)
	for {
		var line struct {
			Log      *string   `json:"log"`
			Template *Template `json:"template"`
			wireError
		}
		if err := lines.Decode(&line); errors.Is(err, io.EOF) {
			return nil, &UnreachableError{URL: c.URL(), cause: errors.New("the connection ended before the build did")}
		} else if err != nil {
			return nil, &UnreachableError{URL: c.URL(), cause: err}
		}
		switch {
		case line.Error.Code != "":
			return nil, line.typed(answer.StatusCode)
		case line.Template != nil:
			return line.Template, nil
		case line.Log != nil:
			log(*line.Log)
		}
	}
}
