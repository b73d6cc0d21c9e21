package house

import (
	"path/filepath"
	"slices"
	"testing"

	"skerry.dev/skerry/internal/pg/pgtest"
)

// TestC9_TablesAsNamed: the names that others know are those of the database,
// and there is one baseline that later migrations only add to.
func TestC9_TablesAsNamed(t *testing.T) {
	pool := pgtest.New(t)
	for table, columns := range map[string][]string{
		"users":               {"id", "email", "name", "is_admin"},
		"teams":               {"id", "slug", "is_byoc", "deleted_at"},
		"users_teams":         {"user_id", "team_id", "role", "is_default"},
		"team_api_keys":       {"id", "team_id", "name"},
		"hosts":               {"id"},
		"host_refresh_tokens": {"id"},
		"sandboxes":           {"id", "team_id", "status", "incarnation"},
		"templates":           {"id", "team_id", "name"},
		"audit_logs":          {"id", "team_id", "actor_id", "resource_id", "action"},
		"operations":          {"id", "kind", "incarnation"},
	} {
		rows, err := pool.Query(t.Context(), "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1", table)
		if err != nil {
			t.Fatal(err)
		}
		var have []string
		for rows.Next() {
			var name, kind string
			if err := rows.Scan(&name, &kind); err != nil {
				t.Fatal(err)
			}
			have = append(have, name)
			if name == "id" && kind != "uuid" {
				t.Errorf("%s.id is %s, want uuid", table, kind)
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		for _, column := range columns {
			if !slices.Contains(have, column) {
				t.Errorf("%s has no column %s (it has %v)", table, column, have)
			}
		}
	}
	baselines, err := filepath.Glob(filepath.Join(root(t), "db", "migrations", "*baseline.sql"))
	if err != nil || len(baselines) != 1 || filepath.Base(baselines[0]) != "00001_baseline.sql" {
		t.Errorf("baselines %v, %v", baselines, err)
	}
}
