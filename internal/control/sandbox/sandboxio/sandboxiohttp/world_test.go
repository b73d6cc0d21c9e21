package sandboxiohttp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiohttp"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiotest"
	"skerry.dev/skerry/internal/kernel/errs"
)

var program sandboxiotest.Program

func TestMain(m *testing.M) {
	code := m.Run()
	program.Remove()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// world is the handlers in front of one real guest, on a real server.
type world struct {
	t        testing.TB
	guest    *sandboxiotest.Guest
	link     *sandboxiotest.Link
	targets  *sandboxiotest.Targets
	handlers *sandboxiohttp.Handlers
	url      string
	refuse   context.CancelCauseFunc // ends all requests with a cause
}

func newWorld(t testing.TB, change ...func(*sandboxiohttp.Options, *sandboxio.Options)) *world {
	t.Helper()
	g := program.Start(t)
	link := sandboxiotest.NewLink(g.Addr)
	t.Cleanup(link.Close)
	w := &world{t: t, guest: g, link: link, targets: sandboxiotest.NewTargets(link)}
	opt := sandboxiohttp.Options{
		AllowedOrigins: []string{"https://friend.example"},
		WriteError: func(w http.ResponseWriter, _ *http.Request, err error) {
			e := errs.As(err)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(map[errs.Code]int{errs.CodeInvalid: 400, errs.CodeForbidden: 403, errs.CodeNotFound: 404, errs.CodeConflict: 409, errs.CodeFailedPrecondition: 409, errs.CodeExhausted: 429, errs.CodeUnavailable: 503, errs.CodeCanceled: 499, errs.CodeInternal: 500}[e.Code])
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": e.Reason, "message": e.Message}})
		},
	}
	var ioOpt sandboxio.Options
	for _, c := range change {
		c(&opt, &ioOpt)
	}
	w.handlers = sandboxiohttp.New(sandboxio.New(w.targets, nil, ioOpt), opt)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/sandboxes/{id}/exec/stream", w.handlers.StreamExec)
	mux.HandleFunc("GET /v1/sandboxes/{id}/pty", w.handlers.OpenPTY)
	mux.HandleFunc("GET /v1/sandboxes/{id}/files", w.handlers.DownloadFile)
	mux.HandleFunc("PUT /v1/sandboxes/{id}/files", w.handlers.UploadFile)
	refused, refuse := context.WithCancelCause(context.Background())
	t.Cleanup(func() { refuse(nil) })
	w.refuse = refuse
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(refused, func() { cancel(context.Cause(refused)) })()
		mux.ServeHTTP(rw, r.WithContext(ctx))
	}))
	t.Cleanup(server.Close)
	t.Cleanup(w.handlers.Close)
	w.url = server.URL + "/v1/sandboxes/" + w.targets.Sandbox.String()
	return w
}

// client is the other end of a stream.
type client struct {
	t    testing.TB
	conn *websocket.Conn
}

func (w *world) dial(route string, change ...func(*websocket.DialOptions)) *client {
	w.t.Helper()
	opt := &websocket.DialOptions{Subprotocols: []string{"skerry.exec.v1"}}
	for _, c := range change {
		c(opt)
	}
	conn, res, err := websocket.Dial(w.t.Context(), w.url+route, opt)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := res.Header.Get("Sec-WebSocket-Protocol"); got != "skerry.exec.v1" {
		w.t.Errorf("the subprotocol is %q", got)
	}
	conn.SetReadLimit(4 << 20)
	w.t.Cleanup(func() { _ = conn.CloseNow() })
	return &client{w.t, conn}
}

func (w *world) open(route, first string) *client {
	w.t.Helper()
	c := w.dial(route)
	c.send(first)
	return c
}

func (c *client) send(text string) {
	c.t.Helper()
	if err := c.conn.Write(c.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		c.t.Fatalf("sending %s: %v", text, err)
	}
}

func (c *client) input(data []byte) error {
	return c.conn.Write(c.t.Context(), websocket.MessageBinary, append([]byte{0}, data...))
}

// message is what the server sent.
type message struct {
	Type     string `json:"type"`
	ExecID   string `json:"exec_id"`
	PID      int    `json:"pid"`
	Lost     uint64 `json:"lost_bytes"`
	ExitCode int    `json:"exit_code"`
	Status   string `json:"status"`
	Text     json.RawMessage

	Stream byte
	Offset uint64
	Data   []byte
}

func (m message) code() string {
	var e struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	_ = json.Unmarshal(m.Text, &e)
	return e.Error.Code
}

func (c *client) next() (message, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
	defer cancel()
	kind, raw, err := c.conn.Read(ctx)
	if err != nil {
		return message{}, err
	}
	var m message
	if kind == websocket.MessageBinary {
		if len(raw) < 10 {
			return m, fmt.Errorf("a binary message of %d bytes", len(raw))
		}
		return message{Type: "output", Stream: raw[0], Offset: binary.BigEndian.Uint64(raw[1:9]), Data: raw[9:]}, nil
	}
	err = json.Unmarshal(raw, &m)
	m.Text = raw
	return m, err
}

func (c *client) want(kind string) message {
	c.t.Helper()
	m, err := c.next()
	if err != nil || m.Type != kind {
		c.t.Fatalf("got %+v (%s), %v; want %s", m.Type, m.Text, err, kind)
	}
	return m
}

// outcome is a stream read to its end.
type outcome struct {
	out    map[byte]*bytes.Buffer
	next   uint64
	lost   uint64
	exit   *message
	errors []string
	close  websocket.StatusCode
}

func (o outcome) text(stream byte) string {
	if b := o.out[stream]; b != nil {
		return b.String()
	}
	return ""
}

// drain reads to the end, checking offsets and that nothing follows the exit.
func (c *client) drain(from uint64) outcome {
	c.t.Helper()
	o := outcome{out: map[byte]*bytes.Buffer{}, next: from}
	for {
		m, err := c.next()
		if err != nil {
			o.close = websocket.CloseStatus(err)
			return o
		}
		if o.exit != nil {
			c.t.Errorf("%s after the exit: %s", m.Type, m.Text)
		}
		switch m.Type {
		case "output":
			if m.Offset != o.next {
				c.t.Fatalf("output at %d, want %d", m.Offset, o.next)
			}
			o.next += uint64(len(m.Data))
			if o.out[m.Stream] == nil {
				o.out[m.Stream] = &bytes.Buffer{}
			}
			o.out[m.Stream].Write(m.Data)
		case "gap":
			o.lost += m.Lost
			o.next += m.Lost
		case "exit":
			o.exit = &m
		case "error":
			o.errors = append(o.errors, m.code())
		}
	}
}
