// Package sandboxiohttp is sandboxio over HTTP: its slice of the REST handler,
// the WebSockets of commands and terminals, and file transfers.
package sandboxiohttp

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// closeWait is how long clients may take over a closing handshake of ours.
const closeWait = 2 * time.Second

// Options of the Handlers. All but WriteError have a default.
type Options struct {
	// WriteError renders an error as the API does. Required.
	WriteError func(w http.ResponseWriter, r *http.Request, err error)
	// AllowedOrigins may open WebSockets besides the server's own, each as
	// "https://host[:port]".
	AllowedOrigins []string
	// MaxStreams bounds the WebSockets open at one time; 0 is 10,000.
	MaxStreams int
	Log        *slog.Logger

	// PingEvery is how often an idle WebSocket shows that it is alive; 0 is 20 s.
	// A client that does not answer for two of them has left.
	PingEvery time.Duration
	// FirstMessage is how long a client may take to say what it wants; 0 is 10 s.
	FirstMessage time.Duration
}

// Handlers serves the routes. Principals come from the request's context.
type Handlers struct {
	io      *sandboxio.Service
	opt     Options
	closing context.Context // ends when the streams are to end
	close   context.CancelFunc
	closed  context.Context // ends when they no longer may take their time
	abort   context.CancelFunc

	spare *semaphore.Weighted // input that waits, of all streams

	mu      sync.Mutex
	full    bool // closed for good
	open    int
	streams sync.WaitGroup
}

// New makes the handlers. Close ends the streams among them.
func New(io *sandboxio.Service, opt Options) *Handlers {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.MaxStreams <= 0 {
		opt.MaxStreams = 10_000
	}
	if opt.PingEvery <= 0 {
		opt.PingEvery = 20 * time.Second
	}
	if opt.FirstMessage <= 0 {
		opt.FirstMessage = 10 * time.Second
	}
	h := &Handlers{io: io, opt: opt, spare: semaphore.NewWeighted(allSpare)}
	h.closing, h.close = context.WithCancel(context.Background())
	h.closed, h.abort = context.WithCancel(context.Background())
	return h
}

// Close ends all WebSockets with 1012, which tells clients to attach again, and
// waits for them. Commands go on. An http.Server does not do this: it forgets
// connections that were taken over.
func (h *Handlers) Close() {
	h.mu.Lock()
	h.full = true
	h.mu.Unlock()
	h.close()
	late := time.AfterFunc(closeWait, h.abort)
	defer late.Stop()
	h.streams.Wait()
}

// enter counts a stream in; leave must follow when it returns nil.
func (h *Handlers) enter() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.full:
		return errs.Unavailable("restarting", "This server is restarting. Try again.").After(time.Second)
	case h.open >= h.opt.MaxStreams:
		return errs.Exhausted("too_many_streams", "This server has as many streams open as it may. Close some, or try again later.").After(10 * time.Second)
	}
	h.open++
	h.streams.Add(1)
	return nil
}

func (h *Handlers) leave() {
	h.mu.Lock()
	h.open--
	h.mu.Unlock()
	h.streams.Done()
}

// ExecSandbox implements execSandbox.
func (h *Handlers) ExecSandbox(ctx context.Context, req *restapi.ExecRequest, params restapi.ExecSandboxParams) (*restapi.ExecResult, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	cmd := sandboxio.Command{Cmd: req.Cmd, Args: req.Args, Env: req.Env.Value, Cwd: req.Cwd.Value, User: req.User.Value}
	if s, ok := req.TimeoutSec.Get(); ok {
		if cmd.Timeout, err = sandboxio.Seconds(s); err != nil {
			return nil, err
		}
	}
	res, err := h.io.Exec(ctx, principal.From(ctx), sandbox, sandboxio.ExecRequest{Command: cmd, Stdin: req.Stdin.Value})
	if err != nil {
		return nil, err
	}
	return &restapi.ExecResult{
		Stdout: res.Stdout, Stderr: res.Stderr, Encoding: restapi.ExecResultEncoding(res.Encoding), ExitCode: res.ExitCode,
		DurationMs: float64(res.Duration.Microseconds()) / 1000, Truncated: res.Truncated, TimedOut: res.TimedOut,
	}, nil
}

// ListFiles implements listFiles.
func (h *Handlers) ListFiles(ctx context.Context, params restapi.ListFilesParams) (*restapi.FileEntryList, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	req, err := page.NewRequest(limit, params.Cursor.Value)
	if err != nil {
		return nil, err
	}
	at := sandboxio.Place{Path: params.Path, User: params.User.Value}
	got, err := h.io.ListFiles(ctx, principal.From(ctx), sandbox, at, params.Depth.Or(sandboxio.DefaultDepth), req)
	if err != nil {
		return nil, err
	}
	out := &restapi.FileEntryList{Items: make([]restapi.FileEntry, 0, len(got.Items))}
	for _, e := range got.Items {
		out.Items = append(out.Items, *entry(e))
	}
	if got.NextCursor != "" {
		out.NextCursor = restapi.NewOptString(got.NextCursor)
	}
	return out, nil
}

// StatFile implements statFile.
func (h *Handlers) StatFile(ctx context.Context, params restapi.StatFileParams) (*restapi.FileEntry, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	return answer(h.io.StatFile(ctx, principal.From(ctx), sandbox, sandboxio.Place{Path: params.Path, User: params.User.Value}))
}

// MakeDirectory implements makeDirectory.
func (h *Handlers) MakeDirectory(ctx context.Context, req *restapi.MakeDirectoryRequest, params restapi.MakeDirectoryParams) (*restapi.FileEntry, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	return answer(h.io.MakeDirectory(ctx, principal.From(ctx), sandbox, sandboxio.Place{Path: req.Path, User: req.User.Value}))
}

// MoveFile implements moveFile.
func (h *Handlers) MoveFile(ctx context.Context, req *restapi.MoveFileRequest, params restapi.MoveFileParams) (*restapi.FileEntry, error) {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return nil, err
	}
	from := sandboxio.Place{Path: req.Source, User: req.User.Value}
	return answer(h.io.MoveFile(ctx, principal.From(ctx), sandbox, from, req.Destination))
}

// RemoveFile implements removeFile.
func (h *Handlers) RemoveFile(ctx context.Context, params restapi.RemoveFileParams) error {
	sandbox, err := id.ParseSandbox(params.ID)
	if err != nil {
		return err
	}
	return h.io.RemoveFile(ctx, principal.From(ctx), sandbox, sandboxio.Place{Path: params.Path, User: params.User.Value})
}

func answer(e sandboxio.FileEntry, err error) (*restapi.FileEntry, error) {
	if err != nil {
		return nil, err
	}
	return entry(e), nil
}

func entry(e sandboxio.FileEntry) *restapi.FileEntry {
	out := &restapi.FileEntry{
		Name: e.Name, Path: e.Path, Type: restapi.FileEntryType(e.Type), Size: e.Size, Mode: e.Mode,
		Owner: e.Owner, Group: e.Group, ModifiedAt: e.ModifiedAt,
	}
	if e.SymlinkTarget != nil {
		out.SymlinkTarget = restapi.NewOptString(*e.SymlinkTarget)
	}
	return out
}
