package edge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// heard is what an application was sent.
type heard struct {
	Method, URI, Host string
	Header            http.Header
	Length            int64
	Transfer          []string
	Body              string
	Trailer           http.Header
}

func tell(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h := heard{r.Method, r.RequestURI, r.Host, r.Header.Clone(), r.ContentLength, r.TransferEncoding, string(body), r.Trailer}
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		h.Header.Del(name) // the edge's
	}
	_ = json.NewEncoder(w).Encode(h)
}

// exchange sends bytes as they are and reads one answer.
func exchange(t *testing.T, addr, method, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res, string(body)
}

// Each request is sent to the application directly and through the edge, and
// must be heard the same.
func TestNW09_RequestsArriveAsTheyWereSent(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(tell))
	w.let(3000, "")
	var requests []string
	for _, uri := range []string{
		"/", "/a?", "/?a=1&a=2", "/?a=1;b=2", "/?%zz&=&&", "/?q=%2F%20+%00", "/a%2Fb/..%2f", "/a/../b/./c", "//a//b", "//evil.example/x?y", "/%E2%82%AC", "/a b" + "%20",
		"/;p=1/x;y", "/*!$&'()+,;=:@", "/a?b?c#", "/\"<>\\^`{|}", "/%2e%2e/%2E", "/?skerry=1&x=skerry_token", "/" + strings.Repeat("x", 8000), "/?" + strings.Repeat("y=%41&", 1500),
	} {
		if !strings.Contains(uri, " ") {
			requests = append(requests, "GET "+uri+" HTTP/1.1\r\nHost: %s\r\n\r\n")
		}
	}
	for _, method := range []string{"HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH"} {
		requests = append(requests, method+" /m HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\n\r\nhello")
	}
	requests = append(requests,
		"DELETE /chunked HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"POST /trailers HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n",
		"GET /get-with-a-body HTTP/1.1\r\nHost: %s\r\nContent-Length: 3\r\n\r\nabc",
		"POST /empty HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n",
		"GET /headers HTTP/1.1\r\nHost: %s\r\nUser-Agent: me\r\nAccept-Encoding: br\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Empty:\r\nAuthorization: Basic eDp5\r\nCookie: a=1; b=\"2\"\r\nReferer: x\r\nOrigin: y\r\nTe: trailers\r\nRange: bytes=1-2\r\nX-Utf8: \xe2\x82\xac\r\n\r\n",
		"GET /no-agent HTTP/1.1\r\nHost: %s\r\n\r\n",
		"POST /form HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n\r\na=1&b=2",
		"POST /continue HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\nIf-None-Match: \"x\"\r\n\r\n",
	)
	for _, request := range requests {
		method, _, _ := strings.Cut(request, " ")
		request := strings.Replace(request, "%s", origin.Host(one, 3000), 1)
		_, direct := exchange(t, w.app.Listener.Addr().String(), method, request)
		_, carried := exchange(t, w.addr, method, request)
		if d := cmp.Diff(direct, carried); d != "" {
			t.Errorf("%.80q: %s", request, d)
		}
	}
	t.Logf("%d requests", len(requests))
}

func TestNW09_WhatIsBetweenTwoStaysBetweenThem(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Connection", "X-Inner")
		rw.Header().Set("X-Inner", "1")
		rw.Header().Set("Keep-Alive", "timeout=5")
		rw.Header().Set("X-Outer", "1")
		tell(rw, r)
	}))
	w.let(3000, "")
	res, body := exchange(t, w.addr, "GET", "GET / HTTP/1.1\r\nHost: "+origin.Host(one, 3000)+"\r\nConnection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Yours: 1\r\n\r\n")
	var h heard
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(http.Header{"X-Yours": {"1"}}, h.Header); d != "" {
		t.Error(d)
	}
	if res.Header.Get("X-Inner") != "" || res.Header.Get("Keep-Alive") != "" || res.Header.Get("X-Outer") != "1" {
		t.Errorf("%v", res.Header)
	}
}

func TestNW09_ForwardedSaysWhoAsked(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(rw, r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Host"])
	}))
	w.let(3000, "")
	want := "[127.0.0.1] [http] [" + origin.Host(one, 3000) + "]"
	if _, body, _ := w.get(3000, "", "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Host", "evil"); body != want {
		t.Error(body)
	}
	w.edge.cfg.Trusted = func(string) bool { return true }
	if _, body, _ := w.get(3000, "", "X-Forwarded-For", "6.6.6.6"); !strings.HasPrefix(body, "[6.6.6.6, 127.0.0.1]") {
		t.Error(body)
	}
}

