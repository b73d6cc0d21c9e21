package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// capabilities are what a row may wait for.
func capabilities() []string {
	return []string{"accounts", "artifacts", "audit", "dashboard", "edge", "hosts", "lifecycle", "microvm", "operation", "teams", "templates"}
}

// requirement is one row of docs/requirements.md.
type requirement struct {
	id    string
	tests []string // path:TestName
	later []string
	empty bool
}

var cell = regexp.MustCompile("`([^`]+)`")

func requirements(t *testing.T) []requirement {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root(t), "docs", "requirements.md"))
	if err != nil {
		t.Fatal(err)
	}
	var all []requirement
	for line := range strings.Lines(string(raw)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 || !regexp.MustCompile(`^ [A-Z]+[0-9]+ $`).MatchString(cells[1]) {
			continue
		}
		r := requirement{id: strings.TrimSpace(cells[1])}
		for _, m := range cell.FindAllStringSubmatch(cells[3], -1) {
			r.tests = append(r.tests, m[1])
		}
		for _, part := range strings.Split(cells[3], ";") {
			if word, ok := strings.CutPrefix(strings.TrimSpace(part), "later: "); ok {
				r.later = append(r.later, word)
			}
		}
		r.empty = len(r.tests) == 0 && len(r.later) == 0
		all = append(all, r)
	}
	return all
}

// TestRequirements: every row of the specification has a line, and every line
// names tests that exist, or the capability that will bring it.
func TestRequirements(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root(t), "docs", "rows.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Fields(string(raw))
	tests := map[string]map[string]bool{}
	var got []string
	for _, r := range requirements(t) {
		got = append(got, r.id)
		if r.empty {
			t.Errorf("%s names neither a test nor what it waits for", r.id)
		}
		for _, word := range r.later {
			if !slices.Contains(capabilities(), word) {
				t.Errorf("%s waits for %q, which is none of %v", r.id, word, capabilities())
			}
		}
		for _, name := range r.tests {
			if err := exists(t, tests, name); err != nil {
				t.Errorf("%s: %v", r.id, err)
			}
		}
	}
	for _, id := range want {
		if n := count(got, id); n != 1 {
			t.Errorf("%s has %d lines in docs/requirements.md, want 1", id, n)
		}
	}
	for _, id := range got {
		if !slices.Contains(want, id) {
			t.Errorf("%s is in docs/requirements.md and not in docs/rows.txt", id)
		}
	}
}

func count(list []string, s string) int {
	n := 0
	for _, v := range list {
		if v == s {
			n++
		}
	}
	return n
}

// exists checks "dir:TestName" (or "dir:FuzzName"); known keeps what each
// directory has.
func exists(t *testing.T, known map[string]map[string]bool, name string) error {
	dir, test, ok := strings.Cut(name, ":")
	if !ok {
		return fmt.Errorf("%q does not look like path:TestName", name)
	}
	if known[dir] == nil {
		known[dir] = map[string]bool{}
		files, err := filepath.Glob(filepath.Join(root(t), dir, "*_test.go"))
		if err != nil {
			return err
		}
		for _, f := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range parsed.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
					known[dir][fn.Name.Name] = true
				}
			}
		}
	}
	if !known[dir][test] {
		return fmt.Errorf("there is no test %s in %s", test, dir)
	}
	return nil
}
