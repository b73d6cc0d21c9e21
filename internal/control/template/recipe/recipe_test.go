package recipe

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/kernel/errs"
)

// shown writes a plan down, an action a line: what changed of the environment,
// who, where and what.
func shown(from string, p Plan) string {
	var b strings.Builder
	if from != "" {
		fmt.Fprintf(&b, "from %s\n", from)
	}
	env := map[string]string{"PATH": "/bin"}
	for _, a := range p.Actions {
		fmt.Fprintf(&b, "%d %s", a.Line, a.Kind)
		switch a.Kind {
		case Run:
			fmt.Fprintf(&b, " %s in %s: %s", a.User, a.Workdir, a.Command.shown())
		case Copy:
			fmt.Fprintf(&b, " %q to %s", a.Copy.Sources, a.Copy.Dest)
			if a.Copy.IntoDir {
				b.WriteString(" (directory)")
			}
			if a.Copy.Chown != "" {
				b.WriteString(" of " + a.Copy.Chown)
			}
		case Env:
			for _, k := range slices.Sorted(maps.Keys(a.Env)) {
				if v, ok := env[k]; !ok || v != a.Env[k] {
					fmt.Fprintf(&b, " %s=%q", k, a.Env[k])
				}
			}
			env = a.Env
		case Workdir:
			b.WriteString(" " + a.Workdir)
		case User:
			b.WriteString(" " + a.User)
		}
		b.WriteByte('\n')
	}
	if p.Start != nil {
		fmt.Fprintf(&b, "start %s in %s: %s\n", p.End.User, p.End.Workdir, p.Start.shown())
	}
	if p.Ready != nil {
		fmt.Fprintf(&b, "ready %s\n", p.Ready.shown())
	}
	return b.String()
}

func (c Command) shown() string {
	if c.Args != nil {
		return fmt.Sprintf("%q", c.Args)
	}
	return c.Shell
}

