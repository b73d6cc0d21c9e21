package edge

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

const token = "skp_0123456789abcdef0123456789abcdef01234567"

func echo(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "%s %s cookie=%q token=%q init=%q", r.Method, r.RequestURI, r.Header.Get("Cookie"), r.Header.Get(HeaderToken)+r.Header.Get(HeaderTraffic), r.Header.Get("X-Skerry-Init"))
}

func TestNW06_WhoReachesAPort(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, token)
	traffic := TrafficToken(w.secret, one)
	other := id.NewSandbox()
	for name, c := range map[string]struct {
		url     string
		headers []string
		want    int
	}{
		"nothing":                     {origin.URL(one, 3000), nil, 403},
		"the token":                   {origin.URL(one, 3000), []string{HeaderToken, token}, 200},
		"in the query":                {origin.URL(one, 3000) + "?skerry_token=" + token, nil, 200},
		"as the cookie":               {origin.URL(one, 3000), []string{"Cookie", "skerry_port=" + token}, 200},
		"a cookie twice":              {origin.URL(one, 3000), []string{"Cookie", "skerry_port=x; skerry_port=" + token}, 403},
		"of a neighbour's page":       {origin.URL(one, 3000), []string{"Cookie", "skerry_port=" + token, "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors"}, 403},
		"a wrong one":                 {origin.URL(one, 3000), []string{HeaderToken, "skp_ffffffffffffffffffffffffffffffffffffffff"}, 403},
		"a wrong one beside it":       {origin.URL(one, 3000) + "?skerry_token=" + token, []string{HeaderToken, "x"}, 403},
		"another port's":              {origin.URL(one, 3001), []string{HeaderToken, token}, 403},
		"another sandbox's":           {origin.URL(other, 3000), []string{HeaderToken, token}, 502},
		"a socket without":            {origin.URL(one, 3000), []string{"Connection", "Upgrade", "Upgrade", "websocket"}, 403},
		"a stream without":            {origin.URL(one, 3000), []string{"Accept", "text/event-stream"}, 403},
		"a service worker":            {origin.URL(one, 3000), []string{HeaderToken, token, "Service-Worker", "script"}, 403},
		"the traffic token":           {origin.URL(one, 3000), []string{HeaderTraffic, traffic}, 200},
		"of another port":             {origin.URL(one, 3001), []string{HeaderTraffic, traffic}, 200},
		"of another sandbox":          {origin.URL(one, 3000), []string{HeaderTraffic, TrafficToken(w.secret, other)}, 403},
		"for the daemon":              {origin.URL(one, control) + "envs", []string{HeaderTraffic, traffic}, 401},
		"a port's for the daemon":     {origin.URL(one, control) + "envs", []string{HeaderToken, token}, 401},
		"the daemon's own":            {origin.URL(one, control) + "envs", []string{"X-Access-Token", sandbox.AccessToken(w.secret, one)}, 200},
		"the daemon's for a port":     {origin.URL(one, 3000), []string{"X-Access-Token", sandbox.AccessToken(w.secret, one)}, 403},
		"its health":                  {origin.URL(one, control) + "health", nil, 200},
		"its insides":                 {origin.URL(one, control) + "init", []string{"X-Access-Token", sandbox.AccessToken(w.secret, one)}, 404},
		"its insides, written so":     {origin.URL(one, control) + "%69nit", []string{"X-Access-Token", sandbox.AccessToken(w.secret, one)}, 404},
		"its insides, in a roundway":  {origin.URL(one, control) + "files/..%2finit", []string{"X-Access-Token", sandbox.AccessToken(w.secret, one)}, 404},
		"a closed port":               {origin.URL(one, 9), []string{HeaderTraffic, traffic}, 502},
		"no port":                     {"http://localhost:7075/", nil, 404},
		"headers":                     {"http://x/", []string{HeaderSandbox, one.String(), HeaderPort, "3000", HeaderToken, token}, 200},
		"headers and a cookie":        {origin.URL(one, 3000), []string{HeaderSandbox, one.String(), HeaderPort, "3000", "Cookie", "skerry_port=" + token}, 403},
		"half the headers":            {origin.URL(one, 3000), []string{HeaderSandbox, one.String(), HeaderToken, token}, 400},
		"a sandbox nobody ever had":   {origin.URL(other, 3000), nil, 502},
		"its daemon":                  {origin.URL(other, control) + "health", nil, 502},
		"a signed link of the daemon": {origin.URL(one, control) + "files?path=x&signature=v1_x", nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			status, body, header := w.call(http.MethodGet, c.url, c.headers...)
			if status != c.want {
				t.Fatalf("%d %s", status, body)
			}
			if status == 200 && (strings.Contains(body, "skp_") || strings.Contains(body, traffic)) {
				t.Errorf("a token went inside: %s", body)
			}
			if status >= 400 {
				var said struct {
					Message string `json:"message"`
					Code    int    `json:"code"`
				}
				if err := json.Unmarshal([]byte(body), &said); err != nil || said.Code != status || said.Message == "" || header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s %v", body, header)
				}
			}
		})
	}
}