func TestNW09_AnswersArriveAsTheyWereSent(t *testing.T) {
	for name, answer := range map[string]string{
		"lengths":       "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\n\r\nhello",
		"chunks":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"trailers":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n",
		"until the end": "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
		"nothing":       "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
		"unchanged":     "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n",
		"elsewhere":     "HTTP/1.1 302 Found\r\nLocation: //other.example/a?b\r\nContent-Length: 0\r\n\r\n",
		"an error":      "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno",
		"compressed":    "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00",
		"a code of its": "HTTP/1.1 299 Whatever\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(rw).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_, _ = io.WriteString(conn, answer)
			}))
			w.let(3000, "")
			request := "GET / HTTP/1.1\r\nHost: " + origin.Host(one, 3000) + "\r\n\r\n"
			direct, before := exchange(t, w.app.Listener.Addr().String(), "GET", request)
			carried, after := exchange(t, w.addr, "GET", request)
			carried.Header.Del("Date")
			for _, h := range []http.Header{direct.Header, carried.Header} {
				h.Del("Connection")
			}
			type said struct {
				Status  int
				Header  http.Header
				Trailer http.Header
				Body    string
			}
			if d := cmp.Diff(said{direct.StatusCode, direct.Header, direct.Trailer, before}, said{carried.StatusCode, carried.Header, carried.Trailer, after}); d != "" {
				t.Error(d)
			}
		})
	}
}

// What an application flushes is there before the next word is said.
func TestS11_EventsArriveOneByOne(t *testing.T) {
	next := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for n := range 3 {
			_, _ = fmt.Fprintf(rw, "data: %d\n\n", n)
			_ = http.NewResponseController(rw).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
			}
		}
	}))
	w.let(3000, "")
	res, err := w.client().Get(origin.URL(one, 3000))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for n := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("data: %d", n) || !lines.Scan() {
			t.Fatalf("event %d is %q, %v", n, lines.Text(), lines.Err())
		}
		next <- struct{}{}
	}
	if lines.Scan() {
		t.Errorf("and %q", lines.Text())
	}
}

func TestS11_EarlyHintsPass(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Link", "</a.css>")
		rw.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(rw, "x")
	}))
	w.let(3000, "")
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, origin.URL(one, 3000), nil)
	res, err := w.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if d := cmp.Diff([]string{"103</a.css>"}, hints); d != "" {
		t.Error(d)
	}
}

func TestS11_WebSocketsPass(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"mine"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, p, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(p) == "bye" {
				_ = c.Close(4001, "as asked")
				return
			}
			_ = c.Write(r.Context(), kind, p)
		}
	}))
	w.let(3000, token)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(origin.URL(one, 3000), "http")+"x?skerry_token="+token, &websocket.DialOptions{HTTPClient: w.client(), Subprotocols: []string{"mine"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	if c.Subprotocol() != "mine" {
		t.Error(c.Subprotocol())
	}
	for _, size := range []int{0, 1, 125, 65536, 1 << 19} {
		sent := bytes.Repeat([]byte{0xab}, size)
		if err := c.Write(ctx, websocket.MessageBinary, sent); err != nil {
			t.Fatal(err)
		}
		_, got, err := c.Read(ctx)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes came back as %d, %v", size, len(got), err)
		}
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Read(ctx)
	if websocket.CloseStatus(err) != 4001 || !strings.Contains(err.Error(), "as asked") {
		t.Error(err)
	}
}

// Either side says that it is done, and still hears the other.
func TestS11_HalfCloseIsPassedOn(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		conn, brw, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
		all, err := io.ReadAll(brw)
		_, _ = fmt.Fprintf(conn, "%d bytes, %v", len(all), err)
	}))
	w.let(3000, "")
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+origin.Host(one, 3000)+"\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
	reader := bufio.NewReader(conn)
	res, err := http.ReadResponse(reader, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	_, _ = conn.Write(make([]byte, 12345))
	_ = conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(reader)
	if err != nil || string(got) != "12345 bytes, <nil>" {
		t.Errorf("%q, %v", got, err)
	}
}

// An application answers while it reads, as much as it is sent, and nobody
// keeps it.
func TestS11_BothWaysAtOnceAndUnchanged(t *testing.T) {
	const size = 64 << 20
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex()
		_, _ = io.Copy(rw, r.Body)
	}))
	w.let(3000, "")
	for _, version := range []int{1, 2} {
		client := w.client()
		if version == 2 {
			transport := client.Transport.(*http.Transport)
			transport.Protocols = new(http.Protocols)
			transport.Protocols.SetUnencryptedHTTP2(true)
		}
		sent, received := sha256.New(), sha256.New()
		body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), sent)
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, origin.URL(one, 3000), io.NopCloser(body))
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(received, res.Body)
		_ = res.Body.Close()
		if err != nil || n != size || res.ProtoMajor != version || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
			t.Errorf("HTTP/%d: %d bytes, %v", res.ProtoMajor, n, err)
		}
	}
}

