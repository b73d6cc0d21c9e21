// Package auditpg keeps the trail.
package auditpg

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

// Append writes entries in the transaction of the change that they record. When
// it fails the transaction must fail: no change without its entry. It is the
// last thing a transaction does, once: it locks the ends of the teams' chains,
// in the order of their ids, until the commit.
func Append(ctx context.Context, tx pgx.Tx, entries ...audit.Entry) error {
	byTeam := map[id.Team][]audit.Entry{}
	var teams []id.Team
	for _, e := range entries {
		if byTeam[e.TeamID] == nil {
			teams = append(teams, e.TeamID)
		}
		byTeam[e.TeamID] = append(byTeam[e.TeamID], e)
	}
	slices.SortFunc(teams, func(a, b id.Team) int {
		x, y := a.UUID(), b.UUID()
		return bytes.Compare(x[:], y[:])
	})
	for _, team := range teams {
		if err := appendTo(ctx, tx, team, byTeam[team]); err != nil {
			return fmt.Errorf("append to the audit trail: %w", err)
		}
	}
	return nil
}

// maxMetadata bounds what an entry says beside its fields, in bytes of JSON.
const maxMetadata = 16 << 10

func appendTo(ctx context.Context, tx pgx.Tx, team id.Team, entries []audit.Entry) error {
	q := sqlcgen.New()
	head, err := q.LockHead(ctx, tx, team)
	if err != nil {
		return err
	}
	seq, hash := head.Seq, audit.Hash(head.Hash)
	rows := make([]sqlcgen.InsertEntryParams, len(entries))
	for i, e := range entries {
		seq++
		r, err := record(e, seq, head.At)
		if err != nil {
			return err
		}
		hash = r.After(hash)
		var ip *netip.Addr
		if r.IP.IsValid() {
			ip = &r.IP
		}
		rows[i] = sqlcgen.InsertEntryParams{
			ID: r.ID, TeamID: team, Seq: seq, Hash: bytes.Clone(hash[:]), ActorType: r.ActorType, ActorID: r.ActorID, ActorName: r.ActorName,
			ResourceType: r.ResourceType, ResourceID: r.ResourceID, Action: r.Action, Scope: r.Scope, Status: r.Status,
			Metadata: r.Metadata, RequestID: r.RequestID, Ip: ip, CreatedAt: r.At,
		}
	}
	var failed error
	q.InsertEntry(ctx, tx, rows).Exec(func(_ int, err error) {
		if failed == nil {
			failed = err
		}
	})
	return failed
}

func record(e audit.Entry, seq int64, at time.Time) (audit.Record, error) {
	r := audit.Record{
		ID: e.ID, TeamID: e.TeamID, Seq: seq,
		ActorType: string(e.Actor.Kind), ActorID: e.Actor.ActorID(), ActorName: e.Actor.ActorName(),
		ResourceType: e.ResourceType, ResourceID: e.ResourceID, Action: e.Action, Scope: string(e.Scope), Status: string(e.Status),
		Metadata: []byte("{}"), RequestID: e.Actor.RequestID, IP: e.Actor.IP.Unmap().WithZone(""), At: at,
	}
	if r.ID.IsZero() {
		r.ID = id.NewAuditEntry()
	}
	if len(e.Metadata) == 0 {
		return r, nil
	}
	var err error
	if r.Metadata, err = json.Marshal(e.Metadata); err == nil && len(r.Metadata) > maxMetadata {
		err = fmt.Errorf("%d bytes, more than %d", len(r.Metadata), maxMetadata)
	}
	if err != nil {
		return r, fmt.Errorf("metadata of %s.%s: %w", e.ResourceType, e.Action, err)
	}
	return r, nil
}
