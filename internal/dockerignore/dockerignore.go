// Package dockerignore reads .dockerignore files and says which paths they leave
// out, as Docker does.
package dockerignore

import (
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// FileName is where the patterns are, at the root of a context.
const FileName = ".dockerignore"

// Bounds of a file.
const (
	MaxBytes    = 1 << 20
	maxPatterns = 10_000
)

// Patterns say what is left out. The zero value leaves out nothing.
type Patterns struct {
	list []pattern
	// keeps: some pattern takes back what another left out.
	keeps bool
}

type pattern struct {
	keep bool
	re   *regexp.Regexp
}

// Parse reads a file: a pattern a line, the last one that fits a path decides.
func Parse(text []byte) (Patterns, error) {
	var p Patterns
	if len(text) > MaxBytes || !utf8.Valid(text) {
		return p, fmt.Errorf("%s: must be UTF-8 text of at most %d bytes", FileName, MaxBytes)
	}
	number := 0
	for raw := range strings.Lines(strings.TrimPrefix(string(text), "\ufeff")) {
		number++
		if strings.HasPrefix(raw, "#") {
			continue
		}
		s := strings.TrimSpace(raw)
		if s == "" {
			continue
		}
		keep := strings.HasPrefix(s, "!")
		if keep {
			s = strings.TrimSpace(s[1:])
		}
		if s == "" {
			return p, fmt.Errorf("%s, line %d: nothing follows the !", FileName, number)
		}
		s = strings.TrimPrefix(path.Clean("/"+s), "/")
		if s == "" {
			continue // the root itself is never left out
		}
		re, err := compile(s)
		if err != nil {
			return p, fmt.Errorf("%s, line %d: %q is no pattern", FileName, number, s)
		}
		p.list = append(p.list, pattern{keep, re})
		p.keeps = p.keeps || keep
		if len(p.list) > maxPatterns {
			return p, fmt.Errorf("%s: more than %d patterns", FileName, maxPatterns)
		}
	}
	return p, nil
}

// compile turns a pattern into one over whole paths: * and ? stay within a name,
// ** goes across.
func compile(s string) (*regexp.Regexp, error) {
	if _, err := path.Match(s, ""); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("^")
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case strings.HasPrefix(s[i:], "**/"):
			b.WriteString("(.*/)?")
			i += 3
		case strings.HasPrefix(s[i:], "**"):
			b.WriteString(".*")
			i += 2
		case c == '*':
			b.WriteString("[^/]*")
			i++
		case c == '?':
			b.WriteString("[^/]")
			i++
		case c == '[':
			end := class(s[i:])
			if end < 0 {
				return nil, path.ErrBadPattern
			}
			b.WriteString(s[i : i+end])
			i += end
		case c == '\\' && i+1 < len(s):
			_, n := utf8.DecodeRuneInString(s[i+1:])
			b.WriteString(regexp.QuoteMeta(s[i+1 : i+1+n]))
			i += 1 + n
		default:
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(regexp.QuoteMeta(s[i : i+n]))
			i += n
		}
	}
	b.WriteString("$")
	return regexp.Compile(b.String())
}

// class returns how long the character class at the beginning of s is.
func class(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ']':
			return i + 1
		}
	}
	return -1
}

// Excludes reports whether a path, relative and with slashes, is left out: it or
// a directory above it fits the pattern that decides.
func (p Patterns) Excludes(name string) bool {
	out := false
	for _, x := range p.list {
		if x.keep != out {
			continue // it could change nothing
		}
		if x.fits(name) {
			out = !x.keep
		}
	}
	return out
}

func (x pattern) fits(name string) bool {
	for at := name; at != "." && at != "/" && at != ""; at = path.Dir(at) {
		if x.re.MatchString(at) {
			return true
		}
	}
	return false
}

// Prunes reports whether a directory that is left out need not be looked into.
func (p Patterns) Prunes(dir string) bool { return !p.keeps && p.Excludes(dir) }
