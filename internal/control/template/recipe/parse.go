package recipe

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Parse reads a recipe. An error names the line and says what to write.
func Parse(text string) (Recipe, error) {
	var r Recipe
	if len(text) > MaxBytes {
		return r, fault(1, "a recipe has at most %d bytes", MaxBytes)
	}
	if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return r, fault(1, "a recipe is UTF-8 text without zero bytes")
	}
	lines, err := logical(text)
	if err != nil {
		return r, err
	}
	for i, l := range lines {
		if err := r.add(l, i == 0); err != nil {
			return Recipe{}, err
		}
	}
	return r, nil
}

// line is an instruction whose continuations are joined.
type line struct {
	number int
	name   string // in capitals
	rest   string
}

var escapeDirective = regexp.MustCompile(`(?i)^#\s*escape\s*=\s*([^\s\\])`)

// logical joins continued lines and leaves out comments and empty lines, also
// those amid a continued line.
func logical(text string) ([]line, error) {
	var out []line
	var joined strings.Builder
	begin := 0
	flush := func() {
		whole := strings.TrimSpace(joined.String())
		joined.Reset()
		if begin > 0 && whole != "" {
			name, rest, _ := cutSpace(whole)
			out = append(out, line{begin, strings.ToUpper(name), rest})
		}
		begin = 0
	}
	text = strings.TrimPrefix(text, "\ufeff")
	for i, raw := range strings.Split(text, "\n") {
		number := i + 1
		raw = strings.TrimSuffix(raw, "\r")
		trimmed := strings.TrimSpace(raw)
		if strings.HasPrefix(trimmed, "#") {
			if len(out) == 0 && begin == 0 && escapeDirective.MatchString(trimmed) {
				return nil, fault(number, "only \\ joins lines; leave the escape directive out")
			}
			continue
		}
		if trimmed == "" {
			continue
		}
		if begin == 0 {
			begin = number
		}
		part := strings.TrimRightFunc(raw, unicode.IsSpace)
		if strings.HasSuffix(part, `\`) {
			joined.WriteString(strings.TrimSuffix(part, `\`))
			continue
		}
		joined.WriteString(raw)
		flush()
	}
	flush()
	return out, nil
}

// cutSpace cuts around the first run of white space.
func cutSpace(s string) (before, after string, found bool) {
	i := strings.IndexFunc(s, unicode.IsSpace)
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimSpace(s[i:]), true
}

func (r *Recipe) add(l line, first bool) error {
	if l.rest == "" {
		return fault(l.number, "%s says nothing after its name", clip(l.name))
	}
	s := Step{Kind: Kind(l.name), Line: l.number, Text: l.name + " " + oneLine(l.rest)}
	var err error
	switch l.name {
	case from:
		return r.from(l, first)
	case start, ready:
		to := &r.Start
		if l.name == ready {
			to = &r.Ready
		}
		if *to != nil {
			return fault(l.number, "there is a %s at line %d already; join them with &&", l.name, (*to).Line)
		}
		err = s.command(l)
		*to = &s
		return err
	case string(Run):
		err = s.command(l)
	case string(Copy):
		err = s.copy(l)
	case string(Env):
		err = s.env(l)
	case string(Workdir), string(User):
		err = s.single(l)
	default:
		return unknown(l.number, clip(l.name))
	}
	if err != nil {
		return err
	}
	if r.Steps = append(r.Steps, s); len(r.Steps) > MaxSteps {
		return fault(l.number, "a recipe has at most %d steps; join some with &&", MaxSteps)
	}
	return nil
}

func (r *Recipe) from(l line, first bool) error {
	words := strings.Fields(l.rest)
	switch {
	case r.From != "":
		return fault(l.number, "a recipe has one FROM; build the other one as a template of its own")
	case !first:
		return fault(l.number, "FROM must be the first instruction")
	case strings.HasPrefix(words[0], "--"):
		return fault(l.number, "FROM takes no flags; the architecture is the host's")
	case len(words) == 3 && strings.EqualFold(words[1], "AS"):
		return fault(l.number, "stages have no names here: write FROM %s", clip(words[0]))
	case len(words) != 1:
		return fault(l.number, "FROM takes one word: the name of a template, or an image as debian:12")
	case strings.ContainsAny(words[0], `$"'\`):
		return fault(l.number, "FROM takes no variables and no quotes")
	}
	r.From = words[0]
	return nil
}

var heredoc = regexp.MustCompile(`^[0-9]*<<-?["']?[A-Za-z_]`)

// command reads RUN, START and READY: a line for the shell, or a JSON array.
func (s *Step) command(l line) error {
	if strings.HasPrefix(l.rest, "--") {
		flag, _, _ := strings.Cut(l.rest, "=")
		return fault(l.number, "%s takes no flags: leave %s out", l.name, clip(strings.Fields(flag)[0]))
	}
	if args, ok := array(l.rest); ok {
		if len(args) == 0 || args[0] == "" {
			return fault(l.number, `the array names no program; write %s ["program", "argument"]`, l.name)
		}
		s.Args = args
		return nil
	}
	for _, w := range strings.Fields(l.rest) {
		if heredoc.MatchString(w) {
			return fault(l.number, `here-documents are not read; join lines with \ or COPY a script`)
		}
	}
	s.Shell = l.rest
	return nil
}

// array reads the JSON form; what is none is text.
func array(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var out []string
	if err := json.Unmarshal([]byte(s), &out); err != nil {
		return nil, false
	}
	for _, w := range out {
		if strings.ContainsRune(w, 0) {
			return nil, false
		}
	}
	return out, true
}

func (s *Step) copy(l line) error {
	rest := l.rest
	for strings.HasPrefix(rest, "--") {
		flag, after, _ := cutSpace(rest)
		name, value, given := strings.Cut(flag, "=")
		switch {
		case name != "--chown":
			return fault(l.number, "COPY knows no %s; it takes --chown=user:group", clip(name))
		case !given || value == "":
			return fault(l.number, "write --chown=user:group")
		case s.Chown.text != "":
			return fault(l.number, "--chown is given twice")
		}
		s.Chown, rest = word{text: value}, after
	}
	if args, ok := array(rest); ok {
		for _, a := range args {
			s.Sources = append(s.Sources, word{a, true})
		}
	} else {
		words, err := split(l.number, rest)
		if err != nil {
			return err
		}
		for _, w := range words {
			if heredoc.MatchString(w) {
				return fault(l.number, "here-documents are not read; put the file into the context")
			}
			s.Sources = append(s.Sources, word{text: w})
		}
	}
	if len(s.Sources) < 2 {
		return fault(l.number, "COPY needs one or several sources and a destination")
	}
	if len(s.Sources) > maxWords {
		return fault(l.number, "COPY takes at most %d sources; name a directory", maxWords-1)
	}
	last := len(s.Sources) - 1
	s.Dest, s.Sources = s.Sources[last], s.Sources[:last]
	return nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// env reads `a=b "c"=d` or, without an equals sign in its first word, one name
// and its value.
func (s *Step) env(l line) error {
	words, err := split(l.number, l.rest)
	if err != nil {
		return err
	}
	if !strings.Contains(words[0], "=") {
		name, value, found := cutSpace(l.rest)
		if !found {
			return fault(l.number, "ENV needs a value: write ENV %s=value", clip(name))
		}
		return s.pair(l.number, name, value)
	}
	if len(words) > maxWords {
		return fault(l.number, "ENV takes at most %d variables on a line", maxWords)
	}
	for _, w := range words {
		name, value, found := strings.Cut(w, "=")
		if !found {
			return fault(l.number, `%q is no name=value; put quotes around a value with spaces, as in name="a b"`, clip(w))
		}
		if err := s.pair(l.number, name, value); err != nil {
			return err
		}
	}
	return nil
}

func (s *Step) pair(line int, name, value string) error {
	// A name may be quoted together with its value or alone; it has no variables.
	name = strings.Trim(name, `"'`)
	if !envName.MatchString(name) {
		return fault(line, "%q is no name of a variable: letters, digits and underscores", clip(name))
	}
	s.Pairs = append(s.Pairs, pair{name, word{text: value}})
	return nil
}

// single reads an instruction of one word. WORKDIR may have spaces in it.
func (s *Step) single(l line) error {
	words, err := split(l.number, l.rest)
	if err != nil {
		return err
	}
	if len(words) != 1 && s.Kind == User {
		return fault(l.number, "USER takes one word: the name of a user of the image")
	}
	s.Arg = word{text: l.rest}
	return nil
}

// oneLine makes a text fit for a line of a log.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

const maxQuoted = 80

// clip shortens what is quoted in an error.
func clip(s string) string {
	if utf8.RuneCountInString(s) <= maxQuoted {
		return s
	}
	return string([]rune(s)[:maxQuoted]) + "…"
}
