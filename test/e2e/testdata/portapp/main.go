// Portapp is what the tests of ports run inside a sandbox: it answers on 3000
// on all addresses and on 3001 on loopback alone.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"strconv"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/sink", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n, err)
	})
	mux.HandleFunc("/source", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 0\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	// An upgrade to plain bytes, which come back when the other side is done.
	mux.HandleFunc("/raw", func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
		n, err := io.Copy(io.Discard, buffered)
		_, _ = fmt.Fprint(conn, n, err)
	})
	go func() { log.Fatal(http.ListenAndServe("127.0.0.1:3001", mux)) }()
	log.Fatal(http.ListenAndServe(":3000", raw{mux}))
}

// raw answers for all other paths as they came: a mux would clean them.
type raw struct{ mux *http.ServeMux }

func (h raw) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo", "/sink", "/source", "/events", "/raw":
		h.mux.ServeHTTP(w, r)
	default:
		root(w, r)
	}
}

func root(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	_, _ = fmt.Fprintf(w, "%s %s host=%s body=%s trailer=%s token=%q", r.Method, r.RequestURI, r.Host, body, r.Trailer.Get("X-Sum"), r.Header.Get("X-Skerry-Token")+r.Header.Get("Cookie"))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
