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
	return []string{"artifacts", "dashboard", "edge", "hosts", "microvm", "operation", "templates"}
}

// requirement is one row of docs/requirements.md. Its third column is a list,
// parted by semicolons, of `directory:TestName`, and of "later: capability" when
// nothing is there yet or "rest later: capability" when the tests prove a part.
type requirement struct {
	id    string
	tests []string // directory:TestName
	later []string
	fault string // what is wrong with its third column
}

func requirements(t *testing.T) []requirement {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root(t), "docs", "requirements.md"))
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^ [A-Z]+[0-9]+ $`)
	var all []requirement
	for line := range strings.Lines(string(raw)) {
		if cells := strings.Split(strings.TrimSpace(line), "|"); len(cells) == 5 && row.MatchString(cells[1]) {
			all = append(all, parseRequirement(strings.TrimSpace(cells[1]), cells[3]))
		}
	}
	return all
}

func parseRequirement(id, column string) requirement {
	r := requirement{id: id}
	whole := 0 // capabilities that bring all of it
	for part := range strings.SplitSeq(column, ";") {
		part = strings.TrimSpace(part)
		if name, ok := strings.CutPrefix(part, "`"); ok && strings.HasSuffix(name, "`") {
			r.tests = append(r.tests, strings.TrimSuffix(name, "`"))
		} else if word, ok := strings.CutPrefix(part, "rest later: "); ok {
			r.later = append(r.later, word)
		} else if word, ok := strings.CutPrefix(part, "later: "); ok {
			r.later = append(r.later, word)
			whole++
		} else {
			r.fault = fmt.Sprintf("%q is neither a test nor what it waits for", part)
		}
	}
	switch {
	case r.fault != "":
	case len(r.tests) > 0 && whole > 0:
		r.fault = "has tests, so only the rest comes later"
	case len(r.tests) == 0 && whole != len(r.later):
		r.fault = "has no tests, so all of it comes later"
	case strings.HasPrefix(id, "S") && len(r.later) == 0 && !slices.ContainsFunc(r.tests, onRealEngine):
		r.fault = "is about sandboxes and has no test on a real engine"
	}
	return r
}

// onRealEngine: a fake engine proves logic, never behaviour.
func onRealEngine(test string) bool {
	dir, name, _ := strings.Cut(test, ":")
	switch dir {
	case "test/e2e", "test/chaos", "internal/agent/engine/gvisor":
		return true
	case "internal/agent/app":
		return strings.HasSuffix(name, "_OnARealHost") || name == "TestST08_RC03_KillTheAgent"
	default:
		return name == "TestGVisor_TheDaemonInARealSandbox"
	}
}

func TestRequirementColumnsAreRead(t *testing.T) {
	for column, ok := range map[string]bool{
		"`test/e2e:TestA`":                               true,
		"`a:TestA`; `test/e2e:TestB`":                    true,
		"`a:TestA`; rest later: edge; rest later: hosts": true,
		"later: edge":                                    true,
		"later: edge; later: hosts":                      true,
		"":                                               false,
		"soon":                                           false,
		"`a:TestA`; later: edge":                         false,
		"rest later: edge":                               false,
		"`a:TestA`":                                      false,
		"`test/e2e:TestA`; and more":                     false,
	} {
		if r := parseRequirement("S1", column); (r.fault == "") != ok {
			t.Errorf("%q: %q", column, r.fault)
		}
	}
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
		if r.fault != "" {
			t.Errorf("%s %s", r.id, r.fault)
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
