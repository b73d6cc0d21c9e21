package templatehttp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// CreateTemplate implements createTemplate.
func (h *Handlers) CreateTemplate(ctx context.Context, req *restapi.CreateTemplateRequest, _ restapi.CreateTemplateParams) (*restapi.Build, error) {
	receipt, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (build.Receipt, error) {
		return h.builds.Create(ctx, principal.From(ctx), buildRequest(req))
	})
	if err != nil {
		return nil, err
	}
	b, err := h.builds.Lookup(ctx, receipt)
	if err != nil {
		return nil, err
	}
	out := toBuild(b)
	return &out, nil
}

func buildRequest(req *restapi.CreateTemplateRequest) build.Request {
	out := build.Request{
		Name: req.Name, FromTemplate: req.FromTemplate.Value, FromImage: req.FromImage.Value, FromTarball: req.FromTarball.Value,
		Recipe: req.Recipe.Value, Context: req.ContextID.Value, NoCache: req.NoCache.Value, MemoryMB: wide(req.MemoryMB), DiskMB: wide(req.DiskMB),
	}
	if v, ok := req.Vcpus.Get(); ok {
		out.VCPUs = &v
	}
	if l, ok := req.Registry.Get(); ok {
		out.Login = &build.Login{Username: l.Username, Password: l.Password}
	}
	return out
}

func wide(v restapi.OptInt) *int64 {
	n, ok := v.Get()
	if !ok {
		return nil
	}
	w := int64(n)
	return &w
}

// DeleteTemplate implements deleteTemplate.
func (h *Handlers) DeleteTemplate(ctx context.Context, params restapi.DeleteTemplateParams) error {
	return h.templates.Delete(ctx, principal.From(ctx), params.ID)
}

// ListBuilds implements listBuilds.
func (h *Handlers) ListBuilds(ctx context.Context, params restapi.ListBuildsParams) (*restapi.BuildList, error) {
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	p, err := page.NewRequest(limit, params.Cursor.Value)
	if err != nil {
		return nil, err
	}
	got, err := h.builds.List(ctx, principal.From(ctx), params.Name.Value, p)
	if err != nil {
		return nil, err
	}
	out := &restapi.BuildList{Items: make([]restapi.Build, len(got.Items))}
	if got.NextCursor != "" {
		out.NextCursor.SetTo(got.NextCursor)
	}
	for i, b := range got.Items {
		out.Items[i] = toBuild(b)
	}
	return out, nil
}

// GetBuild implements getBuild.
func (h *Handlers) GetBuild(ctx context.Context, params restapi.GetBuildParams) (*restapi.Build, error) {
	buildID, err := id.ParseBuild(params.ID)
	if err != nil {
		return nil, err
	}
	b, err := h.builds.Get(ctx, principal.From(ctx), buildID)
	if err != nil {
		return nil, err
	}
	out := toBuild(b)
	return &out, nil
}

// CancelBuild implements cancelBuild.
func (h *Handlers) CancelBuild(ctx context.Context, params restapi.CancelBuildParams) (*restapi.Build, error) {
	buildID, err := id.ParseBuild(params.ID)
	if err != nil {
		return nil, err
	}
	b, err := h.builds.Cancel(ctx, principal.From(ctx), buildID)
	if err != nil {
		return nil, err
	}
	out := toBuild(b)
	return &out, nil
}

// uploaded is an archive on the wire.
type uploaded struct {
	ID        string    `json:"id"`
	SizeBytes int64     `json:"size_bytes"`
	Digest    string    `json:"digest"`
	ExpiresAt time.Time `json:"expires_at"`
}