// A cut stream never looks like a whole one.
func TestSX02_ABrokenAnswerIsBroken(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(rw, "some of it")
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}))
	w.let(3000, "")
	res, err := w.client().Get(origin.URL(one, 3000))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) || string(body) != "some of it" {
		t.Errorf("%q, %v", body, err)
	}
}

// An application learns that nobody listens any more.
func TestS11_AClientThatLeavesIsNoticedInside(t *testing.T) {
	left := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		close(left)
	}))
	w.let(3000, "")
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, origin.URL(one, 3000), nil)
	res, err := w.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cancel()
	select {
	case <-left:
	case <-time.After(5 * time.Second):
		t.Error("it still answers")
	}
}

// A server that speaks nothing but HTTP/2 is spoken to in it, and its status
// comes after the last byte.
func TestS11_RemoteCallsPass(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/grpc")
		rw.Header().Set("Trailer", "Grpc-Status")
		_, _ = fmt.Fprint(rw, r.Proto, " ", r.Header.Get("Te"), " ")
		_, _ = io.Copy(rw, r.Body)
		rw.Header().Set("Grpc-Status", "7")
	}))
	w.let(3000, "")
	client := w.client()
	transport := client.Transport.(*http.Transport)
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetUnencryptedHTTP2(true)
	for kind, want := range map[string]string{"application/grpc+proto": "HTTP/2.0 trailers hello", "application/json": "HTTP/1.1 trailers hello"} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, origin.URL(one, 3000)+"a.B/C", strings.NewReader("hello"))
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Te", "trailers")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(body) != want || res.Trailer.Get("Grpc-Status") != "7" || res.ProtoMajor != 2 {
			t.Errorf("%s: %q, %v, %v", kind, body, res.Trailer, err)
		}
	}
}

// Over TLS the edge speaks HTTP/2 with who can, and a cookie of it is the host's
// alone.
func TestS11_OverTLS(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(rw, r.Header.Get("X-Forwarded-Proto"), " ", r.Header.Get("Cookie"))
	}))
	w.let(3000, token)
	w.edge.cfg.Origin.Scheme = "https"
	server := httptest.NewUnstartedServer(w.edge)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
	client.Transport.(*http.Transport).TLSClientConfig.ServerName = "example.com" // of the test's certificate
	ask := func(url string, headers ...string) *http.Response {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	url := w.edge.cfg.Origin.URL(one, 3000)
	res := ask(url+"?skerry_token="+token, "Accept", "text/html")
	if cookie := res.Header.Get("Set-Cookie"); res.StatusCode != 303 || res.ProtoMajor != 2 || !strings.HasPrefix(cookie, "__Host-skerry_port="+token) || !strings.Contains(cookie, "; Secure") || res.Header.Get("Location") != url {
		t.Errorf("%s %v", res.Proto, res.Header)
	}
	res = ask(url, "Cookie", "__Host-skerry_port="+token+"; mine=1")
	if body, _ := io.ReadAll(res.Body); string(body) != "https mine=1" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res = ask(url, "Cookie", "skerry_port="+token); res.StatusCode != 403 {
		t.Errorf("a cookie that others can set: %d", res.StatusCode)
	}
}

// Whoever asks more than there are turns for waits, and is answered.
func TestS11_ManyAsksWaitForTheirTurn(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(echo))
	w.let(3000, "")
	for range cap(w.edge.asking) {
		w.edge.asking <- struct{}{}
	}
	answered := make(chan int, 1)
	go func() {
		status, _, _ := w.get(3000, "")
		answered <- status
	}()
	select {
	case status := <-answered:
		t.Fatalf("out of turn: %d", status)
	case <-time.After(50 * time.Millisecond):
	}
	<-w.edge.asking
	if status := <-answered; status != 200 {
		t.Error(status)
	}
}

// A client that is gone before the answer, or says so, is never told that all
// went well.
func TestSX02_WhoLeavesGetsNoSuccess(t *testing.T) {
	asked := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	w.let(3000, "")
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+origin.Host(one, 3000)+"\r\n\r\n")
	<-asked
	_ = conn.(*net.TCPConn).CloseWrite()
	if got, _ := io.ReadAll(conn); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
