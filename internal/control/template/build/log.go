package build

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"skerry.dev/skerry/internal/kernel/id"
)

// Bounds of a log.
const (
	maxLine  = 8 << 10  // bytes; what is longer goes on in the next one
	maxLog   = 10 << 20 // of one build
	maxLines = 200_000  // of one build
	maxWait  = 512      // lines that are not written yet
	writeGap = 150 * time.Millisecond
)

// logger writes what a build says, soon but not line by line. It is safe for
// concurrent use.
type logger struct {
	store Store
	feed  *Feed
	lease Lease
	build id.Build
	log   *slog.Logger

	writing sync.Mutex // held by whoever writes

	mu      sync.Mutex
	step    int
	seq     int
	bytes   int64
	cut     bool
	waiting []Line
	broken  error
	parts   map[string][]byte // of lines that are not complete
	full    chan struct{}     // says that it is time to write
}

// newLogger goes on where a log ends.
func newLogger(ctx context.Context, store Store, feed *Feed, lease Lease, b id.Build, log *slog.Logger) (*logger, error) {
	seq, bytes, err := store.LastLine(ctx, b)
	if err != nil {
		return nil, err
	}
	return &logger{
		store: store, feed: feed, lease: lease, build: b, log: log, seq: seq, bytes: bytes, cut: bytes >= maxLog || seq >= maxLines,
		parts: map[string][]byte{}, full: make(chan struct{}, 1),
	}, nil
}

// run writes from time to time until ctx ends.
func (l *logger) run(ctx context.Context) {
	ticker := time.NewTicker(writeGap)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-l.full:
		}
		if err := l.flush(ctx); err != nil && ctx.Err() == nil {
			l.log.WarnContext(ctx, "cannot write a build's log", "build_id", l.build.String(), "error", err)
		}
	}
}

// at says of which step the next lines are.
func (l *logger) at(step int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step = step
}

// say adds a line of the build itself.
func (l *logger) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(System, fmt.Sprintf(format, args...))
}

// line adds a line of somebody else; an error says that nobody reads on.
func (l *logger) line(text string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(System, text)
	return l.broken
}

// output adds what a command wrote. Lines are told when they are complete.
func (l *logger) output(stream string, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	part := append(l.parts[stream], data...)
	for {
		i := bytes.IndexByte(part, '\n')
		switch {
		case i >= 0:
			l.add(stream, string(part[:i]))
			part = part[i+1:]
			continue
		case len(part) > maxLine:
			l.add(stream, string(part))
			part = nil
		}
		break
	}
	l.parts[stream] = append([]byte(nil), part...)
}

// endOutput adds the last lines, which nothing ended.
func (l *logger) endOutput() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, stream := range []string{Stdout, Stderr} {
		if len(l.parts[stream]) > 0 {
			l.add(stream, string(l.parts[stream]))
		}
		delete(l.parts, stream)
	}
}

// add splits what is too long. The caller holds mu.
func (l *logger) add(stream, text string) {
	text = strings.TrimSuffix(text, "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:] // a line that was written over shows as it was last
	}
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "�"), "\x00", "�")
	for {
		part := text
		if len(part) > maxLine {
			cut := maxLine
			for cut > 0 && !utf8.RuneStart(part[cut]) {
				cut--
			}
			part = part[:cut]
		}
		text = text[len(part):]
		l.put(stream, part)
		if text == "" {
			return
		}
	}
}

func (l *logger) put(stream, text string) {
	if l.cut && stream != System || l.bytes > 2*maxLog || l.seq > 2*maxLines {
		return
	}
	l.bytes += int64(len(text))
	l.seq++
	l.waiting = append(l.waiting, Line{Seq: l.seq, Step: l.step, At: time.Now(), Stream: stream, Text: text})
	if (l.bytes >= maxLog || l.seq >= maxLines) && !l.cut {
		l.cut = true
		l.seq++
		l.waiting = append(l.waiting, Line{Seq: l.seq, Step: l.step, At: time.Now(), Stream: System, Text: fmt.Sprintf("The log has %d MB or %d lines; what commands say is left out from here on.", maxLog>>20, maxLines)})
	}
	if len(l.waiting) >= maxWait/2 {
		select {
		case l.full <- struct{}{}:
		default:
		}
	}
}

// crowded reports whether so much waits to be written that commands are to wait
// too.
func (l *logger) crowded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) >= maxWait
}

// flush writes what waits.
func (l *logger) flush(ctx context.Context) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	lines := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	if len(lines) == 0 {
		return nil
	}
	err := l.store.AddLines(ctx, l.lease, l.build, lines)
	l.mu.Lock()
	if err != nil {
		l.waiting = append(lines, l.waiting...)
	}
	l.broken = err
	l.mu.Unlock()
	if err == nil {
		l.feed.Hint(l.build)
	}
	return err
}
