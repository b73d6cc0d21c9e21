// Package audithttp serves the audit trail's operations.
package audithttp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/go-faster/jx"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Keys are the public keys that check exports; the keyring has them.
type Keys interface {
	AuditKeys(ctx context.Context) ([]keyring.AuditKey, error)
}

// Trail is the trail's slice of restapi.Handler, and the exports beside it.
type Trail struct {
	trail      *audit.Trail
	keys       Keys
	writeError func(w http.ResponseWriter, r *http.Request, err error)
}

// New returns the slice. writeError answers with an error, and only logs when
// the answer has begun.
func New(trail *audit.Trail, keys Keys, writeError func(http.ResponseWriter, *http.Request, error)) *Trail {
	return &Trail{trail: trail, keys: keys, writeError: writeError}
}

// ListAuditLogs implements restapi.Handler.
func (t *Trail) ListAuditLogs(ctx context.Context, params restapi.ListAuditLogsParams) (*restapi.AuditLogList, error) {
	filter, request, err := read(params.ResourceType, params.Action, params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	return list(t.trail.List(ctx, principal.From(ctx), filter, request))
}

// AdminListAuditLogs implements restapi.Handler.
func (t *Trail) AdminListAuditLogs(ctx context.Context, params restapi.AdminListAuditLogsParams) (*restapi.AuditLogList, error) {
	filter, request, err := read(params.ResourceType, params.Action, params.Limit, params.Cursor)
	if err != nil {
		return nil, err
	}
	var of *id.Team
	if text, ok := params.TeamID.Get(); ok {
		team, err := id.ParseTeam(text)
		if err != nil {
			return nil, err
		}
		of = &team
	}
	return list(t.trail.ListAll(ctx, of, filter, request))
}

func read(resourceTypes, actions []string, limit restapi.OptInt, cursor restapi.OptString) (audit.Filter, page.Request, error) {
	filter, err := audit.NewFilter(resourceTypes, actions)
	if err != nil {
		return audit.Filter{}, page.Request{}, err
	}
	var sent *int
	if n, ok := limit.Get(); ok {
		sent = &n
	}
	request, err := page.NewRequest(sent, cursor.Or(""))
	return filter, request, err
}

func list(found page.Page[audit.Record], err error) (*restapi.AuditLogList, error) {
	if err != nil {
		return nil, err
	}
	out := &restapi.AuditLogList{Items: make([]restapi.AuditLog, len(found.Items))}
	for i, r := range found.Items {
		if out.Items[i], err = logOf(r); err != nil {
			return nil, err
		}
	}
	if found.NextCursor != "" {
		out.NextCursor.SetTo(found.NextCursor)
	}
	return out, nil
}

func logOf(r audit.Record) (restapi.AuditLog, error) {
	out := restapi.AuditLog{
		ID: r.ID.String(), Seq: r.Seq, TeamID: r.TeamID.String(),
		Actor:        restapi.AuditActor{Type: restapi.AuditActorType(r.ActorType), ID: r.ActorID, Name: r.ActorName},
		ResourceType: r.ResourceType, ResourceID: r.ResourceID, Action: r.Action,
		Scope: restapi.AuditLogScope(r.Scope), Status: restapi.AuditLogStatus(r.Status),
		RequestID: r.RequestID, CreatedAt: r.At.UTC(), Hash: r.Hash.String(),
	}
	if r.IP.IsValid() {
		out.IP = r.IP.Unmap().String()
	}
	var metadata map[string]json.RawMessage
	if err := json.Unmarshal(r.Metadata, &metadata); err != nil {
		return out, fmt.Errorf("metadata of %s: %w", r.ID, err)
	}
	out.Metadata = make(restapi.AuditLogMetadata, len(metadata))
	for key, value := range metadata {
		out.Metadata[key] = jx.Raw(value)
	}
	return out, nil
}

// ListAuditKeys implements restapi.Handler.
func (t *Trail) ListAuditKeys(ctx context.Context) (*restapi.AuditKeyList, error) {
	keys, err := t.keys.AuditKeys(ctx)
	if err != nil {
		return nil, err
	}
	out := &restapi.AuditKeyList{Items: make([]restapi.AuditKey, len(keys))}
	for i, key := range keys {
		out.Items[i] = restapi.AuditKey{Kid: key.KID, PublicKey: base64.StdEncoding.EncodeToString(key.Public)}
	}
	return out, nil
}

// Bounds of an export: it holds a connection to the database while it is
// written.
const (
	exportWithin = time.Hour
	writeWithin  = 30 * time.Second // for each part of the file
)

// Export serves exportAuditLogs.
func (t *Trail) Export(w http.ResponseWriter, r *http.Request) {
	t.export(w, r, func(ctx context.Context, out *download) error {
		return t.trail.Export(ctx, principal.From(ctx), out)
	})
}

// AdminExport serves adminExportAuditLogs.
func (t *Trail) AdminExport(w http.ResponseWriter, r *http.Request) {
	t.export(w, r, func(ctx context.Context, out *download) error {
		team, err := id.ParseTeam(r.URL.Query().Get("team_id"))
		if err != nil {
			return err
		}
		return t.trail.ExportOf(ctx, team, out)
	})
}

func (t *Trail) export(w http.ResponseWriter, r *http.Request, write func(ctx context.Context, out *download) error) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), exportWithin, errs.Unavailable("timeout", "The export took too long."))
	defer cancel()
	out := &download{w: w, control: http.NewResponseController(w)}
	err := write(ctx, out)
	if err == nil {
		return
	}
	t.writeError(w, r, err)
	if out.begun {
		panic(http.ErrAbortHandler) // a file cut short must not look whole
	}
}

// download begins the answer with the first byte, so that what fails before is
// answered as an error.
type download struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (d *download) Write(p []byte) (int, error) {
	if !d.begun {
		d.begun = true
		h := d.w.Header()
		h.Set("Content-Type", "application/x-ndjson")
		h.Set("Content-Disposition", `attachment; filename="audit.ndjson"`)
	}
	_ = d.control.SetWriteDeadline(time.Now().Add(writeWithin)) // in-memory transports have none
	return d.w.Write(p)
}
