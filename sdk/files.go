package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/url"

	"skerry.dev/skerry/gen/restapi"
)

// Paths inside a sandbox are absolute, or relative to the user's home.

func filesPath(id string) string { return "/v1/sandboxes/" + url.PathEscape(id) + "/files" }

// Download opens a file for reading. Size is −1 when the server does not say.
// The caller closes the reader.
func (c *Client) Download(ctx context.Context, id, path string) (body io.ReadCloser, size int64, err error) {
	answer, err := c.request(ctx, "GET", filesPath(id), url.Values{"path": {path}}, nil)
	if err != nil {
		return nil, 0, err
	}
	return answer.Body, answer.ContentLength, nil
}

// Upload writes a file of any size; it appears whole or not at all, and its
// directory is made when it is missing.
func (c *Client) Upload(ctx context.Context, id, path string, body io.Reader) (*FileEntry, error) {
	answer, err := c.request(ctx, "PUT", filesPath(id), url.Values{"path": {path}}, body)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var entry FileEntry
	if err := json.NewDecoder(answer.Body).Decode(&entry); err != nil {
		return nil, fmt.Errorf("the answer to the upload of %s: %w", path, err)
	}
	return &entry, nil
}

// Stat describes one file or directory.
func (c *Client) Stat(ctx context.Context, id, path string) (*FileEntry, error) {
	e, err := c.api.StatFile(ctx, restapi.StatFileParams{ID: id, Path: path})
	return e, c.explain(err)
}

// List walks what is in a directory, in order.
func (c *Client) List(ctx context.Context, id, path string) iter.Seq2[FileEntry, error] {
	return walk(c, func(cursor restapi.OptString) ([]FileEntry, restapi.OptString, error) {
		l, err := c.api.ListFiles(ctx, restapi.ListFilesParams{ID: id, Path: path, Limit: restapi.NewOptInt(200), Cursor: cursor})
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// Mkdir makes a directory and its parents.
func (c *Client) Mkdir(ctx context.Context, id, path string) (*FileEntry, error) {
	e, err := c.api.MakeDirectory(ctx, &restapi.MakeDirectoryRequest{Path: path}, restapi.MakeDirectoryParams{ID: id})
	return e, c.explain(err)
}

// Move renames a file or directory.
func (c *Client) Move(ctx context.Context, id, from, to string) (*FileEntry, error) {
	e, err := c.api.MoveFile(ctx, &restapi.MoveFileRequest{Source: from, Destination: to}, restapi.MoveFileParams{ID: id})
	return e, c.explain(err)
}

// Remove removes a file or a whole directory. Repeating it is harmless.
func (c *Client) Remove(ctx context.Context, id, path string) error {
	return c.explain(c.api.RemoveFile(ctx, restapi.RemoveFileParams{ID: id, Path: path}))
}
