package sdk

import (
	"context"
	"io"
	"iter"
	"net/url"

	"skerry.dev/skerry/gen/restapi"
)

// AuditLog is one entry of the audit trail.
type AuditLog = restapi.AuditLog

// AuditKey is a public key that signs the heads of exported trails.
type AuditKey = restapi.AuditKey

// AuditFilter chooses entries; an empty list takes all.
type AuditFilter struct {
	ResourceTypes []string
	Actions       []string
	// AllTeams, or one TeamID, is for platform admins; otherwise it is the
	// session's active team.
	AllTeams bool
	TeamID   string
}

// AuditLogs walks the trail, newest first.
func (c *Client) AuditLogs(ctx context.Context, f AuditFilter) iter.Seq2[AuditLog, error] {
	return walk(c, func(cursor restapi.OptString) ([]AuditLog, restapi.OptString, error) {
		var l *restapi.AuditLogList
		var err error
		if f.AllTeams || f.TeamID != "" {
			l, err = c.api.AdminListAuditLogs(ctx, restapi.AdminListAuditLogsParams{
				Cursor: cursor, ResourceType: f.ResourceTypes, Action: f.Actions, TeamID: optString(f.TeamID),
			})
		} else {
			l, err = c.api.ListAuditLogs(ctx, restapi.ListAuditLogsParams{Cursor: cursor, ResourceType: f.ResourceTypes, Action: f.Actions})
		}
		if err != nil {
			return nil, cursor, err
		}
		return l.Items, l.NextCursor, nil
	})
}

// ExportAudit opens the whole trail of the session's active team, or, for
// platform admins, of the named one, as NDJSON with a signed head. The caller
// closes the reader; a file whose reading fails is not whole.
func (c *Client) ExportAudit(ctx context.Context, teamID string) (io.ReadCloser, error) {
	path, query := "/v1/audit-logs/export", url.Values{}
	if teamID != "" {
		path, query = "/v1/admin/audit-logs/export", url.Values{"team_id": {teamID}}
	}
	answer, err := c.request(ctx, "GET", path, query, nil)
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// AuditKeys returns the public keys that check exports, the retired ones too.
func (c *Client) AuditKeys(ctx context.Context) ([]AuditKey, error) {
	l, err := c.api.ListAuditKeys(ctx)
	if err != nil {
		return nil, c.explain(err)
	}
	return l.Items, nil
}
