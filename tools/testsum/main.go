// Testsum runs `go test -json` and says what a person wants to know of it: the
// seconds of each package, each failure with its output, what was skipped and
// why, the slowest tests, and counts.
//
//	testsum -name packages -- -race ./...
//
// Its last line is also added to a file, for whoever runs several of these and
// wants to close with all of them.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

func main() {
	name := flag.String("name", "tests", "what this run is called in its last line")
	slow := flag.Int("slow", 10, "how many of the slowest tests are named")
	last := flag.String("last", "", "file the last line is added to; empty for none")
	flag.Parse()
	code, err := run(os.Stdout, *name, *slow, *last, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	os.Exit(code)
}

func run(out io.Writer, name string, slow int, last string, args []string) (int, error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	s := newSummary(out)
	readErr := s.read(stdout)
	waitErr := cmd.Wait()
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) {
		return 0, waitErr
	}
	if readErr != nil {
		return 0, readErr
	}
	line := s.finish(name, slow, time.Since(start))
	if last != "" {
		if err := keep(last, line); err != nil {
			return 0, err
		}
	}
	if waitErr != nil || s.failed > 0 {
		return 1, nil
	}
	return 0, nil
}

func keep(file, line string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

// event is one line of `go test -json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

type timed struct {
	name    string
	seconds float64
}

type skip struct{ name, reason string }

type summary struct {
	out    io.Writer
	output map[string][]string // by package and test, until its end is known
	build  map[string][]string // compiler output by import path
	tests  []timed
	// testFailed names the packages of which a test reported its own failure.
	testFailed map[string]bool
	skips      []skip
	passed     int
	failed     int
	skipped    int
}

// maxOutput bounds what is kept of one test's output, in lines.
const maxOutput = 4000

func newSummary(out io.Writer) *summary {
	return &summary{out: out, output: map[string][]string{}, build: map[string][]string{}, testFailed: map[string]bool{}}
}

func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(s.out, "%s", line) // not an event: go's own words
			} else {
				s.event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) event(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		s.build[e.ImportPath] = append(s.build[e.ImportPath], e.Output)
	case "output":
		if len(s.output[key]) < maxOutput {
			s.output[key] = append(s.output[key], e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endOfPackage(e)
		} else {
			s.endOfTest(e)
		}
		delete(s.output, key)
	}
}

func (s *summary) endOfTest(e event) {
	short := e.Package[strings.LastIndexByte(e.Package, '/')+1:] + "." + e.Test
	output := s.output[e.Package+" "+e.Test]
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		s.failed++
		s.testFailed[e.Package] = true
		fmt.Fprintf(s.out, "--- FAIL %s (%.2f s)\n%s", short, e.Elapsed, indent(output))
	case "skip":
		s.skipped++
		s.skips = append(s.skips, skip{short, reason(output)})
	}
	if !strings.Contains(e.Test, "/") {
		s.tests = append(s.tests, timed{short, e.Elapsed})
	}
}

func (s *summary) endOfPackage(e event) {
	output := s.output[e.Package+" "]
	mark := "ok  "
	switch {
	case e.Action == "fail":
		mark = "FAIL"
		if e.FailedBuild != "" || !s.testFailed[e.Package] {
			s.failed++ // it did not build, or died outside of any test's own end
		}
	case e.Action == "skip":
		return // no test files
	}
	cached := ""
	if slices.ContainsFunc(output, func(l string) bool { return strings.Contains(l, "(cached)") }) {
		cached = " (cached)"
	}
	fmt.Fprintf(s.out, "%s %8.2f s  %s%s\n", mark, e.Elapsed, e.Package, cached)
	if e.Action == "fail" {
		// A test that never ended (a panic, a time-out) has no event of its own.
		for key, lines := range s.output {
			if strings.HasPrefix(key, e.Package+" ") {
				fmt.Fprint(s.out, indent(lines))
				delete(s.output, key)
			}
		}
		fmt.Fprint(s.out, indent(s.build[e.FailedBuild]))
	}
}

// finish prints what is known only at the end, and returns the last line.
func (s *summary) finish(name string, slow int, took time.Duration) string {
	if len(s.skips) > 0 {
		fmt.Fprintln(s.out, "skipped:")
		for _, k := range s.skips {
			fmt.Fprintf(s.out, "  %s: %s\n", k.name, k.reason)
		}
	}
	slices.SortFunc(s.tests, func(a, b timed) int {
		if a.seconds > b.seconds {
			return -1
		}
		if a.seconds < b.seconds {
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	if n := min(slow, len(s.tests)); n > 0 && s.tests[0].seconds >= 1 {
		fmt.Fprintln(s.out, "slowest:")
		for _, t := range s.tests[:n] {
			if t.seconds >= 0.5 {
				fmt.Fprintf(s.out, "  %7.2f s  %s\n", t.seconds, t.name)
			}
		}
	}
	line := fmt.Sprintf("%s: %d passed, %d failed, %d skipped in %.0f s", name, s.passed, s.failed, s.skipped, took.Seconds())
	fmt.Fprintln(s.out, line)
	return line
}

func indent(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		if strings.HasPrefix(l, "=== ") {
			continue
		}
		b.WriteString("    ")
		b.WriteString(strings.TrimRight(l, "\n"))
		b.WriteByte('\n')
	}
	return b.String()
}

// reason finds what t.Skip was given: the line with the file's name.
func reason(output []string) string {
	for _, l := range output {
		l = strings.TrimSpace(l)
		if _, text, ok := strings.Cut(l, ".go:"); ok {
			if _, text, ok = strings.Cut(text, ": "); ok {
				return text
			}
		}
	}
	return "no reason given"
}
