package sdk

import (
	"context"
	"fmt"
	"iter"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// What the API says of saved states and of what a sandbox uses.
type (
	Snapshot       = restapi.Snapshot
	SandboxMetrics = restapi.SandboxMetrics
	SandboxSample  = restapi.SandboxSample
	SandboxLogs    = restapi.SandboxLogs
)

// PauseOptions say what is kept; the zero value keeps everything.
type PauseOptions struct {
	DiskOnly bool // processes end, and a resume boots
	NoWait   bool // return once it is accepted
}

// PauseSandbox saves a sandbox and ends its use of CPU and memory. When it fails
// the sandbox goes on running.
func (c *Client) PauseSandbox(ctx context.Context, id string, o PauseOptions) (*Sandbox, error) {
	params := restapi.PauseSandboxParams{ID: id}
	if o.NoWait {
		params.Wait.SetTo(restapi.PauseSandboxWait0)
	}
	answer, err := c.api.PauseSandbox(ctx, restapi.NewOptPauseSandboxRequest(restapi.PauseSandboxRequest{Memory: restapi.NewOptBool(!o.DiskOnly)}), params)
	if err != nil {
		return nil, c.explain(err)
	}
	switch s := answer.(type) {
	case *restapi.PauseSandboxOK:
		return (*Sandbox)(s), nil
	case *restapi.PauseSandboxAccepted:
		return (*Sandbox)(s), nil
	}
	return nil, unexpected(answer)
}

// ResumeOptions say how a sandbox goes on; the zero value lets it go on where it
// was, with the timeout it was created with.
type ResumeOptions struct {
	Timeout  time.Duration
	DiskOnly bool // boot from its disk alone
	NoWait   bool
}

// ResumeSandbox lets a paused sandbox go on.
func (c *Client) ResumeSandbox(ctx context.Context, id string, o ResumeOptions) (*Sandbox, error) {
	params := restapi.ResumeSandboxParams{ID: id}
	if o.NoWait {
		params.Wait.SetTo(restapi.ResumeSandboxWait0)
	}
	req := restapi.ResumeSandboxRequest{Memory: restapi.NewOptBool(!o.DiskOnly)}
	if o.Timeout != 0 {
		req.TimeoutSec.SetTo(int(o.Timeout / time.Second))
	}
	answer, err := c.api.ResumeSandbox(ctx, restapi.NewOptResumeSandboxRequest(req), params)
	if err != nil {
		return nil, c.explain(err)
	}
	switch s := answer.(type) {
	case *restapi.ResumeSandboxOK:
		return (*Sandbox)(s), nil
	case *restapi.ResumeSandboxAccepted:
		return (*Sandbox)(s), nil
	}
	return nil, unexpected(answer)
}

// RecoverSandbox gives up what the host of a missing sandbox still has of it, or
// brings back one that ended by itself: it is paused as it was saved last.
func (c *Client) RecoverSandbox(ctx context.Context, id string) (*Sandbox, error) {
	s, err := c.api.RecoverSandbox(ctx, restapi.RecoverSandboxParams{ID: id})
	return s, c.explain(err)
}

// ForkSandbox makes copies of a running or paused sandbox, all or none. A zero
// timeout and nil metadata are the parent's.
func (c *Client) ForkSandbox(ctx context.Context, id string, count int, timeout time.Duration, metadata map[string]string) ([]Sandbox, error) {
	req := &restapi.ForkSandboxRequest{Count: restapi.NewOptInt(count)}
	if timeout != 0 {
		req.TimeoutSec.SetTo(int(timeout / time.Second))
	}
	if metadata != nil {
		req.Metadata.SetTo(metadata)
	}
	answer, err := create(ctx, c, func(key restapi.OptString) (restapi.ForkSandboxRes, error) {
		return c.api.ForkSandbox(ctx, req, restapi.ForkSandboxParams{ID: id, IdempotencyKey: key})
	})
	if err != nil {
		return nil, err
	}
	made, ok := answer.(*restapi.ForkSandboxCreated)
	if !ok {
		return nil, unexpected(answer)
	}
	return made.Items, nil
}

// SetSandboxTimeout moves a sandbox's deadline to timeout from now.
func (c *Client) SetSandboxTimeout(ctx context.Context, id string, timeout time.Duration) (*Sandbox, error) {
	s, err := c.api.SetSandboxTimeout(ctx, &restapi.TimeoutRequest{TimeoutSec: int(timeout / time.Second)}, restapi.SetSandboxTimeoutParams{ID: id})
	return s, c.explain(err)
}

// PingSandbox counts as activity, so that a sandbox is not idle.
func (c *Client) PingSandbox(ctx context.Context, id string) error {
	return c.explain(c.api.PingSandbox(ctx, restapi.PingSandboxParams{ID: id}))
}

// SandboxMetrics returns what a sandbox uses now and used since a time; the zero
// time is an hour ago.
func (c *Client) SandboxMetrics(ctx context.Context, id string, since time.Time) (*SandboxMetrics, error) {
	params := restapi.GetSandboxMetricsParams{ID: id}
	if !since.IsZero() {
		params.Since.SetTo(since)
	}
	m, err := c.api.GetSandboxMetrics(ctx, params)
	return m, c.explain(err)
}

// SandboxLogs returns what a sandbox's console said last.
func (c *Client) SandboxLogs(ctx context.Context, id string) (*SandboxLogs, error) {
	l, err := c.api.GetSandboxLogs(ctx, restapi.GetSandboxLogsParams{ID: id})
	return l, c.explain(err)
}

// CreateSnapshot says what is saved, and under which name.
type CreateSnapshot struct {
	Sandbox   string
	Name      string
	DiskOnly  bool
	Overwrite bool // replace one of this name once the new one is complete
}

// CreateSnapshot saves a sandbox, which goes on running.
func (c *Client) CreateSnapshot(ctx context.Context, o CreateSnapshot) (*Snapshot, error) {
	req := &restapi.CreateSnapshotRequest{
		SandboxID: o.Sandbox, Name: o.Name, Memory: restapi.NewOptBool(!o.DiskOnly), Overwrite: restapi.NewOptBool(o.Overwrite),
	}
	answer, err := create(ctx, c, func(key restapi.OptString) (restapi.CreateSnapshotRes, error) {
		return c.api.CreateSnapshot(ctx, req, restapi.CreateSnapshotParams{IdempotencyKey: key})
	})
	if err != nil {
		return nil, err
	}
	made, ok := answer.(*restapi.CreateSnapshotCreated)
	if !ok {
		return nil, unexpected(answer)
	}
	return (*Snapshot)(made), nil
}

// Snapshots walks the team's saved states of a type, newest first: snapshot (or
// empty), pause, checkpoint, fork, all.
func (c *Client) Snapshots(ctx context.Context, kind string) iter.Seq2[Snapshot, error] {
	return walk(c, func(cursor restapi.OptString) ([]Snapshot, restapi.OptString, error) {
		params := restapi.ListSnapshotsParams{Cursor: cursor}
		if kind != "" {
			params.Type.SetTo(restapi.ListSnapshotsType(kind))
		}
		l, err := c.api.ListSnapshots(ctx, params)
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// Snapshot returns a saved state by name or id.
func (c *Client) Snapshot(ctx context.Context, nameOrID string) (*Snapshot, error) {
	s, err := c.api.GetSnapshot(ctx, restapi.GetSnapshotParams{Name: nameOrID})
	return s, c.explain(err)
}

// DeleteSnapshot deletes a snapshot by name or id; sandboxes made from it live
// on.
func (c *Client) DeleteSnapshot(ctx context.Context, nameOrID string) error {
	return c.explain(c.api.DeleteSnapshot(ctx, restapi.DeleteSnapshotParams{Name: nameOrID}))
}

func unexpected(answer any) error { return fmt.Errorf("unknown answer %T", answer) }
