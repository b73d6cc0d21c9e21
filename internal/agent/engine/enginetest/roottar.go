package enginetest

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"strings"

	"skerry.dev/skerry/internal/agent/engine"
)

// rootTar: what was written is in the archive; whoever does not read on, and
// whoever asks about an ended instance, gets an error, and the instance goes on.
func rootTar(b *bench) {
	if _, ok := b.e.(engine.RootArchiver); !ok {
		b.Skip("the engine makes no archives: optional by its contract")
	}
	spec := b.Spec(b.T)
	h := b.start(spec)
	content := strings.Repeat("written ", 40_000)
	if _, err := b.try(h, "POST", "/file?path=/noted", []byte(content)); err != nil {
		b.Fatal(err)
	}
	enough := errors.New("enough")
	if err := engine.RootTar(b.Context(), b.e, h, &refusing{left: 1000, err: enough}); !errors.Is(err, enough) {
		b.Errorf("nobody reads on: %v", err)
	}
	for range 2 {
		var archive bytes.Buffer
		if err := engine.RootTar(b.Context(), b.e, h, &archive); err != nil {
			b.Fatalf("archive: %v", err)
		}
		if got := find(b, &archive, "/noted"); got != content {
			b.Errorf("the file has %d bytes in the archive, not %d", len(got), len(content))
		}
	}
	b.up(h)
	if err := b.e.Freeze(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	var archive bytes.Buffer
	if err := engine.RootTar(b.Context(), b.e, h, &archive); err != nil || find(b, &archive, "/noted") != content {
		b.Errorf("of a frozen instance: %v", err)
	}
	if err := b.e.Thaw(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	b.up(h)
	if err := b.e.Stop(b.Context(), h); err != nil {
		b.Fatal(err)
	}
	if err := engine.RootTar(b.Context(), b.e, h, io.Discard); !errors.Is(err, engine.ErrExited) {
		b.Errorf("of an ended instance: %v", err)
	}
	b.destroy(spec.ID)
}

// find returns a regular file of an archive, which has to be whole.
func find(b *bench, archive io.Reader, name string) (content string) {
	b.Helper()
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return content
		}
		if err != nil {
			b.Fatalf("the archive is not whole: %v", err)
		}
		if path.Clean("/"+h.Name) == name {
			text, err := io.ReadAll(r)
			if err != nil {
				b.Fatal(err)
			}
			content = string(text)
		}
	}
}

// refusing takes so many bytes and no more.
type refusing struct {
	left int
	err  error
}

func (r *refusing) Write(p []byte) (int, error) {
	if len(p) > r.left {
		return 0, r.err
	}
	r.left -= len(p)
	return len(p), nil
}
