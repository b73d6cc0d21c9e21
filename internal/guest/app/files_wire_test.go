package app_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	fspb "skerry.dev/skerry/gen/guestrpc/filesystem"
	"skerry.dev/skerry/internal/guest/filesystem"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/procfs"
	"skerry.dev/skerry/internal/testkit"
)

const octets = "application/octet-stream"

func query(kv ...string) string {
	q := url.Values{}
	for i := 0; i+1 < len(kv); i += 2 {
		q.Set(kv[i], kv[i+1])
	}
	return "/files?" + q.Encode()
}

// leftovers are unfinished uploads below the home.
func (d *daemon) leftovers() []string {
	var found []string
	_ = filepath.WalkDir(d.home, func(p string, _ os.DirEntry, _ error) error {
		if strings.Contains(p, ".skerry-partial-") {
			found = append(found, p)
		}
		return nil
	})
	return found
}

func TestFI01_SizesRoundTrip(t *testing.T) {
	d := ready(t)
	for _, size := range []int{0, 1, 18<<10 - 1, 18<<10 + 1, 64<<20 + 1} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i * 2654435761 >> 7)
		}
		path := fmt.Sprintf("dir/deep/f%d", size)
		res, body := d.do("POST", query("path", path), bytes.NewReader(data), "Content-Type", octets)
		var got []struct{ Path, Name, Type string }
		if err := json.Unmarshal(body, &got); err != nil || res.StatusCode != 200 || len(got) != 1 || got[0].Path != filepath.Join(d.home, path) || got[0].Type != "file" {
			t.Fatalf("size %d: %d %s", size, res.StatusCode, body)
		}
		want := sha256.Sum256(data)
		o := d.run(ctxFor(t), sh("sha256sum < "+path+"; stat -c '%u %a' "+path))
		if o.stdout.String() != fmt.Sprintf("%x  -\n%d 644\n", want, userUID) {
			t.Errorf("size %d: a command reads %q", size, o.stdout.String())
		}
		for _, accept := range []string{"identity", "gzip", ""} {
			res, body := d.do("GET", query("path", path), nil, "Accept-Encoding", accept)
			if res.Header.Get("Content-Encoding") == "gzip" {
				z, err := gzip.NewReader(bytes.NewReader(body))
				if err != nil {
					t.Fatalf("size %d: %v", size, err)
				}
				if body, err = io.ReadAll(z); err != nil {
					t.Fatal(err)
				}
			}
			if res.StatusCode != 200 || sha256.Sum256(body) != want || res.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("size %d, accept %q: %d, %d bytes", size, accept, res.StatusCode, len(body))
			}
			if accept == "gzip" && size > 0 && res.Header.Get("Content-Encoding") != "gzip" {
				t.Errorf("size %d: gzip was asked for and not used", size)
			}
		}
	}
	if p, _ := procfs.Read(d.pid); p.RSS > 64<<20 {
		t.Errorf("the daemon holds %d MiB", p.RSS>>20)
	}
}

func TestFI01_GzipUploadRangeAndConditions(t *testing.T) {
	d := ready(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, "0123456789")
	z.Close()
	res, body := d.do("POST", query("path", "z"), bytes.NewReader(packed.Bytes()), "Content-Type", octets, "Content-Encoding", "gzip")
	if res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	res, body = d.do("GET", query("path", "z"), nil, "Accept-Encoding", "gzip, deflate", "Range", "bytes=2-4")
	if res.StatusCode != 206 || string(body) != "234" || res.Header.Get("Content-Disposition") != "inline; filename=z" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
	res, _ = d.do("GET", query("path", "z"), nil, "If-Modified-Since", res.Header.Get("Last-Modified"))
	if res.StatusCode != 304 {
		t.Errorf("condition answered %d", res.StatusCode)
	}
	res, body = d.do("GET", query("path", "z"), nil, "Accept-Encoding", "br, identity;q=0")
	if res.StatusCode != 406 || !bytes.Contains(body, []byte(`"code":406`)) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	// A cut gzip body is no file.
	res, _ = d.do("POST", query("path", "z"), bytes.NewReader(packed.Bytes()[:packed.Len()-3]), "Content-Type", octets, "Content-Encoding", "gzip")
	if data, _ := os.ReadFile(filepath.Join(d.home, "z")); res.StatusCode != 400 || string(data) != "0123456789" || len(d.leftovers()) > 0 {
		t.Errorf("%d, %q, %v", res.StatusCode, data, d.leftovers())
	}
}

