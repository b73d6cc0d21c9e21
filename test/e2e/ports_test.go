package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/keyring"
	control "skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/test/instance"
)

// opened is what the API says of an access to a port.
type opened struct {
	Access struct {
		ID  string
		URL string
	}
	Token string
	URL   string
}

var (
	portAppOnce sync.Once
	portApp     []byte
	portAppErr  error
)

// withPortApp starts a sandbox in which testdata/portapp answers.
func (in *machine) withPortApp(t testing.TB, options map[string]any) sandbox {
	t.Helper()
	portAppOnce.Do(func() { portApp, portAppErr = instance.BuildProgram("./testdata/portapp") })
	if portAppErr != nil {
		t.Fatal(portAppErr)
	}
	request := map[string]any{"timeout_sec": 3600}
	maps.Copy(request, options)
	box := in.Create(t, request)
	req, err := in.Request(t.Context(), http.MethodPut, "/v1/sandboxes/"+box.ID+"/files?path=/tmp/portapp", strings.NewReader(string(portApp)))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		t.Fatal(res.Status)
	}
	if got := in.Sh(t, box.ID, "chmod +x /tmp/portapp; setsid /tmp/portapp >/tmp/portapp.log 2>&1 </dev/null & sleep 0.2; cat /tmp/portapp.log"); got.ExitCode != 0 || got.Stdout != "" {
		t.Fatalf("%+v", got)
	}
	return box
}

func (in *machine) openPort(t testing.TB, box string, request map[string]any) opened {
	t.Helper()
	var out opened
	in.Must(t, "POST", "/v1/sandboxes/"+box+"/ports", request, &out)
	return out
}

// ask calls a port by its address; the names below localhost lead to the edge.
func (in *machine) ask(t testing.TB, method, at string, body io.Reader, headers ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, at, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, in.Sandboxes)
	}}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return client.Do(req)
}

func (in *machine) get(t testing.TB, at string, headers ...string) (int, string) {
	t.Helper()
	res, err := in.ask(t, http.MethodGet, at, nil, headers...)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(raw)
}

