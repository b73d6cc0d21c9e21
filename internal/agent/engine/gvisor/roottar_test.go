package gvisor_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net/url"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/engine"
)

// A file far larger than the instance's memory, whose size changes meanwhile, is
// archived by an instance that lives on; attributes of any bytes are kept. See
// tools/runsc/0005.
func TestP2_FilesLargerThanTheMemoryAreArchived(t *testing.T) {
	w := newWorld(t)
	e := w.engine(t)
	_, h := running(t, w, e)
	capability := "\x01\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, path := range []string{
		"/file?path=/large", "/truncate?path=/large&bytes=2147483648", "/file?path=/capable",
		"/xattr?path=/capable&name=security.capability&value=" + url.QueryEscape(capability),
	} {
		if err := get(t, e, h, path); err != nil {
			t.Fatal(err)
		}
	}
	from, to := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := engine.RootTar(t.Context(), e, h, to)
		_ = to.CloseWithError(err)
		ended <- err
	}()
	var large int64
	var capable string
	for r := tar.NewReader(from); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if hdr.Name == "./capable" {
			capable = hdr.PAXRecords["SCHILY.xattr.security.capability"]
		}
		if hdr.Name != "./large" {
			continue
		}
		buf := make([]byte, 1<<20)
		for {
			n, err := r.Read(buf)
			if large == 0 { // the sentry is in the middle of it
				if err := get(t, e, h, "/truncate?path=/large&bytes=4096"); err != nil {
					t.Error(err)
				}
			}
			large += int64(n)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	_, _ = io.Copy(io.Discard, from)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if large != 2<<30 || capable != capability {
		t.Errorf("archived %d bytes, and the attribute %q", large, capable)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := getWithin(ctx, e, h, "/info"); err != nil {
		t.Errorf("the instance: %v", err)
	}
}
