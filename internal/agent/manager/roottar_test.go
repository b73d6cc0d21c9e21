package manager_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// What a running sandbox has changed is archived in exactly its incarnation, and
// an engine's failure leaves it running.
func TestP2_WhatASandboxHasChanged(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	a := boot(t, w, dir)
	r := mustCreate(t, a, spec(id.NewSandbox(), 2))
	in, ok := w.sim.Instance(r.Instance)
	if !ok {
		t.Fatal("there is no instance")
	}
	in.SetFile("/a/b", []byte("content"))
	img, err := a.ImageOf(r.Sandbox, 2)
	if err != nil || img.Digest != "d1" {
		t.Errorf("it runs on %v, %v", img, err)
	}
	var archive bytes.Buffer
	if err := a.RootTar(t.Context(), r.Sandbox, 2, &archive); err != nil {
		t.Fatal(err)
	}
	files := tar.NewReader(&archive)
	h, err := files.Next()
	if err != nil || h.Name != "./a/b" {
		t.Fatalf("archived %v, %v", h, err)
	}
	if b, err := io.ReadAll(files); err != nil || string(b) != "content" {
		t.Errorf("archived %q, %v", b, err)
	}
	w.sim.Script(fake.RootTar, fake.Fault{Err: errors.New("canary"), Times: 1})
	if err := a.RootTar(t.Context(), r.Sandbox, 2, io.Discard); !errs.Is(err, "export_failed") {
		t.Errorf("a failing engine: %v", err)
	}
	w.sim.Script(fake.RootTar, fake.Fault{Err: engine.ErrUnsupported, Times: 1})
	if err := a.RootTar(t.Context(), r.Sandbox, 2, io.Discard); !errs.Is(err, "export_unsupported") {
		t.Errorf("an engine that cannot: %v", err)
	}
	for inc, want := range map[uint64]string{1: "stale_incarnation", 3: "unknown_sandbox"} {
		if err := a.RootTar(t.Context(), r.Sandbox, inc, io.Discard); !errs.Is(err, want) {
			t.Errorf("incarnation %d: %v", inc, err)
		}
	}
	if err := a.Destroy(t.Context(), r.Sandbox, 2, "deleted"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ImageOf(r.Sandbox, 2); err == nil {
		t.Error("a destroyed sandbox has an image")
	}
}