// UploadContext serves uploadBuildContext: the body is the archive.
func (h *Handlers) UploadContext(w http.ResponseWriter, r *http.Request) {
	body := &timedUpload{body: r.Body, control: http.NewResponseController(w), ends: time.Now().Add(uploadWithin)}
	c, err := h.builds.Upload(r.Context(), principal.From(r.Context()), body)
	if err != nil {
		h.writeError(w, r, err)
		return
	}
	raw, err := json.Marshal(uploaded{c.ID.String(), c.SizeBytes, c.Digest, c.ExpiresAt.UTC()})
	if err != nil {
		h.writeError(w, r, errs.Internal(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(raw) // who sent it may be gone
}

// Bounds of the time an upload takes: it holds one of the places there are.
const (
	uploadWithin = time.Hour
	uploadStall  = 30 * time.Second
)

// timedUpload is a body that has to go on coming.
type timedUpload struct {
	body    io.Reader
	control *http.ResponseController
	ends    time.Time
}

func (u *timedUpload) Read(p []byte) (int, error) {
	until := time.Now().Add(uploadStall)
	if u.ends.Before(until) {
		until = u.ends
	}
	_ = u.control.SetReadDeadline(until) // in-memory transports have none
	n, err := u.body.Read(p)
	if err == io.EOF {
		_ = u.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// logLine is a line of a log on the wire.
type logLine struct {
	Seq    int       `json:"seq"`
	Step   int       `json:"step"`
	At     time.Time `json:"at"`
	Stream string    `json:"stream"`
	Line   string    `json:"line"`
}

// BuildLogs serves getBuildLogs: one JSON object a line, and with follow the
// build itself as the last one.
func (h *Handlers) BuildLogs(w http.ResponseWriter, r *http.Request) {
	buildID, err := id.ParseBuild(r.PathValue("id"))
	if err != nil {
		h.writeError(w, r, err)
		return
	}
	after := 0
	if s := r.URL.Query().Get("after"); s != "" {
		if after, err = strconv.Atoi(s); err != nil || after < 0 || after > 1<<30 {
			h.writeError(w, r, errs.Field("after", "after must be the seq of a line."))
			return
		}
	}
	follow := r.URL.Query().Get("follow")
	if follow != "" && follow != "0" && follow != "1" {
		h.writeError(w, r, errs.Field("follow", "follow must be 0 or 1."))
		return
	}
	by := principal.From(r.Context())
	if _, err := h.builds.Get(r.Context(), by, buildID); err != nil {
		h.writeError(w, r, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := &lines{w: w, control: http.NewResponseController(w), last: time.Now()}
	w.Header().Set("Content-Type", "application/x-ndjson")
	var beat sync.WaitGroup
	beat.Go(func() { out.keepAlive(ctx) })
	b, err := h.builds.Logs(ctx, by, buildID, after, follow == "1", func(got []build.Line) error {
		for _, l := range got {
			if err := out.write(logLine{l.Seq, l.Step, l.At.UTC(), l.Stream, l.Text}); err != nil {
				return err
			}
		}
		return nil
	})
	cancel()
	beat.Wait()
	switch {
	case err != nil:
		failure := h.failure(r.Context(), because(r.Context(), err))
		_ = out.write(&failure) // when this fails the client is gone
	case follow == "1":
		made := toBuild(b)
		_ = out.write(map[string]*restapi.Build{"build": &made})
	default:
		_ = out.raw(nil) // the header, at least
	}
}

// because is why a stream was ended, where that was ours: access that was taken
// away, or a server that stops.
func because(ctx context.Context, err error) error {
	var why *errs.Error
	if errors.As(context.Cause(ctx), &why) {
		return why
	}
	return err
}

func toBuild(b build.Build) restapi.Build {
	out := restapi.Build{
		ID: b.ID.String(), Name: b.Name, Status: restapi.BuildStatus(b.Status), Step: b.Step, Steps: b.Steps, CreatedBy: b.CreatedByName, CreatedAt: b.CreatedAt.UTC(),
	}
	if b.Reason != "" {
		out.Reason.SetTo(b.Reason)
	}
	if b.Error != "" {
		out.Error.SetTo(b.Error)
	}
	if b.TemplateID != nil {
		out.TemplateID.SetTo(b.TemplateID.String())
	}
	if b.Spec.Recipe != "" {
		out.Recipe.SetTo(b.Spec.Recipe)
	}
	if b.StartedAt != nil {
		out.StartedAt.SetTo(b.StartedAt.UTC())
	}
	if b.FinishedAt != nil {
		out.FinishedAt.SetTo(b.FinishedAt.UTC())
	}
	return out
}
