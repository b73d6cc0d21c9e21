package up

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
)

// progress shows the steps of a start: on a terminal each as one line that is
// rewritten while it goes on, elsewhere as plain lines.
type progress struct {
	out      io.Writer
	terminal bool

	mu    sync.Mutex
	step  string
	began time.Time
}

const detailWidth = 78

// start begins a step.
func (p *progress) start(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.began = step, time.Now()
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K  … %s", step)
	}
}

// detail shows a line of what the step is doing.
func (p *progress) detail(line string) {
	line = printable(line)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.terminal {
		fmt.Fprintf(p.out, "      %s\n", line)
		return
	}
	text := []rune(fmt.Sprintf("  … %s: %s", p.step, line))
	fmt.Fprintf(p.out, "\r\x1b[K%s", string(text[:min(len(text), detailWidth)]))
}

// done ends a step with what came of it.
func (p *progress) done(result string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear := ""
	if p.terminal {
		clear = "\r\x1b[K"
	}
	if result != "" {
		result = "  " + result
	}
	fmt.Fprintf(p.out, "%s  ✓ %-22s %6.1f s%s\n", clear, p.step, time.Since(p.began).Seconds(), result)
	p.step = ""
}

// say prints a line between or during steps.
func (p *progress) say(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.step != "" {
		fmt.Fprintf(p.out, "\r\x1b[K%s\n  … %s", line, p.step)
		return
	}
	fmt.Fprintln(p.out, line)
}

// abort leaves a step that failed on a line of its own.
func (p *progress) abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.step != "" {
		fmt.Fprintf(p.out, "\r\x1b[K  ✗ %s\n", p.step)
	}
	p.step = ""
}

// printable takes control characters out of installers' chatter.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}
