package main

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/alecthomas/kong"
)

// TestSettingsAreDocumented: every variable that a flag reads is in
// docs/settings.md, and nothing else is.
func TestSettingsAreDocumented(t *testing.T) {
	raw, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	var p program
	parser, err := kong.New(&p)
	if err != nil {
		t.Fatal(err)
	}
	read := []string{"SKERRY_PASSWORD"} // by the command line, and by no flag
	_ = kong.Visit(parser.Model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			read = append(read, flag.Envs...)
		}
		return next(nil)
	})
	said := regexp.MustCompile("`((?:SKERRY|DATABASE)_[A-Z0-9_]+)`").FindAllStringSubmatch(string(raw), -1)
	var documented []string
	for _, m := range said {
		documented = append(documented, m[1])
		if !slices.Contains(read, m[1]) {
			t.Errorf("%s is documented and nobody reads it", m[1])
		}
	}
	for _, name := range read {
		if !slices.Contains(documented, name) {
			t.Errorf("%s is read and not documented", name)
		}
	}
	if len(read) < 30 {
		t.Errorf("only %d variables were found", len(read))
	}
}
