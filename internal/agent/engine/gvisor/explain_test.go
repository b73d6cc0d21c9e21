package gvisor

import (
	"os"
	"path/filepath"
	"testing"
)

// A guest makes the sentry write warnings into the log of its panics.
func TestAWarningIsNoPanic(t *testing.T) {
	const warning = "I1121 23:50:19.910788       1 rate_limited.go:36] A process tried to create a raw socket without CAP_NET_RAW.\n"
	for text, want := range map[string]bool{
		"":                                       false,
		warning:                                  false,
		warning + "about panic: at the sentry\n": false,
		"panic: Unknown syscall 56 error: createSysmsgThread\n\ngoroutine 1 [running]:\n":       true,
		warning + "fatal error: out of memory\n":                                                true,
		warning + "SIGSEGV: segmentation violation\n":                                           true,
		warning + "runtime: program exceeds 10000-thread limit\nfatal error: thread exhaustion": true,
	} {
		path := filepath.Join(t.TempDir(), "panic.log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := tellsPanic(path); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if tellsPanic(filepath.Join(t.TempDir(), "none")) {
		t.Error("no file tells of a panic")
	}
}