func TestFI01_ACutUploadLeavesTheOldContentWhole(t *testing.T) {
	d := ready(t)
	target := filepath.Join(d.home, "f")
	if err := os.WriteFile(target, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, 4096, 300_000} {
		c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: 1000000\r\n\r\n", query("path", "f"), octets)
		if _, err := c.Write(make([]byte, cut)); err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).CloseWrite()
		_, _ = io.ReadAll(c)
		c.Close()
	}
	testkit.Eventually(t, 30*time.Second, "no unfinished upload is left", func() bool { return len(d.leftovers()) == 0 })
	if data, _ := os.ReadFile(target); string(data) != "old" {
		t.Errorf("content is %q", data)
	}
	// A whole one replaces the content and keeps the permissions.
	d.do("POST", query("path", "f"), strings.NewReader("new"), "Content-Type", octets)
	if fi, _ := os.Stat(target); fi.Mode().Perm() != 0o755 || fi.Size() != 3 {
		t.Errorf("%v", fi.Mode())
	}
}

func TestFI01_FullDiskAnswers507(t *testing.T) {
	d := ready(t)
	small := filepath.Join(d.home, "small")
	if err := os.Mkdir(small, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		testkit.Missing(t, "mount", err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d.do("POST", query("path", "small/f"), strings.NewReader("old"), "Content-Type", octets)
	res, body := d.do("POST", query("path", "small/f"), bytes.NewReader(make([]byte, 2<<20)), "Content-Type", octets)
	data, _ := os.ReadFile(filepath.Join(small, "f"))
	if res.StatusCode != 507 || string(data) != "old" || len(d.leftovers()) > 0 {
		t.Errorf("%d %s, content %q, left %v", res.StatusCode, body, data, d.leftovers())
	}
	// Over the border of a file system a move copies.
	os.WriteFile(filepath.Join(d.home, "mv"), []byte("moved"), 0o640)
	res2, err := d.fs.Move(ctxFor(t), &fspb.MoveRequest{Source: "mv", Destination: "small/sub/mv"})
	if err != nil || res2.Entry.Permissions != "-rw-r-----" || len(d.leftovers()) > 0 {
		t.Errorf("%v, %v", res2, err)
	}
	if _, err := os.Stat(filepath.Join(d.home, "mv")); !os.IsNotExist(err) {
		t.Errorf("the source is still there: %v", err)
	}
}

func TestFI01_KernelFilesOfSizeZeroAreReadInFull(t *testing.T) {
	d := ready(t)
	for _, accept := range []string{"identity", "gzip"} {
		res, body := d.do("GET", query("path", "/proc/meminfo"), nil, "Accept-Encoding", accept)
		if res.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			body, _ = io.ReadAll(z)
		}
		if !bytes.Contains(body, []byte("MemTotal:")) || !bytes.Contains(body, []byte("DirectMap")) {
			t.Errorf("%s: %d bytes", accept, len(body))
		}
	}
}

func TestFI03_OddNamesRoundTrip(t *testing.T) {
	d := ready(t)
	names := []string{
		"a b", "line\nbreak", `quo"te'`, "per%2Fcent", "emoji 🦭", "e\u0301", "é", "-dash", "back\\slash", "semi;colon",
		strings.Repeat("x", 255), "*?[]{}", "tab\t", "~tilde", "#hash&amp=1", "日本語", ".hidden", "trailing.", " lead",
	}
	for _, name := range names {
		res, body := d.do("POST", query("path", "./odd/"+name), strings.NewReader(name), "Content-Type", octets)
		if res.StatusCode != 200 {
			t.Errorf("%q: %d %s", name, res.StatusCode, body)
			continue
		}
		if data, err := os.ReadFile(filepath.Join(d.home, "odd", name)); err != nil || string(data) != name {
			t.Errorf("%q: %q, %v", name, data, err)
		}
		res, body = d.do("GET", query("path", "./odd/"+name), nil)
		if res.StatusCode != 200 || string(body) != name {
			t.Errorf("%q: read %d %q", name, res.StatusCode, body)
		}
		st, err := d.fs.Stat(ctxFor(t), &fspb.StatRequest{Path: "./odd/" + name})
		if err != nil || st.Entry.Name != name {
			t.Errorf("%q: %v, %v", name, st, err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.home, "odd", "bad\xff"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := d.fs.ListDir(ctxFor(t), &fspb.ListDirRequest{Path: "odd"})
	if err != nil || len(list.Entries) != len(names)+1 {
		t.Errorf("%d entries, %v", len(list.GetEntries()), err)
	}
	for _, bad := range []string{"a\x00b", strings.Repeat("y", 256), "odd"} {
		if res, body := d.do("POST", query("path", bad), strings.NewReader(""), "Content-Type", octets); res.StatusCode != 400 {
			t.Errorf("%q: %d %s", bad, res.StatusCode, body)
		}
	}
}

func TestFI01_MultipartWithMetadata(t *testing.T) {
	d := ready(t)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	for _, name := range []string{"m/one.txt", "m/two.txt"} {
		p, err := w.CreateFormFile("file", name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(p, name)
	}
	w.Close()
	res, body := d.do("POST", "/files", bytes.NewReader(form.Bytes()), "Content-Type", w.FormDataContentType(), "X-Metadata-Kind", "report", "X-Metadata-Lang", "en")
	if res.StatusCode != 200 || bytes.Count(body, []byte(`"type":"file"`)) != 2 || !bytes.Contains(body, []byte(`"kind":"report"`)) {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	st, err := d.fs.Stat(ctxFor(t), &fspb.StatRequest{Path: "m/two.txt"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"kind": "report", "lang": "en"}, st.Entry.Metadata); diff != "" {
		t.Error(diff)
	}
	// The next upload replaces the whole set.
	d.do("POST", query("path", "m/two.txt"), strings.NewReader(""), "Content-Type", octets, "X-Metadata-Other", "x")
	st, err = d.fs.Stat(ctxFor(t), &fspb.StatRequest{Path: "m/two.txt"})
	if diff := cmp.Diff(map[string]string{"other": "x"}, st.GetEntry().GetMetadata()); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if res, body := d.do("POST", query("path", "same"), bytes.NewReader(form.Bytes()), "Content-Type", w.FormDataContentType()); res.StatusCode != 400 {
		t.Errorf("one path twice: %d %s", res.StatusCode, body)
	}
	if res, body := d.do("POST", query("path", "f"), strings.NewReader(""), "Content-Type", octets, "X-Metadata-Big", strings.Repeat("v", 4097)); res.StatusCode != 400 {
		t.Errorf("too much metadata: %d %s", res.StatusCode, body)
	}
	d.do("POST", query("path", "p1"), strings.NewReader("ab"), "Content-Type", octets)
	d.do("POST", query("path", "p2"), strings.NewReader("cd"), "Content-Type", octets)
	res, body = d.do("POST", "/files/compose", strings.NewReader(`{"source_paths":["p1","p2"],"destination":"whole"}`))
	data, _ := os.ReadFile(filepath.Join(d.home, "whole"))
	if _, err := os.Stat(filepath.Join(d.home, "p1")); res.StatusCode != 200 || string(data) != "abcd" || !os.IsNotExist(err) {
		t.Errorf("%d %s: %q, %v", res.StatusCode, body, data, err)
	}
}

func TestS9_TheFilesystemService(t *testing.T) {
	d := ready(t)
	ctx := ctxFor(t)
	made, err := d.fs.MakeDir(ctx, &fspb.MakeDirRequest{Path: "~/a/b"})
	if err != nil || made.Entry.Permissions != "drwxr-xr-x" || made.Entry.Owner != "user" || made.Entry.Type != fspb.FileType_FILE_TYPE_DIRECTORY {
		t.Fatalf("%v, %v", made, err)
	}
	_, err = d.fs.MakeDir(ctx, &fspb.MakeDirRequest{Path: "a/b"})
	wantCode(t, err, connect.CodeAlreadyExists, "")
	os.WriteFile(filepath.Join(d.home, "a/f"), []byte("12345"), 0o600)
	_, err = d.fs.MakeDir(ctx, &fspb.MakeDirRequest{Path: "a/f"})
	wantCode(t, err, connect.CodeInvalidArgument, "")
	os.Symlink("f", filepath.Join(d.home, "a/link"))
	st, err := d.fs.Stat(ctx, &fspb.StatRequest{Path: "a/link"})
	if err != nil || st.Entry.Type != fspb.FileType_FILE_TYPE_FILE || st.Entry.Mode != 0o600 || st.Entry.Size != 1 ||
		st.Entry.GetSymlinkTarget() != filepath.Join(d.home, "a/f") || st.Entry.Permissions[0] != 'L' {
		t.Errorf("link: %v, %v", st, err)
	}
	list, err := d.fs.ListDir(ctx, &fspb.ListDirRequest{Path: ".", Depth: 2})
	var names []string
	for _, e := range list.GetEntries() {
		rel, _ := filepath.Rel(d.home, e.Path)
		names = append(names, rel)
	}
	if diff := cmp.Diff([]string{"a", "a/b", "a/f", "a/link"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	_, err = d.fs.ListDir(ctx, &fspb.ListDirRequest{Path: "a/f"})
	wantCode(t, err, connect.CodeInvalidArgument, "not a directory")
	_, err = d.fs.ListDir(ctx, &fspb.ListDirRequest{Path: "nope"})
	wantCode(t, err, connect.CodeNotFound, "does not exist")
	_, err = d.fs.Move(ctx, &fspb.MoveRequest{Source: "nope", Destination: "x"})
	wantCode(t, err, connect.CodeNotFound, "")
	if moved, err := d.fs.Move(ctx, &fspb.MoveRequest{Source: "a/f", Destination: "new/parent/f"}); err != nil || moved.Entry.Size != 5 {
		t.Errorf("%v, %v", moved, err)
	}
	for range 2 {
		if _, err := d.fs.Remove(ctx, &fspb.RemoveRequest{Path: "a"}); err != nil {
			t.Error(err)
		}
	}
	_, err = d.fs.Stat(as(ctx, "mallory"), &fspb.StatRequest{Path: "a"})
	wantCode(t, err, connect.CodeUnauthenticated, "invalid username: 'mallory'")
	if res, body := d.do("GET", query("path", "gone"), nil); res.StatusCode != 404 || !bytes.Contains(body, []byte("does not exist")) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if err := exec.Command("mkfifo", filepath.Join(d.home, "pipe")).Run(); err != nil {
		t.Fatal(err)
	}
	if res, _ := d.do("GET", query("path", "pipe"), nil); res.StatusCode != 400 {
		t.Errorf("a pipe answered %d", res.StatusCode)
	}
}

func TestS9_WatchSeesNewDirectoriesAndUploads(t *testing.T) {
	d := ready(t)
	ctx := ctxFor(t)
	s, err := d.fs.WatchDir(ctx, &fspb.WatchDirRequest{Path: ".", Recursive: true, IncludeEntry: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Receive() || s.Msg().GetStart() == nil {
		t.Fatalf("first message %v, %v", s.Msg(), s.Err())
	}
	poll, err := d.fs.CreateWatcher(ctx, &fspb.CreateWatcherRequest{Path: "."})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(d.home, "x/y/z"), 0o755); err != nil {
		t.Fatal(err)
	}
	d.do("POST", query("path", "x/y/z/f"), strings.NewReader("hi"), "Content-Type", octets)
	for s.Receive() {
		e := s.Msg().GetFilesystem()
		if strings.Contains(e.GetName(), "partial") {
			t.Errorf("an unfinished upload was announced: %v", e)
		}
		if e.GetName() == "x/y/z/f" && e.Type == fspb.EventType_EVENT_TYPE_WRITE {
			if e.Entry.GetSize() != 2 {
				t.Errorf("%v", e)
			}
			break
		}
	}
	if s.Err() != nil {
		t.Fatal(s.Err())
	}
	testkit.Eventually(t, 30*time.Second, "the polled watch has the directory", func() bool {
		res, err := d.fs.GetWatcherEvents(ctx, &fspb.GetWatcherEventsRequest{WatcherId: poll.WatcherId})
		return err == nil && len(res.Events) > 0 && res.Events[0].Name == "x" && res.Events[0].Type == fspb.EventType_EVENT_TYPE_CREATE
	})
	if _, err := d.fs.RemoveWatcher(ctx, &fspb.RemoveWatcherRequest{WatcherId: poll.WatcherId}); err != nil {
		t.Error(err)
	}
	_, err = d.fs.GetWatcherEvents(ctx, &fspb.GetWatcherEventsRequest{WatcherId: poll.WatcherId})
	wantCode(t, err, connect.CodeNotFound, "")
	_, err = d.fs.CreateWatcher(ctx, &fspb.CreateWatcherRequest{Path: "/etc/hostname"})
	wantCode(t, err, connect.CodeInvalidArgument, "")
}

func TestS14_WhoIsCalling(t *testing.T) {
	d := boot(t)
	if res, _ := d.do("GET", "/health", nil); res.StatusCode != 204 {
		t.Errorf("health answered %d", res.StatusCode)
	}
	for _, path := range []string{"/envs", "/metrics", "/files?path=x"} {
		if res, body := d.do("GET", path, nil); res.StatusCode != 503 || !bytes.Contains(body, []byte(`"code":503`)) {
			t.Errorf("%s before the configuration: %d %s", path, res.StatusCode, body)
		}
	}
	wantCode(t, d.run(ctxFor(t), sh("true")).err, connect.CodeUnavailable, "not ready")
	if got := d.initWith("wrong", guestapi.Init{}); got != 401 {
		t.Errorf("init with a wrong secret answered %d", got)
	}
	now := time.Now()
	d.init(guestapi.Init{AccessToken: token, EnvVars: map[string]string{"K": "new"}, Timestamp: now})
	d.init(guestapi.Init{EnvVars: map[string]string{"K": "old"}, Timestamp: now.Add(-time.Second)}) // late: ignored
	res, body := d.do("GET", "/envs", nil)
	if res.StatusCode != 401 || !bytes.Contains(body, []byte("unauthorized access, please provide a valid access token")) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	wantCode(t, d.run(ctxFor(t), sh("true")).err, connect.CodeUnauthenticated, "unauthorized access")
	if _, body := d.do("GET", "/envs", nil, "X-Access-Token", token); string(body) != "{\"K\":\"new\"}\n" {
		t.Errorf("envs %s", body)
	}
	var m guestapi.Metrics
	_, body = d.do("GET", "/metrics", nil, "X-Access-Token", token)
	if err := json.Unmarshal(body, &m); err != nil || m.MemTotal == 0 || m.DiskTotal == 0 || m.CPUCount == 0 {
		t.Errorf("%s, %v", body, err)
	}
	for _, path := range []string{"/events", "/tunnel?port=1"} {
		if res, _ := d.do("GET", path, nil, "X-Access-Token", token); res.StatusCode != 401 {
			t.Errorf("%s with the access token alone: %d", path, res.StatusCode)
		}
	}
	sign := func(path, op string, expires *int64) []string {
		kv := []string{"path", path, "username", "user", "signature", filesystem.Signature(path, op, "user", token, expires)}
		if expires != nil {
			kv = append(kv, "signature_expiration", fmt.Sprint(*expires))
		}
		return kv
	}
	past, future := now.Unix()-10, now.Unix()+1000
	for _, c := range []struct {
		name, method, path string
		headers            []string
		want               int
		text               string
	}{
		{"no proof", "GET", query("path", "s"), nil, 401, "missing signature query parameter"},
		{"signed write", "POST", query(sign("s", "write", &future)...), nil, 200, ""},
		{"signed read", "GET", query(sign("s", "read", nil)...), nil, 200, ""},
		{"write signature for reading", "GET", query(sign("s", "write", nil)...), nil, 401, "invalid signature"},
		{"expired", "GET", query(sign("s", "read", &past)...), nil, 401, "signature is already expired"},
		{"wrong token beside a good signature", "GET", query(sign("s", "read", nil)...), []string{"X-Access-Token", "no"}, 401, "unauthorized access"},
		{"token", "GET", query("path", "s"), []string{"X-Access-Token", token}, 200, ""},
		{"compose needs the token", "POST", "/files/compose", nil, 401, "unauthorized access"},
	} {
		var in io.Reader
		headers := c.headers
		if c.method == "POST" {
			in, headers = strings.NewReader("x"), append(headers, "Content-Type", octets)
		}
		res, body := d.do(c.method, c.path, in, headers...)
		if res.StatusCode != c.want || !strings.Contains(string(body), c.text) {
			t.Errorf("%s: %d %s", c.name, res.StatusCode, body)
		}
	}
}

func TestS14_EventsAndTunnelForTheHost(t *testing.T) {
	d := ready(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		data, _ := io.ReadAll(c)
		fmt.Fprintf(c, "got %s", data)
	}()
	c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /tunnel?port=%d HTTP/1.1\r\nHost: x\r\nX-Skerry-Init: %s\r\nConnection: Upgrade\r\nUpgrade: skerry-tunnel\r\n\r\nhello", ln.Addr().(*net.TCPAddr).Port, secret)
	c.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 101") || !strings.HasSuffix(string(all), "\r\n\r\ngot hello") {
		t.Errorf("%q, %v", all, err)
	}
	res, body := d.do("GET", "/tunnel?port=1", nil, "X-Skerry-Init", secret, "Connection", "Upgrade", "Upgrade", "skerry-tunnel")
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := d.do("GET", "/events?after=x", nil, "X-Skerry-Init", secret); res.StatusCode != 400 {
		t.Errorf("events answered %d", res.StatusCode)
	}
}
