package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// longest is how many lines a file may have; 400 is what files aim at.
const longest = 600

// tooLong lists files over the limit with their length and the reason. An entry
// may shrink or go, never grow.
func tooLong() map[string]struct {
	lines  int
	reason string
} {
	return nil
}

// goFiles calls f with each file of ours that is written by hand.
func goFiles(t *testing.T, f func(path string, content []byte)) {
	t.Helper()
	base := root(t)
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(base, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case ".git", ".cache", "node_modules", "gen", "sqlcgen", "bin", "data", "dist":
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(rel), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesStayShort(t *testing.T) {
	listed := tooLong()
	goFiles(t, func(path string, content []byte) {
		lines := bytes.Count(content, []byte("\n"))
		entry, ok := listed[path]
		delete(listed, path)
		switch {
		case ok && lines <= longest:
			t.Errorf("%s has %d lines: take it off the list", path, lines)
		case ok && lines > entry.lines:
			t.Errorf("%s has grown from %d to %d lines", path, entry.lines, lines)
		case !ok && lines > longest:
			t.Errorf("%s has %d lines, more than %d: cut it where its parts have names of their own", path, lines, longest)
		}
	})
	for path := range listed {
		t.Errorf("%s is on the list and does not exist", path)
	}
}

// TestNoPackageState: no init functions, and no variables of a package that
// only make sense when somebody changes them.
func TestNoPackageState(t *testing.T) {
	goFiles(t, func(path string, content []byte) {
		// Packages for tests (…test, testkit) are part of tests.
		if dir := filepath.Base(filepath.Dir(path)); strings.HasSuffix(path, "_test.go") || strings.HasSuffix(dir, "test") || dir == "testkit" {
			return
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, content, parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.Name == "init" && d.Recv == nil {
					t.Errorf("%s: an init function runs whether or not anybody wants it", files.Position(d.Pos()))
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					v, ok := s.(*ast.ValueSpec)
					if ok && d.Tok == token.VAR && isState(d, v) {
						t.Errorf("%s: %s is state of a package: give it an owner", files.Position(v.Pos()), v.Names[0].Name)
					}
				}
			}
		}
	})
}

// isState tells a variable that is changed after its start (no value, or an
// empty container) from a constant that Go cannot call so. A sync.Pool is a cache and none.
func isState(d *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{d.Doc, v.Doc} {
		if doc != nil && strings.Contains(textOf(doc), "//go:embed") {
			return false
		}
	}
	if len(v.Values) == 0 {
		return true
	}
	for _, value := range v.Values {
		switch x := value.(type) {
		case *ast.CallExpr:
			if f, ok := x.Fun.(*ast.Ident); ok && (f.Name == "make" || f.Name == "new") {
				return true
			}
		case *ast.CompositeLit:
			s, ok := x.Type.(*ast.SelectorExpr)
			if p, isPackage := identOf(s, ok); isPackage && (p == "sync" && s.Sel.Name != "Pool" || p == "atomic") {
				return true
			}
		}
	}
	return false
}

func identOf(s *ast.SelectorExpr, ok bool) (string, bool) {
	if !ok {
		return "", false
	}
	p, ok := s.X.(*ast.Ident)
	if !ok {
		return "", false
	}
	return p.Name, true
}

// textOf is a comment as it stands; CommentGroup.Text leaves directives out.
func textOf(g *ast.CommentGroup) string {
	var b strings.Builder
	for _, c := range g.List {
		b.WriteString(c.Text)
		b.WriteByte('\n')
	}
	return b.String()
}

func TestGeneratedCodeFitsItsSources(t *testing.T) {
	cmd := exec.Command("tools/generate.sh", "--check")
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