// A link to a port is all that one needs, and nothing else opens it.
func TestS11_APortIsReachedByItsLink(t *testing.T) {
	in := skerry(t)
	box := in.withPortApp(t, nil)
	a := in.openPort(t, box.ID, map[string]any{"port": 3000, "name": "preview"})
	if want := "http://3000-" + box.ID + ".localhost:" + port(in.Sandboxes) + "/"; a.Access.URL != want || a.URL != want+"?skerry_token="+a.Token {
		t.Errorf("it is at %s, its link is %s", a.Access.URL, a.URL)
	}
	if status, body := in.get(t, a.URL); status != 200 || !strings.HasPrefix(body, "GET / host=3000-"+box.ID) || strings.Contains(body, "skp_") {
		t.Errorf("by its link: %d %s", status, body)
	}
	if status, body := in.get(t, a.Access.URL+"a%2Fb//c?x=%zz&&", "X-Skerry-Token", a.Token); status != 200 || !strings.HasPrefix(body, "GET /a%2Fb//c?x=%zz&& ") {
		t.Errorf("by the header: %d %s", status, body)
	}
	if status, body := in.get(t, "http://anything/x", "E2b-Sandbox-Id", box.ID, "E2b-Sandbox-Port", "3000", "X-Skerry-Token", a.Token); status != 200 || !strings.HasPrefix(body, "GET /x ") {
		t.Errorf("by headers alone: %d %s", status, body)
	}
	// On loopback alone, through the daemon.
	b := in.openPort(t, box.ID, map[string]any{"port": 3001, "public": true})
	if status, body := in.get(t, b.Access.URL); status != 404 || b.Token != "" { // the mux has no root there
		t.Errorf("on loopback: %d %s, token %q", status, body, b.Token)
	}
	c := in.openPort(t, box.ID, map[string]any{"port": 3002, "public": true})
	if status, body := in.get(t, c.Access.URL); status != 502 || !strings.Contains(body, "port is not open") {
		t.Errorf("where nothing listens: %d %s", status, body)
	}
	for name, refused := range map[string][]string{
		"nothing": {a.Access.URL}, "a wrong token": {a.Access.URL, "X-Skerry-Token", "skp_" + strings.Repeat("0", 40)},
		"another port's": {strings.Replace(a.Access.URL, "3000-", "8080-", 1), "X-Skerry-Token", a.Token},
		"an API key":     {a.Access.URL, "X-API-Key", in.Key},
	} {
		if status, body := in.get(t, refused[0], refused[1:]...); status != 403 {
			t.Errorf("with %s: %d %s", name, status, body)
		}
	}
	if code, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+box.ID+"/ports", map[string]any{"port": 49983}, nil); code != 400 {
		t.Errorf("the daemon's own port: %d %v", code, err)
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// Every port and every internal route of a sandbox from outside: nothing answers
// that nobody opened.
func TestNW07_NothingAnswersThatNobodyOpened(t *testing.T) {
	in := skerry(t)
	box := in.withPortApp(t, nil)
	at := "http://%d-" + box.ID + ".localhost/"
	for _, path := range []string{"init", "events", "tunnel?port=3000", "freeze", "debug/pprof/", "%69nit", "files/../init", "process.Process/../init"} {
		if status, body := in.get(t, fmt.Sprintf(at, 49983)+path, "X-Skerry-Init", "x"); status != 404 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"process.Process/List", "filesystem.Filesystem/ListDir", "files?path=/etc/passwd", "metrics", "envs"} {
		if status, body := in.get(t, fmt.Sprintf(at, 49983)+path); status != 401 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := in.get(t, fmt.Sprintf(at, 49983)+"files?path=/etc/passwd&signature=v1_x"); status != 401 {
		t.Errorf("a signature that is none: %d %s", status, body)
	}
	if status, _ := in.get(t, fmt.Sprintf(at, 49983)+"health"); status != 204 {
		t.Errorf("health: %d", status)
	}
	step := scaled(1, 97)
	for number := 1; number <= 65535; number += step {
		if number == 49983 {
			continue
		}
		if status, body := in.get(t, fmt.Sprintf(at, number)); status != 403 {
			t.Fatalf("port %d: %d %s", number, status, body)
		}
	}
}

// Whatever is open ends within a second with the access, the pause and the
// sandbox; and what comes next is refused.
func TestNW06_OpenStreamsEndAtOnce(t *testing.T) {
	in := skerry(t)
	for _, c := range []struct {
		name    string
		request map[string]any
		end     func(box sandbox, a opened)
		after   int
	}{
		{"revoked", nil, func(box sandbox, a opened) {
			in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID+"/ports/"+a.Access.ID, nil, nil)
		}, 403},
		{"expired", map[string]any{"expires_in_sec": 2}, func(_ sandbox, a opened) {
			testkit.Eventually(t, 5*time.Second, "it has expired", func() bool {
				status, _ := in.get(t, a.Access.URL, "X-Skerry-Token", a.Token)
				return status == 403
			})
		}, 403},
		{"paused", nil, func(box sandbox, _ opened) {
			in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/pause", map[string]any{}, nil)
		}, 502},
		{"killed", nil, func(box sandbox, _ opened) { in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil) }, 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			box := in.withPortApp(t, nil)
			request := map[string]any{"port": 3000}
			maps.Copy(request, c.request)
			a := in.openPort(t, box.ID, request)
			events, err := in.ask(t, http.MethodGet, a.Access.URL+"events", nil, "X-Skerry-Token", a.Token)
			if err != nil {
				t.Fatal(err)
			}
			defer events.Body.Close()
			socket, reader := in.raw(t, a)
			ended := make(chan error, 2)
			go func() { _, err := io.Copy(io.Discard, events.Body); ended <- err }()
			go func() { _, err := io.Copy(io.Discard, reader); ended <- err }()
			c.end(box, a)
			over := time.NewTimer(time.Second)
			defer over.Stop()
			for range 2 {
				select {
				case <-ended:
				case <-over.C:
					t.Fatal("it goes on a second later")
				}
			}
			_ = socket.Close()
			if status, body := in.get(t, a.Access.URL, "X-Skerry-Token", a.Token); status != c.after {
				t.Errorf("the next one: %d %s", status, body)
			}
			if c.name == "paused" {
				in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/resume", map[string]any{}, nil)
				if status, body := in.get(t, a.Access.URL, "X-Skerry-Token", a.Token); status != 200 {
					t.Errorf("the first after it was resumed: %d %s", status, body)
				}
			}
		})
	}
}

// raw upgrades to plain bytes.
func (in *machine) raw(t testing.TB, a opened) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", in.Sandboxes)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimSuffix(strings.TrimPrefix(a.Access.URL, "http://"), "/")
	_, _ = fmt.Fprintf(conn, "GET /raw HTTP/1.1\r\nHost: %s\r\nX-Skerry-Token: %s\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n", host, a.Token)
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	return conn, reader
}

func TestS11_HalfCloseReachesTheApplication(t *testing.T) {
	in := skerry(t)
	box := in.withPortApp(t, nil)
	for _, number := range []int{3000, 3001} {
		conn, reader := in.raw(t, in.openPort(t, box.ID, map[string]any{"port": number}))
		_, _ = conn.Write(make([]byte, 12345))
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := io.ReadAll(reader); err != nil || string(got) != "12345 <nil>" {
			t.Errorf("port %d: %q, %v", number, got, err)
		}
		_ = conn.Close()
	}
}

