package sandbox

import (
	"flag"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

func quoted(t *testing.T, path, start string) []string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(raw), start)
	if !ok {
		t.Fatalf("%s has no %q", path, start)
	}
	end := strings.IndexAny(rest, ")]")
	return regexp.MustCompile(`[a-z]+`).FindAllString(rest[:end], -1)
}

func words(statuses []Status) []string {
	out := make([]string, len(statuses))
	for i, s := range statuses {
		out[i] = string(s)
	}
	slices.Sort(out)
	return out
}

func TestS3_TableDrivesTheSQLCheck(t *testing.T) {
	_, rest, _ := strings.Cut(mustRead(t, "../../../db/migrations/00001_baseline.sql"), "CREATE TABLE sandboxes")
	_, rest, _ = strings.Cut(rest, "CHECK (status IN (")
	got := regexp.MustCompile(`[a-z]+`).FindAllString(rest[:strings.Index(rest, ")")], -1)
	slices.Sort(got)
	if diff := cmp.Diff(words(Statuses()), got); diff != "" {
		t.Errorf("table and SQL CHECK differ (-table +sql):\n%s", diff)
	}
	_, rest, _ = strings.Cut(rest, "CHECK ((status IN (")
	ended := regexp.MustCompile(`[a-z]+`).FindAllString(rest[:strings.Index(rest, ")")], -1)
	slices.Sort(ended)
	if diff := cmp.Diff(words(where(func(s State) bool { return !s.Live })), ended); diff != "" {
		t.Errorf("ended statuses differ (-table +sql):\n%s", diff)
	}
}

func TestS3_TableDrivesTheOpenAPIEnum(t *testing.T) {
	got := quoted(t, "../../../api/openapi/sandbox.yaml", "SandboxStatus:\n      type: string\n      enum: [")
	slices.Sort(got)
	if diff := cmp.Diff(words(Statuses()), got); diff != "" {
		t.Errorf("table and OpenAPI differ (-table +openapi):\n%s", diff)
	}
}

func TestS3_TableDrivesTheDocs(t *testing.T) {
	const path = "../../../docs/state-machines.md"
	if *update {
		if err := os.MkdirAll("../../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(MachineDoc()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(MachineDoc(), mustRead(t, path)); diff != "" {
		t.Errorf("%s is stale; run with -update (-table +file):\n%s", path, diff)
	}
}

func TestRC04_EveryStateHasAWayOut(t *testing.T) {
	for _, s := range Machine() {
		if s.Exit.After <= 0 || s.Exit.How == "" {
			t.Errorf("%s has no automatic exit", s.Status)
		}
		if s.Exit.To != "" && !s.Status.May(s.Exit.To) {
			t.Errorf("%s exits to %s, which the table forbids", s.Status, s.Exit.To)
		}
		if s.Final && s.Exit.To != "" {
			t.Errorf("%s is final and goes on to %s", s.Status, s.Exit.To)
		}
		if s.Live && s.Status != StatusStopping && !s.Status.May(StatusStopping) {
			t.Errorf("%s cannot be deleted", s.Status)
		}
		if !s.Live && (s.HoldsCompute || s.HoldsDisk) {
			t.Errorf("%s has ended and holds capacity", s.Status)
		}
		for _, to := range s.To {
			if _, ok := to.State(); !ok {
				t.Errorf("%s may become %s, which is no status", s.Status, to)
			}
		}
		if !reaches(s.Status, map[Status]bool{}) {
			t.Errorf("%s never reaches stopped", s.Status)
		}
	}
}

func reaches(s Status, seen map[Status]bool) bool {
	if s == StatusStopped {
		return true
	}
	seen[s] = true
	st, _ := s.State()
	for _, to := range st.To {
		if !seen[to] && reaches(to, seen) {
			return true
		}
	}
	return false
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
