package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"strconv"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// Build is a job that makes a template.
type Build = restapi.Build

// BuildContext is an uploaded archive.
type BuildContext struct {
	ID        string    `json:"id"`
	SizeBytes int64     `json:"size_bytes"`
	Digest    string    `json:"digest"` // SHA-256 of what was sent, hex
	ExpiresAt time.Time `json:"expires_at"`
}

// BuildTemplate says what a template is made of. Zero values are the base's. At
// most one of FromTemplate, FromImage, FromTarball and a FROM in the recipe is
// given; without any it goes on from base.
type BuildTemplate struct {
	Name         string
	FromTemplate string
	FromImage    string // as docker.io/library/debian:12
	FromTarball  string // id of an uploaded archive
	Username     string // of the registry; empty for none
	Password     string
	Recipe       string
	Context      string // id of an uploaded archive
	VCPUs        float64
	MemoryMB     int
	DiskMB       int
	NoCache      bool
}

// CreateTemplate queues a build and returns at once.
func (c *Client) CreateTemplate(ctx context.Context, o BuildTemplate) (*Build, error) {
	r := &restapi.CreateTemplateRequest{
		Name: o.Name, FromTemplate: optString(o.FromTemplate), FromImage: optString(o.FromImage), FromTarball: optString(o.FromTarball),
		Recipe: optString(o.Recipe), ContextID: optString(o.Context),
	}
	if o.Username != "" {
		r.Registry.SetTo(restapi.RegistryLogin{Username: o.Username, Password: o.Password})
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
	if o.NoCache {
		r.NoCache.SetTo(true)
	}
	return create(ctx, c, func(key restapi.OptString) (*Build, error) {
		return c.api.CreateTemplate(ctx, r, restapi.CreateTemplateParams{IdempotencyKey: key})
	})
}

// DeleteTemplate gives a template up, by name or id; what was made from it lives
// on.
func (c *Client) DeleteTemplate(ctx context.Context, id string) error {
	return c.explain(c.api.DeleteTemplate(ctx, restapi.DeleteTemplateParams{ID: id}))
}

// UploadBuildContext sends a tar archive of any size up to the server's limit, as
// it is or packed by gzip or zstd.
func (c *Client) UploadBuildContext(ctx context.Context, archive io.Reader) (*BuildContext, error) {
	answer, err := c.request(ctx, "POST", "/v1/build-contexts", nil, archive)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var made BuildContext
	if err := json.NewDecoder(answer.Body).Decode(&made); err != nil {
		return nil, fmt.Errorf("the answer to the upload: %w", err)
	}
	return &made, nil
}

// Build returns one build.
func (c *Client) Build(ctx context.Context, id string) (*Build, error) {
	b, err := c.api.GetBuild(ctx, restapi.GetBuildParams{ID: id})
	return b, c.explain(err)
}

// Builds walks the team's builds, newest first; of one name when it is not
// empty.
func (c *Client) Builds(ctx context.Context, name string) iter.Seq2[Build, error] {
	return walk(c, func(cursor restapi.OptString) ([]Build, restapi.OptString, error) {
		l, err := c.api.ListBuilds(ctx, restapi.ListBuildsParams{Cursor: cursor, Name: optString(name)})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// CancelBuild ends a build; one that has ended stays as it is.
func (c *Client) CancelBuild(ctx context.Context, id string) (*Build, error) {
	b, err := c.api.CancelBuild(ctx, restapi.CancelBuildParams{ID: id})
	return b, c.explain(err)
}

// BuildLine is a line of a build's log.
type BuildLine struct {
	Seq    int       `json:"seq"`
	Step   int       `json:"step"`
	At     time.Time `json:"at"`
	Stream string    `json:"stream"` // stdout, stderr, or system for the build itself
	Line   string    `json:"line"`
}

// BuildLogs tells each line after the one with that number. With follow it goes
// on until the build has ended, whatever connections break meanwhile, and returns
// it as it is then; without, the build is nil.
func (c *Client) BuildLogs(ctx context.Context, id string, after int, follow bool, each func(BuildLine)) (*Build, error) {
	pause := firstPause
	for try := 1; ; try++ {
		from := after
		b, err := c.buildLogs(ctx, id, &after, follow, each)
		var unreachable *UnreachableError
		if err == nil || !follow || ctx.Err() != nil || !errors.As(err, &unreachable) {
			return b, err
		}
		if after > from {
			try, pause = 1, firstPause
		}
		if try == attempts {
			return nil, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			pause *= 2
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

func (c *Client) buildLogs(ctx context.Context, id string, after *int, follow bool, each func(BuildLine)) (*Build, error) {
	query := url.Values{"after": {strconv.Itoa(*after)}}
	if follow {
		query.Set("follow", "1")
	}
	answer, err := c.request(ctx, "GET", "/v1/builds/"+url.PathEscape(id)+"/logs", query, nil)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	lines := json.NewDecoder(answer.Body)
	for {
		var line struct {
			BuildLine
			Build *Build `json:"build"`
			wireError
		}
		if err := lines.Decode(&line); errors.Is(err, io.EOF) && !follow {
			return nil, nil
		} else if err != nil {
			return nil, &UnreachableError{URL: c.URL(), cause: err}
		}
		switch {
		case line.Error.Code != "":
			return nil, line.typed(answer.StatusCode)
		case line.Build != nil:
			return line.Build, nil
		case line.Seq > 0:
			each(line.BuildLine)
			*after = line.Seq
		}
	}
}
