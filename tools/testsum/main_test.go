package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestSummary(t *testing.T) {
	events := []event{
		{Action: "output", Package: "x/a", Test: "TestGood", Output: "noise\n"},
		{Action: "pass", Package: "x/a", Test: "TestGood", Elapsed: 2},
		{Action: "output", Package: "x/a", Test: "TestBad", Output: "    a_test.go:3: want 42\n"},
		{Action: "fail", Package: "x/a", Test: "TestBad", Elapsed: 0.1},
		{Action: "output", Package: "x/a", Test: "TestAway", Output: "    a_test.go:9: needs gvisor: no runsc\n"},
		{Action: "skip", Package: "x/a", Test: "TestAway"},
		{Action: "fail", Package: "x/a", Elapsed: 2.2},
		{Action: "build-output", ImportPath: "x/b [x/b.test]", Output: "b.go:1: undefined: y\n"},
		{Action: "fail", Package: "x/b", FailedBuild: "x/b [x/b.test]"},
		{Action: "skip", Package: "x/none"},
	}
	var in, out bytes.Buffer
	for _, e := range events {
		if err := json.NewEncoder(&in).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	s := newSummary(&out)
	if err := s.read(&in); err != nil {
		t.Fatal(err)
	}
	last := s.finish("packages", 3, 5*time.Second)
	if want := "packages: 1 passed, 2 failed, 1 skipped in 5 s"; last != want {
		t.Errorf("last line %q, want %q", last, want)
	}
	for _, want := range []string{"want 42", "undefined: y", "a.TestAway: needs gvisor: no runsc", "2.00 s  a.TestGood"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing from:\n%s", want, out.String())
		}
	}
	for _, unwanted := range []string{"noise", "x/none"} {
		if strings.Contains(out.String(), unwanted) {
			t.Errorf("%q is in:\n%s", unwanted, out.String())
		}
	}
}

// TestSummary_ADeathOutsideAnyTestIsAFailure: a panic or a time-out ends the
// process, and the test that ran has no event of its own.
func TestSummary_ADeathOutsideAnyTestIsAFailure(t *testing.T) {
	var out bytes.Buffer
	s := newSummary(&out)
	s.event(event{Action: "output", Package: "x/a", Test: "TestHangs", Output: "panic: test timed out\n"})
	s.event(event{Action: "fail", Package: "x/a", Elapsed: 600})
	if s.failed != 1 {
		t.Errorf("%d failed, want 1", s.failed)
	}
	if !strings.Contains(out.String(), "test timed out") {
		t.Errorf("the reason is missing:\n%s", out.String())
	}
}
