package sandboxiohttp_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/testkit"
)

func (w *world) file(method, path string, body io.Reader, headers ...string) (*http.Response, []byte, error) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+"/files?path="+url.QueryEscape(path), body)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return res, data, err
}

func TestS9_UploadAnswersTheEntryAndDownloadTheBytes(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"f.html", "a b.txt", `q"uo\te`, "é.bin", "日本語", "new\nline", "%2F"} {
		res, raw, err := w.file("PUT", name, strings.NewReader("<script>0123"))
		var entry struct {
			Name, Path, Type, Mode string
			Size                   int64
		}
		if err != nil || res.StatusCode != 200 || json.Unmarshal(raw, &entry) != nil || entry.Name != name || entry.Size != 12 || entry.Type != "file" {
			t.Fatalf("%q: %v %s %v", name, res, raw, err)
		}
		res, raw, err = w.file("GET", name, nil)
		if err != nil || res.StatusCode != 200 || string(raw) != "<script>0123" || res.ContentLength != 12 {
			t.Fatalf("%q: %v %q %v", name, res, raw, err)
		}
		if res.Header.Get("Content-Type") != "application/octet-stream" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%q may be sniffed: %v", name, res.Header)
		}
		kind, params, err := mime.ParseMediaType(res.Header.Get("Content-Disposition"))
		if err != nil || kind != "attachment" || params["filename"] != name {
			t.Errorf("%q: disposition %q gives %q, %v", name, res.Header.Get("Content-Disposition"), params["filename"], err)
		}
	}
	res, raw, err := w.file("GET", "f.html", nil, "Range", "bytes=8-9")
	if err != nil || res.StatusCode != 206 || string(raw) != "01" || res.Header.Get("Content-Range") != "bytes 8-9/12" {
		t.Errorf("range: %v %q %v", res, raw, err)
	}
	res, _, err = w.file("GET", "f.html", nil, "If-Modified-Since", res.Header.Get("Last-Modified"))
	if err != nil || res.StatusCode != 304 {
		t.Errorf("unchanged: %v %v", res, err)
	}
	res, raw, err = w.file("GET", "none", nil)
	if err != nil || res.StatusCode != 404 || !bytes.Contains(raw, []byte("file_not_found")) {
		t.Errorf("nothing there: %v %s %v", res, raw, err)
	}
	for header, value := range map[string]string{"Content-Encoding": "gzip", "Content-Type": "multipart/form-data; boundary=x"} {
		if res, _, err = w.file("PUT", "x", strings.NewReader("x"), header, value); err != nil || res.StatusCode != 400 {
			t.Errorf("%s: %v %v", header, res, err)
		}
	}
}

func TestFI01_ADownloadThatIsCutNeverLooksWhole(t *testing.T) {
	w := newWorld(t)
	data := bytes.Repeat([]byte("0123456789"), 500_000)
	if res, _, err := w.file("PUT", "big", bytes.NewReader(data)); err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	cut := 0
	for n := range 50 {
		w.link.CutAfter(int64(600 + n*90_000))
		res, raw, err := w.file("GET", "big", nil)
		switch {
		case err != nil:
			cut++
		case res.StatusCode == 200 && bytes.Equal(raw, data): // cut before its first byte: the client asked again by itself
		case res.StatusCode == 200:
			t.Errorf("cut %d: %d bytes without an error", n, len(raw))
		}
	}
	if cut < 45 {
		t.Errorf("only %d of 50 downloads were cut", cut)
	}
	if _, raw, err := w.file("GET", "big", nil); err != nil || !bytes.Equal(raw, data) {
		t.Errorf("uncut: %d bytes, %v", len(raw), err)
	}
}

func TestFI01_AnUploadThatIsCutLeavesTheOldFile(t *testing.T) {
	w := newWorld(t)
	if res, _, err := w.file("PUT", "kept", strings.NewReader("old")); err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	for n := range 25 {
		r, pw := io.Pipe()
		go func() {
			_, _ = pw.Write(make([]byte, n*30_000))
			pw.CloseWithError(errors.New("gone"))
		}()
		if res, _, err := w.file("PUT", "kept", r); err == nil && res.StatusCode == 200 {
			t.Fatalf("cut %d was acknowledged", n)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(w.guest.Home, "kept")); err != nil || string(raw) != "old" {
		t.Errorf("got %q, %v", raw, err)
	}
	testkit.Eventually(t, 5e9, "nothing is left behind", func() bool {
		names, err := os.ReadDir(w.guest.Home)
		return err == nil && len(names) == 1
	})
}
