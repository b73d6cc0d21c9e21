package build

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/kernel/id"
)

// written counts the lines that reach the store.
type written struct {
	Store
	lines int
	cuts  int
}

func (w *written) LastLine(context.Context, id.Build) (int, int64, error) { return 0, 0, nil }

func (w *written) AddLines(_ context.Context, _ Lease, _ id.Build, lines []Line) error {
	w.lines += len(lines)
	for _, l := range lines {
		if strings.Contains(l.Text, "left out from here on") {
			w.cuts++
		}
	}
	return nil
}

// Lines of nothing have no bytes, and are bounded all the same.
func TestALogOfEmptyLinesIsBounded(t *testing.T) {
	store := &written{}
	log := slog.New(slog.DiscardHandler)
	l, err := newLogger(t.Context(), store, NewFeed(store, log), Lease{}, id.NewBuild(), log)
	if err != nil {
		t.Fatal(err)
	}
	part := bytes.Repeat([]byte("\n"), 1000)
	for range 2 * maxLines / len(part) {
		l.output(Stdout, part)
		if err := l.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.say("The end.")
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if store.lines != maxLines+2 || store.cuts != 1 {
		t.Errorf("%d lines, %d times cut", store.lines, store.cuts)
	}
}
