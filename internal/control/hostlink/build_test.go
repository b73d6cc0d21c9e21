package hostlink

import (
	"strings"
	"testing"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/kernel/errs"
)

// What an image says of itself is what sandboxes are started with, or is refused
// before anything is made of it.
func TestP2_TS06_WhatAnImageSaysOfItself(t *testing.T) {
	for name, c := range map[string]struct {
		image  *agentv1.BuiltImage
		reason string
	}{
		"lines":                  {&agentv1.BuiltImage{Env: map[string]string{"A": "two\nlines = \"x\"\t", "B": ""}}, ""},
		"a zero byte in a value": {&agentv1.BuiltImage{Env: map[string]string{"A": "b\x00C=d"}}, "invalid_image"},
		"a zero byte in a name":  {&agentv1.BuiltImage{Env: map[string]string{"A\x00": "b"}}, "invalid_image"},
		"no name":                {&agentv1.BuiltImage{Env: map[string]string{"": "b"}}, "invalid_image"},
		"a name like a line":     {&agentv1.BuiltImage{Env: map[string]string{"A=B": "c"}}, "invalid_image"},
		"a zero byte elsewhere":  {&agentv1.BuiltImage{Command: []string{"a", "b\x00"}}, "invalid_image"},
		"a user":                 {&agentv1.BuiltImage{User: "u\x00"}, "invalid_image"},
		"too much":               {&agentv1.BuiltImage{Workdir: strings.Repeat("/a", maxImageBytes)}, "image_too_large"},
	} {
		got, err := imageOf(c.image)
		if c.reason != "" && !errs.Is(err, c.reason) || c.reason == "" && (err != nil || len(got.Env) != len(c.image.GetEnv())) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
