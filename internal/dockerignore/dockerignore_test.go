package dockerignore

import (
	"strings"
	"testing"
)

func TestP2_DockerignoreLeavesOutWhatDockerDoes(t *testing.T) {
	for _, c := range []struct{ patterns, out, in string }{
		{"", "", "a a/b"},
		{"# all\n\n  \na", "a a/b", "b b/a ab"},
		{"/a/", "a a/b", "b/a"},
		{"*.md", "x.md", "d/x.md"},
		{"**/*.md", "x.md d/x.md d/e/x.md d/x.md/y", "x.mdx"},
		{"a/*/c", "a/b/c a/x/c/d", "a/c a/b/x/c"},
		{"a/**", "a/b a/b/c", "a"},
		{"a/**/c", "a/c a/b/c a/b/x/c", "c a/cc"},
		{"a?c", "abc", "ac abbc a/c"},
		{"[a-c]x", "ax bx", "dx"},
		{"*\n!keep\n!d/keep", "a d d/x", "keep keep/x d/keep"},
		{"*.md\n!README*.md\nREADME-secret.md", "x.md README-secret.md", "README.md README-a.md"},
		{"!a\na", "a", "b"},
		{`a\*b`, "a*b", "axb"},
		{"../../x", "x", "a/x"},
		{"a.b", "a.b", "axb"},
		{".", "", "a"},
	} {
		p, err := Parse([]byte(c.patterns))
		if err != nil {
			t.Fatalf("%q: %v", c.patterns, err)
		}
		for _, name := range strings.Fields(c.out) {
			if !p.Excludes(name) {
				t.Errorf("%q keeps %s", c.patterns, name)
			}
		}
		for _, name := range strings.Fields(c.in) {
			if p.Excludes(name) {
				t.Errorf("%q leaves out %s", c.patterns, name)
			}
		}
	}
	for _, bad := range []string{"a\n!", "[a", "a\xff", strings.Repeat("x\n", maxPatterns+1)} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%.10q is taken", bad)
		}
	}
}

func TestADirectoryIsLookedIntoWhenSomethingInItIsKept(t *testing.T) {
	p, _ := Parse([]byte("node_modules"))
	q, _ := Parse([]byte("node_modules\n!node_modules/keep"))
	if !p.Prunes("node_modules") || p.Prunes("src") || q.Prunes("node_modules") {
		t.Error("what is walked is wrong")
	}
}

func FuzzPatterns(f *testing.F) {
	f.Add("a/**/b\n!c[a-z]\\*", "a/x/b")
	f.Fuzz(func(t *testing.T, patterns, name string) {
		p, err := Parse([]byte(patterns))
		if err == nil && p.Excludes(name) && len(p.list) == 0 {
			t.Error("nothing leaves something out")
		}
	})
}