func TestP2_RecipesAreReadAsDockerfilesAre(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"nothing at all", "\n# only a comment\n\n", ""},
		{"a base and a command", "FROM base\nRUN make\n", "from base\n2 RUN ada in /home: make\n"},
		{"an image", "FROM docker.io/library/debian:12", "from docker.io/library/debian:12\n"},
		{"an image by digest", "from debian@sha256:abc", "from debian@sha256:abc\n"},
		{"small letters and blanks", "  run\t echo  a  b ", "1 RUN ada in /home: echo  a  b\n"},
		{"windows lines", "RUN a\r\nRUN b\r\n", "1 RUN ada in /home: a\n2 RUN ada in /home: b\n"},
		{"continued lines", "RUN a && \\\n    b && \\\n c", "1 RUN ada in /home: a &&     b &&  c\n"},
		{"blanks after the backslash", "RUN a \\  \n b", "1 RUN ada in /home: a  b\n"},
		{"comments amid a continued line", "RUN a \\\n# no\n   # no\n\n && b\nRUN c", "1 RUN ada in /home: a  && b\n6 RUN ada in /home: c\n"},
		{"a comment is one only at the beginning", "RUN echo a # b", "1 RUN ada in /home: echo a # b\n"},
		{"a continued last line", "RUN a \\\n", "1 RUN ada in /home: a\n"},
		{"the shell expands in RUN", `RUN echo $X "${Y}" 'z' \$`, "1 RUN ada in /home: echo $X \"${Y}\" 'z' \\$\n"},
		{"a program and its arguments", `RUN ["echo", "a b", "$X"]`, "1 RUN ada in /home: [\"echo\" \"a b\" \"$X\"]\n"},
		{"a test that is no array", `RUN [ -f x ] && y`, "1 RUN ada in /home: [ -f x ] && y\n"},
		{"a shift is no here-document", `RUN echo $((1<<3)) <<<word`, "1 RUN ada in /home: echo $((1<<3)) <<<word\n"},
		{"ENV in pairs", `ENV A=b B="c d" C='e f' D=g\ h E=`, `1 ENV A="b" B="c d" C="e f" D="g h" E=""` + "\n"},
		{"ENV of one", `ENV A b  c "d"`, `1 ENV A="b  c d"` + "\n"},
		{"ENV with quotes amid a value", `ENV A=x"y z"'$Q'w`, `1 ENV A="xy z$Qw"` + "\n"},
		{"ENV with quotes in quotes", `ENV A="say \"hi\" \n" B='it"s'`, `1 ENV A="say \"hi\" \\n" B="it\"s"` + "\n"},
		{"ENV with equals signs", `ENV A=b=c URL="x?y=z"`, `1 ENV A="b=c" URL="x?y=z"` + "\n"},
		{"ENV over lines", "ENV A=1 \\\n    B=2", `1 ENV A="1" B="2"` + "\n"},
		{"variables", "ENV A=x\nENV B=$A/${A}y C=\"$A $NO\" D='$A' E=\\$A", "1 ENV A=\"x\"\n2 ENV B=\"x/xy\" C=\"x \" D=\"$A\" E=\"$A\"\n"},
		{"a line sees what was before it", "ENV A=1\nENV A=2 B=$A", "1 ENV A=\"1\"\n2 ENV A=\"2\" B=\"1\"\n"},
		{"what the base has", "ENV PATH=/opt:$PATH", `1 ENV PATH="/opt:/bin"` + "\n"},
		{"defaults", `ENV N= A=${X:-"d e"} B=${PATH:-no} C=${PATH:+yes} D=${X:+no} E=${X-u}`, `1 ENV A="d e" B="/bin" C="yes" D="" E="u" N=""` + "\n"},
		{"empty is set without a colon", "ENV N=\nENV A=${N-x} B=${N:-x} C=${N+y} D=${N:+y}", "1 ENV N=\"\"\n2 ENV A=\"\" B=\"x\" C=\"y\" D=\"\"\n"},
		{"defaults of defaults", `ENV A=${X:-${Y:-$PATH}}`, `1 ENV A="/bin"` + "\n"},
		{"WORKDIR", "WORKDIR a\nWORKDIR ../b/./c\nWORKDIR /d//e/\nRUN x", "1 WORKDIR /home/a\n2 WORKDIR /home/b/c\n3 WORKDIR /d/e\n4 RUN ada in /d/e: x\n"},
		{"WORKDIR never leaves the root", "WORKDIR ../../../x", "1 WORKDIR /x\n"},
		{"WORKDIR with a variable and a space", "ENV D=\"/x y\"\nWORKDIR $D z", "1 ENV D=\"/x y\"\n2 WORKDIR /x y z\n"},
		{"USER", "RUN a\nUSER root\nRUN b", "1 RUN ada in /home: a\n2 USER root\n3 RUN root in /home: b\n"},
		{"COPY", "COPY a b/", "1 COPY [\"a\"] to /home/b (directory)\n"},
		{"COPY to a name", "COPY ./a/../b /x/y", "1 COPY [\"b\"] to /x/y\n"},
		{"COPY of everything", "WORKDIR /app\nCOPY . .", "1 WORKDIR /app\n2 COPY [\".\"] to /app (directory)\n"},
		{"COPY of several, with an owner", "COPY --chown=ada:staff a /b *.txt dir/", "1 COPY [\"a\" \"b\" \"*.txt\"] to /home/dir (directory) of ada:staff\n"},
		{"COPY with variables", "ENV V=1.2 U=bob\nCOPY --chown=$U app-${V}.tar /opt/$V/", "1 ENV U=\"bob\" V=\"1.2\"\n2 COPY [\"app-1.2.tar\"] to /opt/1.2 (directory) of bob\n"},
		{"COPY of names with spaces", `COPY ["a b", "c d/"]`, "1 COPY [\"a b\"] to /home/c d (directory)\n"},
		{"COPY of quoted patterns", `COPY "a b" 'x*' y\? z* ./`, `1 COPY ["a b" "x\\*" "y\\?" "z*"] to /home (directory)` + "\n"},
		{"START and READY", "START python3 -m http.server\nREADY curl -sf localhost:8000\nWORKDIR /srv\nUSER bob", "3 WORKDIR /srv\n4 USER bob\nstart bob in /srv: python3 -m http.server\nready curl -sf localhost:8000\n"},
		{"START of a program", `START ["sleep", "1"]`, "start ada in /home: [\"sleep\" \"1\"]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := Parse(c.text)
			if err != nil {
				t.Fatal(err)
			}
			p, err := r.Plan(Base{Env: map[string]string{"PATH": "/bin"}, User: "ada", Workdir: "/home"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, shown(r.From, p)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestP2_AFaultNamesItsLineAndWhatToWrite(t *testing.T) {
	for _, c := range []struct {
		text string
		line int
		says string
	}{
		{"FROM base\nCMD x", 2, "Use START"},
		{"\n\nADD http://x /", 3, "Use COPY"},
		{"EXPOSE 80", 1, "every port"},
		{"RUN a\nFRO base", 2, "A line is one of"},
		{"RUN a\nFROM base", 2, "must be the first"},
		{"FROM base\nFROM other", 2, "one FROM"},
		{"FROM a AS b", 1, "FROM a"},
		{"FROM a b", 1, "one word"},
		{"FROM $X", 1, "no variables"},
		{"FROM --platform=linux/arm64 a", 1, "no flags"},
		{"RUN", 1, "says nothing"},
		{"RUN --mount=type=cache x", 1, "leave --mount out"},
		{"RUN cat <<EOF\nhi\nEOF", 1, "here-documents"},
		{"RUN []", 1, "names no program"},
		{"COPY a", 1, "and a destination"},
		{"COPY a b c", 1, "write c/"},
		{"COPY --from=x a b", 1, "knows no --from"},
		{"COPY --chown a b", 1, "--chown=user:group"},
		{"COPY --chown=a: x y", 1, "--chown=user"},
		{"COPY ../x y", 1, "outside the context"},
		{"COPY a/../../x y", 1, "outside the context"},
		{"COPY [a x", 1, "no pattern"},
		{"COPY $NO x", 1, "not set"},
		{"ENV A", 1, "write ENV A=value"},
		{"ENV A=b c", 1, "quotes around"},
		{"ENV =b", 1, "no name of a variable"},
		{"ENV 1A=b", 1, "no name of a variable"},
		{`ENV A="b`, 1, "not closed"},
		{"ENV A=${X", 1, "closed by }"},
		{"ENV A=${}", 1, "name of a variable"},
		{"ENV A=${X:-d e}", 1, "quotes around"},
		{"USER a b", 1, "one word"},
		{"USER a:b", 1, "groups"},
		{"USER $NO", 1, "not set"},
		{"START a\nSTART b", 2, "line 1"},
		{"# escape=`\nRUN a", 1, "escape directive"},
		{strings.Repeat("RUN a\n", MaxSteps+1), MaxSteps + 1, "at most"},
		{"RUN a\x00", 1, "zero bytes"},
	} {
		r, err := Parse(c.text)
		if err == nil {
			_, err = r.Plan(Base{})
		}
		e := errs.As(err)
		if err == nil || e.Reason != "invalid_recipe" || e.Details["line"] != c.line || !strings.Contains(e.Message, c.says) {
			t.Errorf("%q: %v %v, want line %d and %q", clip(c.text), err, e.Details["line"], c.line, c.says)
		}
	}
}

func TestALongRecipeStaysWithinBounds(t *testing.T) {
	text := "ENV A=x\n" + strings.Repeat("ENV A=$A$A$A$A\n", 30)
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Plan(Base{}); !errs.Is(err, "invalid_recipe") {
		t.Errorf("a value that grows without end: %v", err)
	}
}

func FuzzRecipe(f *testing.F) {
	for _, s := range []string{
		"FROM base\nRUN a \\\n# c\n b\nENV A=b \"c\"=d\nCOPY --chown=a:b x* 'y z' /d/\nWORKDIR ${A:-x}\nUSER u\nSTART a\nREADY b",
		`COPY ["a","b/"]`, `ENV A=${B:-${C:+"x}"}} D=\$`, "ENV A 'b \\\n c'", "RUN [\"a\"", "COPY [a-]* x", "ENV A=\\\\\xff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			if !errs.Is(err, "invalid_recipe") {
				t.Fatalf("%v", err)
			}
			return
		}
		p, err := r.Plan(Base{Env: map[string]string{"A": "x y", "B": ""}})
		if err != nil {
			if e := errs.As(err); e.Reason != "invalid_recipe" || e.Details["line"].(int) < 1 || e.Details["line"].(int) > strings.Count(text, "\n")+1 {
				t.Fatalf("%v at %v", err, e.Details["line"])
			}
			return
		}
		for _, a := range p.Actions {
			if !strings.HasPrefix(a.Workdir, "/") || a.User == "" || strings.Contains(a.Workdir, "/../") {
				t.Fatalf("%+v", a)
			}
			for _, s := range a.Copy.Sources {
				if s == "" || s == ".." || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "../") {
					t.Fatalf("a source leaves the context: %q", s)
				}
			}
		}
	})
}
