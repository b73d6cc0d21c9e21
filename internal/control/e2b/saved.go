package e2b

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// point is what a sandbox used at a time; sizes are bytes.
type point struct {
	At       time.Time `json:"timestamp"`
	Unix     int64     `json:"timestampUnix"`
	CPUs     int64     `json:"cpuCount"`
	CPUUsed  float64   `json:"cpuUsedPct"`
	MemUsed  int64     `json:"memUsed"`
	MemTotal int64     `json:"memTotal"`
	// MemCache is part of MemUsed where it counts at all.
	MemCache  int64 `json:"memCache"`
	DiskUsed  int64 `json:"diskUsed"`
	DiskTotal int64 `json:"diskTotal"`
}

// metrics are the samples of a span of time, and what is used now if that is in
// it, oldest first.
func (f *Facade) metrics(w http.ResponseWriter, r *http.Request) error {
	now := time.Now()
	start, err := secondOf(r, "start", now.Add(-time.Hour))
	if err != nil {
		return err
	}
	end, err := secondOf(r, "end", now.Add(time.Minute))
	if err != nil {
		return err
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	m, err := f.Sandboxes.Metrics(r.Context(), principal.From(r.Context()), x.ID, start)
	if err != nil {
		return gone(r, err)
	}
	if m.Live != nil {
		m.Samples = append(m.Samples, *m.Live)
	}
	out := make([]point, 0, len(m.Samples))
	for _, s := range m.Samples {
		if s.At.After(end) {
			continue
		}
		out = append(out, point{
			At: s.At.UTC(), Unix: s.At.Unix(), CPUs: wholeCPUs(x.CPUMillis), CPUUsed: float64(s.CPUMillis) * 100 / float64(max(x.CPUMillis, 1)),
			MemUsed: s.MemoryBytes, MemTotal: x.MemoryMB << 20, DiskUsed: s.DiskBytes, DiskTotal: x.DiskMB << 20,
		})
	}
	return answered(w, http.StatusOK, out)
}

// secondOf reads a time in seconds from the query.
func secondOf(r *http.Request, name string, otherwise time.Time) (time.Time, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxUnix {
		return otherwise, errs.Field(name, name+" must be a time in seconds since 1970.")
	}
	return time.Unix(n, 0), nil
}

// maxUnix is the end of the year 9999.
const maxUnix = 253402300799

// saved is a snapshot.
type saved struct {
	ID    string   `json:"snapshotID"`
	Names []string `json:"names"`
}

func savedOf(s sandbox.Snapshot) saved { return saved{ID: s.ID.String(), Names: []string{s.Name}} }

// snapshot saves a sandbox, which runs on. One without a name gets its own.
func (f *Facade) snapshot(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Name string `json:"name"`
	}
	if err := read(r, &body); err != nil {
		return err
	}
	ctx, by := r.Context(), principal.From(r.Context())
	x, err := named(r)
	if err != nil {
		return err
	}
	name := body.Name
	if name == "" {
		name = "snapshot-" + strings.TrimPrefix(id.NewSnapshot().String(), "snap-")
	}
	receipt, err := f.Sandboxes.Snapshot(ctx, by, sandbox.SnapshotRequest{Sandbox: x, Name: name, Memory: true})
	if err != nil {
		return gone(r, err)
	}
	made, err := f.Sandboxes.AwaitSnapshot(ctx, receipt)
	if err != nil {
		return gone(r, err)
	}
	return answered(w, http.StatusCreated, savedOf(made))
}

// listSnapshots pages through the team's snapshots. A filter thins the pages
// out; it does not make them fewer.
func (f *Facade) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	p, err := pageOf(q)
	if err != nil {
		return err
	}
	got, err := f.Sandboxes.ListSnapshots(r.Context(), principal.From(r.Context()), sandbox.StateFilter{Kind: sandbox.StateSnapshot}, p)
	if err != nil {
		return err
	}
	from, known := edge.ParseName(q.Get("sandboxID"))
	items := []saved{}
	for _, s := range got.Items {
		switch {
		case s.Status != sandbox.StateReady:
		case q.Get("sandboxID") != "" && (!known || s.SandboxID != from):
		case q.Get("name") != "" && s.Name != q.Get("name"):
		default:
			items = append(items, savedOf(s))
		}
	}
	if got.NextCursor != "" {
		w.Header().Set(headerNext, got.NextCursor)
	}
	return answered(w, http.StatusOK, items)
}

