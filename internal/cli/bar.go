package cli

import (
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// bar shows how far a copy is, on a terminal; elsewhere it only counts.
type bar struct {
	out   io.Writer // nil: not a terminal
	start time.Time
	drawn time.Time
	total int64 // bytes of all files

	name     string
	at, size int64 // of the present file; size −1 is unknown
}

const (
	barWidth = 24
	barEvery = 100 * time.Millisecond
)

func newBar(e *Env) *bar {
	b := &bar{start: time.Now()}
	if e.stderrIsTerminal() {
		b.out = e.Stderr
	}
	return b
}

// next begins another file.
func (b *bar) next(name string, size int64) {
	b.name, b.at, b.size = path.Base(name), 0, size
}

// reader counts what passes.
func (b *bar) reader(r io.Reader) io.Reader { return &counted{r, b} }

type counted struct {
	io.Reader
	b *bar
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.b.add(int64(n))
	return n, err
}

func (b *bar) add(n int64) {
	b.at += n
	b.total += n
	if b.out != nil && time.Since(b.drawn) >= barEvery {
		b.drawn = time.Now()
		fmt.Fprintf(b.out, "\r\x1b[K%s", b.line(time.Since(b.start)))
	}
}

// set says how far one thing is that somebody else moves.
func (b *bar) set(name string, at, size int64) {
	if b.name != name {
		b.name, b.start = name, time.Now()
	}
	b.at, b.size, b.total = 0, size, 0
	b.add(at)
}

func (b *bar) line(since time.Duration) string {
	rate := size(int64(float64(b.total)/max(since.Seconds(), 0.001))) + "/s"
	name := clean(b.name)
	if len([]rune(name)) > 28 {
		name = string([]rune(name)[:27]) + "…"
	}
	if b.size <= 0 {
		return fmt.Sprintf("%-28s %s  %s", name, size(b.at), rate)
	}
	full := int(min(b.at, b.size) * barWidth / b.size)
	return fmt.Sprintf("%-28s %s%s %3d %%  %s of %s  %s", name, strings.Repeat("█", full), strings.Repeat("░", barWidth-full),
		min(b.at, b.size)*100/b.size, size(b.at), size(b.size), rate)
}

// done clears the line.
func (b *bar) done() {
	if b.out != nil {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
