// Package templatehttp is the template room's slice of the REST handler, and
// the build whose log is streamed.
package templatehttp

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/page"
)

// maxLine bounds one line of a build's log, in bytes.
const maxLine = 8 << 10

// quiet is after how long without a line an empty one is sent, so that nothing
// between server and client takes the build for dead.
const quiet = 15 * time.Second

// Handlers serves the routes. Principals come from the request's context.
type Handlers struct {
	templates *template.Service
	builds    *build.Service
	replays   *idempotency.Service
	// writeError answers a request with an error, and failure renders one as the
	// API does.
	writeError func(w http.ResponseWriter, r *http.Request, err error)
	failure    func(ctx context.Context, err error) restapi.Error
}

// Options of the handlers.
type Options struct {
	WriteError func(w http.ResponseWriter, r *http.Request, err error)
	Failure    func(ctx context.Context, err error) restapi.Error
}

// New makes the handlers.
func New(templates *template.Service, builds *build.Service, replays *idempotency.Service, o Options) *Handlers {
	return &Handlers{templates: templates, builds: builds, replays: replays, writeError: o.WriteError, failure: o.Failure}
}

// ListTemplates implements listTemplates.
func (h *Handlers) ListTemplates(ctx context.Context, params restapi.ListTemplatesParams) (*restapi.TemplateList, error) {
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	p, err := page.NewRequest(limit, params.Cursor.Value)
	if err != nil {
		return nil, err
	}
	got, err := h.templates.List(ctx, principal.From(ctx), p)
	if err != nil {
		return nil, err
	}
	out := &restapi.TemplateList{Items: make([]restapi.Template, len(got.Items))}
	if got.NextCursor != "" {
		out.NextCursor.SetTo(got.NextCursor)
	}
	for i, t := range got.Items {
		out.Items[i] = toTemplate(t)
	}
	return out, nil
}

// GetTemplate implements getTemplate.
func (h *Handlers) GetTemplate(ctx context.Context, params restapi.GetTemplateParams) (*restapi.Template, error) {
	t, err := h.templates.Get(ctx, principal.From(ctx), params.ID)
	if err != nil {
		return nil, err
	}
	out := toTemplate(t)
	return &out, nil
}

// BuildBase serves buildBaseTemplate: one JSON object a line as the build runs.
// A client that leaves ends the build.
func (h *Handlers) BuildBase(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &lines{w: w, control: http.NewResponseController(w), last: time.Now()}
	w.Header().Set("Content-Type", "application/x-ndjson")
	var beat sync.WaitGroup
	beat.Go(func() { out.keepAlive(ctx) })
	t, err := h.templates.BuildBase(ctx, principal.From(ctx), func(line string) error {
		if len(line) > maxLine {
			line = line[:maxLine]
		}
		return out.write(map[string]string{"log": line})
	})
	cancel()
	beat.Wait()
	if err != nil {
		failure := h.failure(r.Context(), because(r.Context(), err))
		_ = out.write(&failure) // by address: only then it renders itself; when this fails the client is gone
		return
	}
	made := toTemplate(t)
	_ = out.write(map[string]*restapi.Template{"template": &made})
}

// lines writes newline-delimited JSON.
type lines struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
	last    time.Time
}

func (l *lines) write(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return errs.Internal(err)
	}
	return l.raw(append(raw, '\n'))
}

func (l *lines) raw(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
	// Whoever does not read on holds nobody up. In-memory transports have no
	// deadlines; the connection may serve others afterwards.
	_ = l.control.SetWriteDeadline(l.last.Add(writeWithin))
	if _, err := l.w.Write(b); err != nil {
		return err
	}
	if err := l.control.Flush(); err != nil {
		return err
	}
	_ = l.control.SetWriteDeadline(time.Time{})
	return nil
}

// writeWithin is how long a client may take to read what is sent to it.
const writeWithin = 30 * time.Second

func (l *lines) keepAlive(ctx context.Context) {
	ticker := time.NewTicker(quiet / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l.mu.Lock()
		silent := time.Since(l.last) > quiet
		l.mu.Unlock()
		if silent {
			_ = l.raw([]byte("\n"))
		}
	}
}

func toTemplate(t template.Template) restapi.Template {
	out := restapi.Template{
		ID: t.ID.String(), Name: t.Name, Status: restapi.TemplateStatus(t.Status), Platform: t.Platform(),
		Vcpus: float64(t.CPUMillis) / 1000, MemoryMB: int(t.MemoryMB), DiskMB: int(t.DiskMB), Engine: t.Engine, CreatedAt: t.CreatedAt.UTC(),
	}
	if t.Error != "" {
		out.Error.SetTo(t.Error)
	}
	if t.ImageDigest != "" {
		out.ImageDigest.SetTo(string(t.ImageDigest))
		out.ImageSizeBytes.SetTo(t.ImageSizeBytes)
	}
	if len(t.Env) > 0 {
		out.Env.SetTo(t.Env)
	}
	if t.Start != "" {
		out.Start.SetTo(t.Start)
	}
	if t.Ready != "" {
		out.Ready.SetTo(t.Ready)
	}
	if t.StateID != nil {
		out.StartsFromMemory.SetTo(true)
	}
	if t.BuildID != nil {
		out.BuildID.SetTo(t.BuildID.String())
	}
	return out
}
