// Package auditpg writes the trail.
package auditpg

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

// Append writes entries in the transaction of the change that they record.
// When it fails the transaction must fail: no change without its entry.
func Append(ctx context.Context, tx pgx.Tx, entries ...audit.Entry) error {
	for _, e := range entries {
		metadata := []byte("{}")
		if len(e.Metadata) > 0 {
			var err error
			if metadata, err = json.Marshal(e.Metadata); err != nil {
				return fmt.Errorf("audit metadata: %w", err)
			}
		}
		var ip *netip.Addr
		if e.Actor.IP.IsValid() {
			ip = &e.Actor.IP
		}
		entryID := e.ID
		if entryID.IsZero() {
			entryID = id.NewAuditEntry()
		}
		err := sqlcgen.New().AppendEntry(ctx, tx, sqlcgen.AppendEntryParams{
			ID: entryID, TeamID: e.TeamID,
			ActorType: string(e.Actor.Kind), ActorID: e.Actor.ActorID(), ActorName: e.Actor.ActorName(),
			ResourceType: e.ResourceType, ResourceID: e.ResourceID,
			Action: e.Action, Scope: string(e.Scope), Status: string(e.Status),
			Metadata: metadata, RequestID: e.Actor.RequestID, Ip: ip,
		})
		if err != nil {
			return fmt.Errorf("append %s.%s to the audit trail: %w", e.ResourceType, e.Action, err)
		}
	}
	return nil
}
