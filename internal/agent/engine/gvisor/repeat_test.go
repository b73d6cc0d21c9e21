package gvisor

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// What a save says that met with a change, as it was seen, and what it says when
// it failed otherwise.
func TestS5_OnlyWhatChangedMeanwhileIsRepeated(t *testing.T) {
	for text, want := range map[string]bool{
		"encoding error: reflect: call of reflect.Value.Interface on zero Value:\ngoroutine 2346 [running]:\n": true,
		"encoding error: reflect: call of reflect.Value.Type on zero Value:\n":                                 true,
		"error serializing object &wire.Map{Keys:[]wire.Object{(*wire.Struct)(0x12fb6ec66000), (*wire.":        true,
		"error serializing type or ID: EOF": true,
		"EOF":                               false, // the sentry has ended
		"context deadline exceeded":         false,
		"checkpoint not supported":          false,
	} {
		if got := changedMeanwhile(fmt.Errorf("gvisor: %s: %w", callCheckpoint, errors.New(text))); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if changedMeanwhile(fmt.Errorf("gvisor: %s: %w: error serializing object &wire.Map{", callCheckpoint, unix.ENOSPC)) {
		t.Error("a full disk does not get emptier")
	}
}