func TestS11_EverybodysPortNeedsNoToken(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, "")
	for _, headers := range [][]string{nil, {HeaderToken, "junk"}, {"Cookie", "skerry_port=junk", "Sec-Fetch-Site", "cross-site"}} {
		if status, body, _ := w.get(3000, "", headers...); status != 200 || strings.Contains(body, "junk") {
			t.Errorf("%v: %d %s", headers, status, body)
		}
	}
}

// The daemon's insides do not depend on what a client says of itself.
func TestNW07_TheInitSecretIsNotTakenFromOutside(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, "")
	for _, number := range []int{3000, control} {
		if status, body, _ := w.get(number, "health", "X-Skerry-Init", "guessed"); status != 200 || strings.Contains(body, "guessed") {
			t.Errorf("%d %s", status, body)
		}
	}
}

func TestS11_ALinkBecomesACookieOfThatHost(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, token)
	for link, want := range map[string]string{
		"?skerry_token=" + token:                      "",
		"a%2Fb?x=1&skerry_token=" + token + "&y=%zz;": "a%2Fb?x=1&y=%zz;",
		"/evil.example/?skerry_token=" + token:        "/evil.example/",
		"\\evil.example?skerry_token=" + token:        "%5Cevil.example",
	} {
		status, _, header := w.get(3000, link, "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
		if status != http.StatusSeeOther || header.Get("Location") != origin.URL(one, 3000)+want {
			t.Errorf("%s: %d %s", link, status, header.Get("Location"))
		}
		cookie := header.Get("Set-Cookie")
		if !strings.HasPrefix(cookie, "skerry_port="+token+";") || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Lax") || strings.Contains(cookie, "Domain") {
			t.Error(cookie)
		}
	}
	if status, _, header := w.get(3000, "?skerry_token=wrong", "Accept", "text/html", "Sec-Fetch-Mode", "navigate"); status != 403 || header.Get("Set-Cookie") != "" || !strings.HasPrefix(header.Get("Content-Type"), "text/html") {
		t.Errorf("%d %v", status, header)
	}
}

func TestS11_TheDaemonIsForAnyOrigin(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	status, _, header := w.call(http.MethodOptions, origin.URL(one, control)+"process.Process/Start", "Origin", "https://x.example", "Access-Control-Request-Method", "POST")
	if status != 204 || header.Get("Access-Control-Allow-Origin") != "*" || header.Get("Access-Control-Max-Age") != "7200" {
		t.Errorf("%d %v", status, header)
	}
	_, body, header := w.get(control, "files?path=a%2Fb", "X-Access-Token", sandbox.AccessToken(w.secret, one))
	if header.Get("Access-Control-Allow-Origin") != "*" || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Content-Disposition") != "attachment" || !strings.Contains(body, "/files?path=a%2Fb") {
		t.Errorf("%s %v", body, header)
	}
}

