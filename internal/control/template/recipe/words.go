package recipe

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// split cuts a text at white space that is neither quoted nor escaped. Quotes
// and escapes stay in the words.
func split(line int, s string) ([]string, error) {
	var out []string
	var w strings.Builder
	var quote rune
	in, escaped := false, false
	for _, c := range s {
		switch {
		case escaped:
			escaped = false
			w.WriteRune(c)
			continue
		case c == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote, in = c, true
		case unicode.IsSpace(c):
			if in {
				out = append(out, w.String())
				w.Reset()
				in = false
			}
			continue
		default:
			in = true
		}
		w.WriteRune(c)
	}
	switch {
	case quote != 0:
		return nil, fault(line, "a quote %c is not closed", quote)
	case escaped:
		return nil, fault(line, `nothing follows the last \`)
	}
	if in {
		out = append(out, w.String())
	}
	return out, nil
}

// expansion takes quotes out of a word and puts values in the place of variables,
// as a shell does.
type expansion struct {
	line int
	in   string
	at   int
	env  map[string]string
	out  strings.Builder
	// glob keeps the escapes of characters that have a meaning in a pattern, and
	// escapes those that were quoted.
	glob bool
}

// maxExpanded bounds what a word may grow to.
const maxExpanded = 128 << 10

func expand(line int, w word, env map[string]string, glob bool) (string, error) {
	x := expansion{line: line, in: w.text, env: env, glob: glob}
	read := func() error { return x.until(0) }
	if w.exact {
		read = x.variables
	}
	if err := read(); err != nil {
		return "", err
	}
	if x.out.Len() > maxExpanded {
		return "", fault(line, "a value grows beyond %d bytes", maxExpanded)
	}
	return x.out.String(), nil
}

// variables expands variables and takes everything else as it is.
func (x *expansion) variables() error {
	for x.at < len(x.in) && x.out.Len() <= maxExpanded {
		if c := x.next(); c != '$' {
			x.out.WriteRune(c)
		} else if err := x.variable(false); err != nil {
			return err
		}
	}
	return nil
}

func (x *expansion) next() rune {
	if x.at >= len(x.in) {
		return 0
	}
	c, n := utf8.DecodeRuneInString(x.in[x.at:])
	x.at += n
	return c
}

func (x *expansion) peek() rune {
	c, _ := utf8.DecodeRuneInString(x.in[x.at:])
	if x.at >= len(x.in) {
		return 0
	}
	return c
}

// until expands up to an unquoted end, which it takes; 0 is the end of the word.
func (x *expansion) until(end rune) error {
	for x.at < len(x.in) {
		if x.out.Len() > maxExpanded {
			return fault(x.line, "a value grows beyond %d bytes", maxExpanded)
		}
		c := x.next()
		var err error
		switch {
		case c == end:
			return nil
		case c == '\'':
			err = x.single()
		case c == '"':
			err = x.double()
		case c == '\\':
			if x.at < len(x.in) {
				x.literal(x.next())
			} else {
				x.literal('\\')
			}
		case c == '$':
			err = x.variable(false)
		default:
			x.out.WriteRune(c)
		}
		if err != nil {
			return err
		}
	}
	if end != 0 {
		return fault(x.line, "a ${ is not closed")
	}
	return nil
}

// literal writes a character that means nothing but itself.
func (x *expansion) literal(c rune) {
	if x.glob && strings.ContainsRune(`*?[]\`, c) {
		x.out.WriteByte('\\')
	}
	x.out.WriteRune(c)
}

func (x *expansion) single() error {
	for x.at < len(x.in) {
		c := x.next()
		if c == '\'' {
			return nil
		}
		x.literal(c)
	}
	return fault(x.line, "a quote ' is not closed")
}

func (x *expansion) double() error {
	for x.at < len(x.in) {
		c := x.next()
		switch c {
		case '"':
			return nil
		case '\\':
			if n := x.peek(); n == '"' || n == '$' || n == '\\' {
				x.literal(x.next())
			} else {
				x.literal('\\')
			}
		case '$':
			if err := x.variable(true); err != nil {
				return err
			}
		default:
			x.literal(c)
		}
	}
	return fault(x.line, `a quote " is not closed`)
}

func (x *expansion) value(s string, quoted bool) {
	if !quoted {
		x.out.WriteString(s)
		return
	}
	for _, c := range s {
		x.literal(c)
	}
}

// variable expands $name, ${name}, ${name:-word} and ${name:+word}, and those
// without a colon, for which an empty variable is set.
func (x *expansion) variable(quoted bool) error {
	if x.peek() != '{' {
		name := x.name()
		if name == "" {
			x.out.WriteByte('$')
			return nil
		}
		x.value(x.env[name], quoted)
		return nil
	}
	x.next()
	name := x.name()
	if name == "" {
		return fault(x.line, "${ wants the name of a variable")
	}
	v, set := x.env[name]
	op := x.next()
	if op == ':' {
		set = v != ""
		op = x.next()
	} else if op == '}' {
		x.value(v, quoted)
		return nil
	}
	if op != '-' && op != '+' {
		return fault(x.line, "${%s is closed by }, or goes on with :-word or :+word", clip(name))
	}
	// The word is expanded whether it is used or not: where it ends shows then.
	inner := expansion{line: x.line, in: x.in, at: x.at, env: x.env, glob: x.glob}
	if err := inner.until('}'); err != nil {
		return err
	}
	x.at = inner.at
	switch {
	case op == '-' && set:
		x.value(v, quoted)
	case op == '-' || set:
		x.out.WriteString(inner.out.String())
	}
	return nil
}

func (x *expansion) name() string {
	begin := x.at
	for x.at < len(x.in) {
		c := x.in[x.at]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (x.at == begin || c < '0' || c > '9') {
			break
		}
		x.at++
	}
	return x.in[begin:x.at]
}