// Much, each way and both at once, and nobody keeps it.
func TestS11_NobodyKeepsWhatPasses(t *testing.T) {
	in := skerry(t)
	box := in.withPortApp(t, nil)
	a := in.openPort(t, box.ID, map[string]any{"port": 3000})
	size := int64(scaled(1<<30, 128<<20))
	before := memory(t, in)
	began := time.Now()
	res, err := in.ask(t, http.MethodGet, a.Access.URL+"source?n="+strconv.FormatInt(size, 10), nil, "X-Skerry-Token", a.Token)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if n != size || err != nil {
		t.Errorf("out: %d bytes, %v", n, err)
	}
	t.Logf("out: %.0f MB/s", float64(size)/1e6/time.Since(began).Seconds())
	began = time.Now()
	res, err = in.ask(t, http.MethodPost, a.Access.URL+"sink", io.LimitReader(nothing{}, size), "X-Skerry-Token", a.Token)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if string(answer) != fmt.Sprint(size, error(nil)) {
		t.Errorf("in: %s", answer)
	}
	t.Logf("in: %.0f MB/s", float64(size)/1e6/time.Since(began).Seconds())
	res, err = in.ask(t, http.MethodPost, a.Access.URL+"echo", io.LimitReader(nothing{}, size/4), "X-Skerry-Token", a.Token)
	if err != nil {
		t.Fatal(err)
	}
	n, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if n != size/4 || err != nil {
		t.Errorf("both ways: %d bytes, %v", n, err)
	}
	for program, grown := range grownSince(t, in, before) {
		t.Logf("%s grew by %d MiB", program, grown>>20)
		if grown > 64<<20 {
			t.Errorf("%s grew by %d MiB", program, grown>>20)
		}
	}
}

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { return len(p), nil }

// memory is what server and agent hold, in bytes, by their pids and names.
func memory(t testing.TB, in *machine) map[string]int64 {
	t.Helper()
	all := map[string]int64{}
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range entries {
		environ, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(environ), "SKERRY_DATA="+in.Data+"\x00") {
			continue
		}
		dir := filepath.Dir(file)
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(string(line), "\x00")
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil || len(args) < 2 || args[1] != "server" && args[1] != "agent" {
			continue
		}
		for l := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
				kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				all[args[1]+" "+filepath.Base(dir)] = kb << 10
			}
		}
	}
	if len(all) != 2 {
		t.Fatal(errors.New("server and agent are not found"), all)
	}
	return all
}

func grownSince(t testing.TB, in *machine, before map[string]int64) map[string]int64 {
	t.Helper()
	after := memory(t, in)
	for name := range after {
		after[name] -= before[name]
	}
	return after
}