// Open streams end within a second with the access, with the sandbox, and by
// the clock; whether or not the client reads, and whatever it speaks.
func TestNW06_OpenStreamsEnd(t *testing.T) {
	endings := map[string]struct {
		end   func(*world, id.PortAccess)
		after int // what the next request gets
	}{
		"revoked": {func(w *world, a id.PortAccess) { w.revoke(a) }, 403},
		"expired": {func(w *world, _ id.PortAccess) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.edge.open.mu.Lock()
			defer w.edge.open.mu.Unlock()
			past := time.Now().Add(-time.Second)
			for _, in := range w.edge.open.by {
				in.expires = &past
			}
			clear(w.accesses)
		}, 403},
		"killed": {func(w *world, _ id.PortAccess) { w.kill(sandbox.StatusStopped) }, 502},
		"paused": {func(w *world, _ id.PortAccess) { w.kill(sandbox.StatusPaused) }, 502},
	}
	streams := map[string]struct{ path, headers string }{
		"events":        {"/events", ""},
		"slow reader":   {"/flood", ""},
		"socket":        {"/socket", "Connection: Upgrade\r\nUpgrade: websocket\r\n"},
		"socket, flood": {"/socketflood", "Connection: Upgrade\r\nUpgrade: websocket\r\n"},
	}
	for ending, e := range endings {
		for stream, s := range streams {
			t.Run(ending+" "+stream, func(t *testing.T) {
				t.Parallel()
				left := make(chan struct{}, 1)
				w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					defer func() { left <- struct{}{} }()
					endless(rw, r)
				}))
				a := w.let(3000, token)
				conn, err := net.Dial("tcp", w.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n%s\r\n", s.path, origin.Host(one, 3000), HeaderToken, token, s.headers)
				reader := bufio.NewReader(conn)
				if line, err := reader.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") && !strings.Contains(line, " 101 ") {
					t.Fatalf("%q, %v", line, err)
				}
				began := time.Now()
				e.end(w, a)
				select {
				case <-left:
				case <-time.After(3 * time.Second):
					t.Fatal("the stream goes on inside")
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("it ended after %s", took)
				}
				_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
				if _, err := io.Copy(io.Discard, reader); err != nil && strings.Contains(err.Error(), "timeout") {
					t.Error("the client's side stays open")
				}
				if status, body, _ := w.get(3000, "", HeaderToken, token); status != e.after {
					t.Errorf("the next one: %d %s", status, body)
				}
			})
		}
	}
}

// endless answers for as long as somebody is there.
func endless(rw http.ResponseWriter, r *http.Request) {
	chunk := make([]byte, 64<<10)
	switch r.URL.Path {
	case "/events", "/flood":
		control := http.NewResponseController(rw)
		_, _ = io.WriteString(rw, "data: 1\n\n")
		_ = control.Flush()
		if r.URL.Path == "/events" {
			<-r.Context().Done()
			return
		}
		for {
			if _, err := rw.Write(chunk); err != nil {
				return
			}
		}
	case "/socket", "/socketflood":
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if r.URL.Path == "/socket" {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
		for {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	}
}

func TestS11_NoMoreThanMayBeAreOpen(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, "")
	w.edge.count.Store(int64(w.edge.cfg.MaxOpen))
	if status, body, _ := w.get(3000, ""); status != 503 {
		t.Errorf("%d %s", status, body)
	}
	w.edge.count.Store(0)
	if status, body, _ := w.get(3000, ""); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	testkit.Eventually(t, 5*time.Second, "nobody is counted any more", func() bool { return w.edge.count.Load() == 0 })
}

func TestNW10_ARouteIsFoundOnceAndForgottenWithItsSandbox(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, "")
	for range 20 {
		w.get(3000, "")
	}
	if w.reached != 1 {
		t.Errorf("it was looked for %d times", w.reached)
	}
	testkit.Eventually(t, 5*time.Second, "routes that nobody takes are forgotten", func() bool {
		w.edge.routes.sweep(time.Now().Add(time.Minute))
		w.edge.routes.mu.Lock()
		defer w.edge.routes.mu.Unlock()
		return len(w.edge.routes.known) == 0
	})
	w.get(3000, "")
	if w.reached != 2 {
		t.Errorf("it was looked for %d times", w.reached)
	}
	w.kill(sandbox.StatusPaused)
	if status, body, _ := w.get(3000, ""); status != 502 {
		t.Errorf("%d %s", status, body)
	}
}

// Who is let in resumes it; who only asks the daemon, without its token, does
// not.
func TestS11_WhoIsLetInResumesIt(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, token)
	w.sleepy = true
	w.kill(sandbox.StatusPaused)
	access := sandbox.AccessToken(w.secret, one)
	for _, c := range []struct {
		name    string
		port    int
		path    string
		headers []string
		want    int
	}{
		{"nothing", 3000, "", nil, 403},
		{"the daemon's health", control, "health", nil, 502},
		{"with its token, too: it is asked whether it runs", control, "health", []string{"X-Access-Token", access}, 502},
		{"a signature that nobody looked at", control, "files?path=x&signature=v1_x", nil, 502},
		{"a wrong token", control, "files?path=x", []string{"X-Access-Token", "wrong"}, 401},
		{"the token", 3000, "", []string{HeaderToken, token}, 200},
	} {
		if status, body, _ := w.get(c.port, c.path, c.headers...); status != c.want {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
	w.kill(sandbox.StatusPaused)
	if status, body, _ := w.get(control, "envs", "X-Access-Token", access); status != 200 {
		t.Errorf("the daemon with its token: %d %s", status, body)
	}
}
