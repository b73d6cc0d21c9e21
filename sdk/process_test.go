package sdk_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"

	"skerry.dev/skerry/sdk"
)

// script is what the fake server does on each connection in turn, given the
// first message.
type script func(t *testing.T, conn *websocket.Conn, first map[string]any)

func serve(t *testing.T, scripts ...script) *sdk.Client {
	t.Helper()
	var mu sync.Mutex
	next := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-API-Key") != "skerry_test" {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":{"code":"unauthenticated","message":"Send a key.","request_id":"r1"}}`)
			return
		}
		mu.Lock()
		s := scripts[min(next, len(scripts)-1)]
		next++
		mu.Unlock()
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"skerry.exec.v1"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		_, raw, err := conn.Read(r.Context())
		if err != nil {
			t.Error(err)
			return
		}
		var first map[string]any
		if err := json.Unmarshal(raw, &first); err != nil {
			t.Error(err)
		}
		s(t, conn, first)
	}))
	t.Cleanup(server.Close)
	client, err := sdk.New(server.URL, sdk.WithAPIKey("skerry_test"))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func text(t *testing.T, conn *websocket.Conn, s string) {
	if err := conn.Write(t.Context(), websocket.MessageText, []byte(s)); err != nil {
		t.Error(err)
	}
}

func output(t *testing.T, conn *websocket.Conn, kind byte, offset uint64, data string) {
	frame := binary.BigEndian.AppendUint64([]byte{kind}, offset)
	if err := conn.Write(t.Context(), websocket.MessageBinary, append(frame, data...)); err != nil {
		t.Error(err)
	}
}

func exit(t *testing.T, conn *websocket.Conn, s string) {
	text(t, conn, s)
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

// TestS8_ALostConnectionIsAttachedAgain: output that is replayed is delivered
// once, output that nobody has any more is counted.
func TestS8_ALostConnectionIsAttachedAgain(t *testing.T) {
	client := serve(t,
		func(t *testing.T, conn *websocket.Conn, first map[string]any) {
			if first["cmd"] != "count" {
				t.Errorf("first message %v", first)
			}
			text(t, conn, `{"type":"start","exec_id":"e1","pid":7}`)
			output(t, conn, 1, 0, "one ")
			output(t, conn, 2, 4, "bad ")
		},
		func(t *testing.T, conn *websocket.Conn, first map[string]any) {
			if first["attach"] != "e1" || first["after"] != 8.0 {
				t.Errorf("attached with %v", first)
			}
			output(t, conn, 2, 6, "d two ") // two bytes of it were delivered before
			text(t, conn, `{"type":"gap","lost_bytes":5}`)
			output(t, conn, 1, 17, "end")
			exit(t, conn, `{"type":"exit","exit_code":3,"status":"exited"}`)
		})
	var stdout, stderr bytes.Buffer
	p, err := client.Start(t.Context(), "sb-1", sdk.Command{Cmd: "count", Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if got.Code != 3 || got.Lost != 5 || stdout.String() != "one end" || stderr.String() != "bad two " {
		t.Errorf("exit %+v, stdout %q, stderr %q", got, &stdout, &stderr)
	}
}

func TestS8_InputIsSentAndEnded(t *testing.T) {
	client := serve(t, func(t *testing.T, conn *websocket.Conn, _ map[string]any) {
		text(t, conn, `{"type":"start","exec_id":"e1","pid":7}`)
		var input []byte
		for {
			kind, raw, err := conn.Read(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if kind == websocket.MessageText {
				if !strings.Contains(string(raw), "close_stdin") {
					t.Errorf("message %s", raw)
				}
				break
			}
			input = append(input, raw[1:]...)
		}
		output(t, conn, 1, 0, string(input))
		exit(t, conn, `{"type":"exit","exit_code":0,"status":"exited"}`)
	})
	want := strings.Repeat("0123456789", 20_000)
	var stdout bytes.Buffer
	p, err := client.Start(t.Context(), "sb-1", sdk.Command{Cmd: "cat", Stdin: strings.NewReader(want), Stdout: &stdout})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if stdout.String() != want {
		t.Errorf("%d bytes came back, want %d", stdout.Len(), len(want))
	}
}

func TestErrorsAreTyped(t *testing.T) {
	refusing := serve(t, func(t *testing.T, conn *websocket.Conn, _ map[string]any) {
		text(t, conn, `{"type":"error","error":{"code":"not_running","message":"It is stopped.","request_id":"r2"}}`)
		_ = conn.Close(websocket.StatusNormalClosure, "")
	})
	if _, err := refusing.Start(t.Context(), "sb-1", sdk.Command{Cmd: "x"}); !sdk.Is(err, "not_running") {
		t.Errorf("over the socket: %v", err)
	}
	stranger, err := sdk.New(refusing.URL(), sdk.WithAPIKey("other"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = stranger.Start(t.Context(), "sb-1", sdk.Command{Cmd: "x"})
	var refused *sdk.Error
	if !errors.As(err, &refused) || refused.Status != 401 || refused.RequestID != "r1" {
		t.Errorf("before the socket: %v", err)
	}
	_, err = stranger.Sandbox(t.Context(), "sb-1")
	if !errors.As(err, &refused) || refused.Code != "unauthenticated" {
		t.Errorf("of a plain call: %v", err)
	}
	away, err := sdk.New("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	var unreachable *sdk.UnreachableError
	if _, err := away.Sandbox(t.Context(), "sb-1"); !errors.As(err, &unreachable) {
		t.Errorf("of nobody: %v", err)
	}
}