// deletes says which operation it is to delete what the protocol calls a
// template, which may be a snapshot.
func deletes(r *http.Request) string {
	if _, snapshot := source(r.PathValue("id")); snapshot != "" {
		return "deleteSnapshot"
	}
	return "deleteTemplate"
}

// deleteTemplate gives up a template or a snapshot.
func (f *Facade) deleteTemplate(w http.ResponseWriter, r *http.Request) error {
	ctx, by := r.Context(), principal.From(r.Context())
	name, snapshot := source(r.PathValue("id"))
	var err error
	if snapshot != "" {
		err = f.deleteSnapshot(ctx, by, snapshot)
	} else {
		err = f.Templates.Delete(ctx, by, name)
	}
	if err != nil {
		return err
	}
	return done(w)
}

// deleteSnapshot gives up a snapshot. One that is going already is none.
func (f *Facade) deleteSnapshot(ctx context.Context, by principal.Principal, name string) error {
	s, err := f.Sandboxes.GetSnapshot(ctx, by, name)
	if errs.CodeOf(err) == errs.CodeInvalid { // what is no id is none's
		return sandbox.ErrStateNotFound
	}
	if err != nil {
		return err
	}
	if s.Status == sandbox.StateDeleting || s.Status == sandbox.StateDeleted {
		return sandbox.ErrStateNotFound
	}
	return f.Sandboxes.DeleteSnapshot(ctx, by, s.ID.String())
}

// made is a template.
type made struct {
	ID         string    `json:"templateID"`
	BuildID    string    `json:"buildID"`
	CPUCount   int64     `json:"cpuCount"`
	MemoryMB   int64     `json:"memoryMB"`
	DiskMB     int64     `json:"diskSizeMB"`
	Public     bool      `json:"public"`
	Aliases    []string  `json:"aliases"`
	Names      []string  `json:"names"`
	CreatedAt  time.Time `json:"createdAt"`
	UpdatedAt  time.Time `json:"updatedAt"`
	CreatedBy  *struct{} `json:"createdBy"`
	LastUsedAt *string   `json:"lastSpawnedAt"`
	Used       int64     `json:"spawnCount"`
	Built      int64     `json:"buildCount"`
	Version    string    `json:"envdVersion"`
	Status     string    `json:"buildStatus"`
}

// madeOf shows a template. A row is never changed, so that it was made once; who
// used it is not counted.
func madeOf(t template.Template) made {
	out := made{
		ID: t.ID.String(), CPUCount: wholeCPUs(t.CPUMillis), MemoryMB: t.MemoryMB, DiskMB: t.DiskMB, Public: t.Platform(),
		Aliases: []string{t.Name}, Names: []string{t.Name}, CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.CreatedAt.UTC(), Built: 1,
		Version: guestapi.ProtocolVersion, Status: t.Status,
	}
	if t.BuildID != nil {
		out.BuildID = t.BuildID.String()
	}
	return out
}

// listTemplates pages through the team's templates and the platform's.
func (f *Facade) listTemplates(w http.ResponseWriter, r *http.Request) error {
	p, err := pageOf(r.URL.Query())
	if err != nil {
		return err
	}
	got, err := f.Templates.List(r.Context(), principal.From(r.Context()), p)
	if err != nil {
		return err
	}
	items := make([]made, len(got.Items))
	for i, t := range got.Items {
		items[i] = madeOf(t)
	}
	if got.NextCursor != "" {
		w.Header().Set(headerNext, got.NextCursor)
	}
	return answered(w, http.StatusOK, items)
}

// alias tells whether a name is one of the team's or the platform's templates.
func (f *Facade) alias(w http.ResponseWriter, r *http.Request) error {
	t, err := f.Templates.Get(r.Context(), principal.From(r.Context()), r.PathValue("alias"))
	if err != nil {
		return err
	}
	return answered(w, http.StatusOK, struct {
		ID     string `json:"templateID"`
		Public bool   `json:"public"`
	}{t.ID.String(), t.Platform()})
}