// A paused sandbox that asked for it goes on with what a port lets in, also for
// many at once; one that did not, and whoever has no token, wakes nothing.
func TestS11_TrafficResumesWhatAskedForIt(t *testing.T) {
	in := skerry(t)
	pause := func(box sandbox) { in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/pause", map[string]any{}, nil) }
	still := in.withPortApp(t, nil)
	a := in.openPort(t, still.ID, map[string]any{"port": 3000, "public": true})
	pause(still)
	if status, body := in.get(t, a.Access.URL); status != 502 || !strings.Contains(body, "paused") {
		t.Errorf("one that did not ask: %d %s", status, body)
	}
	box := in.withPortApp(t, map[string]any{"auto_resume": true})
	a = in.openPort(t, box.ID, map[string]any{"port": 3000})
	pause(box)
	if status, body := in.get(t, a.Access.URL); status != 403 {
		t.Errorf("without a token: %d %s", status, body)
	}
	if status, body := in.get(t, fmt.Sprintf("http://49983-%s.localhost/metrics", box.ID)); status != 401 {
		t.Errorf("the daemon: %d %s", status, body)
	}
	var got sandbox
	if in.Must(t, "GET", "/v1/sandboxes/"+box.ID, nil, &got); got.Status != "paused" {
		t.Errorf("it is %s", got.Status)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if status, body := in.get(t, a.Access.URL+"x", "X-Skerry-Token", a.Token); status != 200 || !strings.HasPrefix(body, "GET /x ") {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	all.Wait()
	if in.Must(t, "GET", "/v1/sandboxes/"+box.ID, nil, &got); got.Status != "running" {
		t.Errorf("it is %s", got.Status)
	}
}

// Many connections that say nothing for long stay open, and keep nobody from
// the sandbox itself.
func TestS11_ManyConnectionsStayOpen(t *testing.T) {
	in := skerry(t)
	var boxes []sandbox
	var links []opened
	for range scaled(6, 1) {
		box := in.withPortApp(t, nil)
		boxes, links = append(boxes, box), append(links, in.openPort(t, box.ID, map[string]any{"port": 3000}))
	}
	const each = 850
	before := memory(t, in)
	type one struct {
		conn   net.Conn
		reader *bufio.Reader
	}
	var conns []one
	defer func() {
		for _, c := range conns {
			_ = c.conn.Close()
		}
	}()
	for _, a := range links {
		for range each {
			conn, reader := in.raw(t, a)
			conns = append(conns, one{conn, reader})
		}
	}
	for program, grown := range grownSince(t, in, before) {
		t.Logf("%d connections: %s grew by %d MiB, %d KiB for each", len(conns), program, grown>>20, grown>>10/int64(len(conns)))
	}
	for i, box := range boxes {
		if got := in.Sh(t, box.ID, "echo still here"); got.Stdout != "still here\n" {
			t.Errorf("a command beside them: %+v", got)
		}
		if status, body := in.get(t, links[i].Access.URL, "X-Skerry-Token", links[i].Token); status != 200 {
			t.Errorf("a request beside them: %d %s", status, body)
		}
	}
	for _, c := range conns {
		_, _ = c.conn.Write([]byte("hello"))
		_ = c.conn.(*net.TCPConn).CloseWrite()
		_ = c.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if got, err := io.ReadAll(c.reader); err != nil || string(got) != "5 <nil>" {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// The daemon of a sandbox, as clients of it speak to it: with the sandbox's own
// token, over the edge, by headers or by the host.
func TestS11_TheDaemonIsSpokenToFromOutside(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, map[string]any{"timeout_sec": 3600})
	raw, err := os.ReadFile(filepath.Join(in.Data, "secret"))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keyring.ParseSecret(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	which, err := id.ParseSandbox(box.ID)
	if err != nil {
		t.Fatal(err)
	}
	token := control.AccessToken(secret, which)
	call := func(method, path, kind, body string, more ...string) (int, string, http.Header) {
		t.Helper()
		headers := append([]string{"E2b-Sandbox-Id", edge.ShortName(which), "E2b-Sandbox-Port", "49983", "Content-Type", kind}, more...)
		res, err := in.ask(t, method, "http://127.0.0.1/"+path, strings.NewReader(body), headers...)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(answer), res.Header
	}
	if status, answer, _ := call("POST", "process.Process/List", "application/json", "{}", "X-Access-Token", token, "Connect-Protocol-Version", "1"); status != 200 {
		t.Errorf("list: %d %s", status, answer)
	}
	if status, answer, _ := call("POST", "process.Process/List", "application/json", "{}", "X-Access-Token", token[1:]); status != 401 {
		t.Errorf("with another token: %d %s", status, answer)
	}
	command := `{"process":{"cmd":"/bin/bash","args":["-l","-c","echo from inside"]},"stdin":false}`
	framed := "\x00" + string([]byte{0, 0, 0, byte(len(command))}) + command
	status, answer, _ := call("POST", "process.Process/Start", "application/connect+json", framed, "X-Access-Token", token, "Connect-Protocol-Version", "1")
	if status != 200 || !strings.Contains(answer, "ZnJvbSBpbnNpZGUK") || !strings.Contains(answer, `"exited":true`) {
		t.Errorf("a command: %d %q", status, answer)
	}
	status, answer, _ = call("POST", "files?path=/tmp/a%20page.html", "application/octet-stream", "<script>alert(1)</script>", "X-Access-Token", token)
	if status != 200 {
		t.Errorf("a file goes in: %d %s", status, answer)
	}
	status, answer, header := call("GET", "files?path=/tmp/a%20page.html", "", "", "X-Access-Token", token)
	if status != 200 || answer != "<script>alert(1)</script>" || !strings.HasPrefix(header.Get("Content-Disposition"), "attachment") || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("it comes out: %d %s %v", status, answer, header)
	}
	signature := sha256.Sum256([]byte("/tmp/a page.html:read::" + token))
	link := "files?path=/tmp/a%20page.html&signature=" + url.QueryEscape("v1_"+base64.RawStdEncoding.EncodeToString(signature[:]))
	if status, answer := in.get(t, "http://49983-"+box.ID+".localhost/"+link); status != 200 || answer != "<script>alert(1)</script>" {
		t.Errorf("by a signed link: %d %s", status, answer)
	}
	in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/pause", map[string]any{}, nil)
	if status, answer, _ := call("GET", "health", "", "", "X-Access-Token", token); status != 502 {
		t.Errorf("whether it runs while it is paused: %d %s", status, answer)
	}
	in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/resume", map[string]any{}, nil)
	if status, answer, _ := call("POST", "process.Process/List", "application/json", "{}", "X-Access-Token", token); status != 200 {
		t.Errorf("by the same token after a resume: %d %s", status, answer)
	}
}
