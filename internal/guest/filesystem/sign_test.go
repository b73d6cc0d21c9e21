package filesystem

import (
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/guest/passwd"
)

const exampleToken = "skerry-example-token-0001"

func TestSignatureVectors(t *testing.T) {
	expiry := int64(1893456000)
	for _, c := range []struct {
		path, op, user string
		expires        *int64
		want           string
	}{
		{"/home/user/a b.txt", "read", "user", nil, "v1_6M5+8Wg/gUqYEnGeaHNiEVu3ZFSWLQWE7bODUEZr+ac"},
		{"", "write", "", nil, "v1_ZOrR2X+UCfSg2h9LM7Nhw/TMD0x/SpMSNVxAdcr7ufU"},
		{"/tmp/é.bin", "read", "root", &expiry, "v1_UdEqVnSJw5MoJd/VG9IDSBTS9GZcmkIwsUy1YDjgVqI"},
	} {
		if got := Signature(c.path, c.op, c.user, exampleToken, c.expires); got != c.want {
			t.Errorf("%q: %s", c.path, got)
		}
	}
}

func TestSignatureIsComparedBeforeTheExpiry(t *testing.T) {
	q := url.Values{"path": {"x"}, "signature": {"v1_wrong"}, "signature_expiration": {"1"}}
	if err := checkSignature(q, opRead, exampleToken, time.Now()); err == nil || err.Error() != "invalid signature" {
		t.Errorf("got %v", err)
	}
}

func TestAcceptEncoding(t *testing.T) {
	for header, want := range map[string][2]float64{
		"": {0, 1}, "gzip": {1, 1}, "gzip, deflate, br": {1, 1}, "identity": {0, 1}, "*": {0, 1},
		"gzip;q=0": {0, 1}, "identity;q=0": {0, 0}, "*;q=0": {0, 0}, "gzip;q=0.5, identity;q=0": {0.5, 0}, "*;q=0, gzip": {1, 0},
	} {
		if zip, plain := acceptEncoding([]string{header}); zip != want[0] || plain != want[1] {
			t.Errorf("%q: gzip %v, identity %v", header, zip, plain)
		}
	}
}

func FuzzCheckSignature(f *testing.F) {
	f.Add("path=x&signature=v1_a&signature_expiration=9")
	f.Add("signature=%zz")
	f.Fuzz(func(t *testing.T, raw string) {
		q, _ := url.ParseQuery(raw)
		if checkSignature(q, opRead, exampleToken, time.Unix(1<<40, 0)) == nil {
			t.Errorf("accepted %q", raw)
		}
	})
}

func FuzzPartName(f *testing.F) {
	f.Add(`form-data; name="file"; filename="a/b.txt"`)
	f.Add(`form-data; name="file"; filename*=UTF-8''%2e%2e%2f`)
	f.Fuzz(func(t *testing.T, header string) {
		_, file := partName(header)
		p, err := resolve(passwd.User{Home: "/home/user"}, file)
		if err == nil && (!filepath.IsAbs(p) || strings.Contains(p, "\x00") || filepath.Clean(p) != p) {
			t.Errorf("%q became %q", header, p)
		}
	})
}

func FuzzRangeAndEncoding(f *testing.F) {
	f.Add("bytes=0-1,3-", "gzip;q=0.1")
	f.Add("bytes=-5", "identity;q=0, *;q=1")
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("0123456789"), 0o644); err != nil {
		f.Fatal(err)
	}
	accounts := filepath.Join(dir, "passwd")
	if err := os.WriteFile(accounts, []byte("user:x:1:1::"+dir+":/bin/sh\n"), 0o644); err != nil {
		f.Fatal(err)
	}
	s := New(Options{
		Accounts:    passwd.New(accounts, ""),
		DefaultUser: func() string { return "user" }, AccessToken: func() string { return "" },
	})
	f.Fuzz(func(t *testing.T, ranges, accept string) {
		r := httptest.NewRequest("GET", "/files?path=f", nil)
		r.Header = http.Header{"Range": {ranges}, "Accept-Encoding": {accept}}
		w := httptest.NewRecorder()
		s.handleDownload(w, r)
		switch w.Code {
		case 200, 206, 406, 416:
		default:
			t.Errorf("range %q, accept %q: %d", ranges, accept, w.Code)
		}
	})
}

func FuzzUploadParts(f *testing.F) {
	f.Add("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nhello\r\n--b--\r\n")
	f.Fuzz(func(t *testing.T, body string) {
		dir := t.TempDir()
		s := New(Options{})
		// One fixed path: what the parts are called must not lead out of here.
		_, _ = s.uploadParts(multipart.NewReader(strings.NewReader(body), "b"), passwd.User{Home: dir}, filepath.Join(dir, "f"), nil)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "f" {
				t.Errorf("left %q", e.Name())
			}
		}
	})
}
