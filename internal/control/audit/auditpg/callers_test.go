package auditpg_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// The chains' heads are locked from Append to the commit, so nothing comes
// after it: every call is what its function returns. (A create's receipt is
// stored behind it, under a lock that was taken before everything.)
func TestL2_AppendIsTheLastStatement(t *testing.T) {
	calls := 0
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		returned := map[ast.Node]bool{}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ReturnStmt:
				for _, result := range n.Results {
					returned[result] = true
				}
			case *ast.CallExpr:
				if !isAppend(n, file.Name.Name) {
					return true
				}
				calls++
				if !returned[n] {
					t.Errorf("%s: what Append says is not what is returned at once", set.Position(n.Pos()))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if calls < 10 {
		t.Errorf("found %d calls", calls)
	}
}

func isAppend(call *ast.CallExpr, in string) bool {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		room, ok := f.X.(*ast.Ident)
		return ok && room.Name == "auditpg" && f.Sel.Name == "Append"
	case *ast.Ident:
		return in == "auditpg" && f.Name == "Append"
	}
	return false
}
