package edge

import (
	"encoding/json"
	"html/template"
	"net/http"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/kernel/errs"
)

// refusal is an answer that is the edge's own.
type refusal struct {
	status  int
	message string
	port    bool // which port is part of it
	cause   error
}

// Error implements error.
func (r *refusal) Error() string { return r.message }

// Unwrap returns the private cause.
func (r *refusal) Unwrap() error { return r.cause }

func (r *refusal) because(err error) *refusal {
	c := *r
	c.cause = err
	return &c
}

var (
	errNowhere    = &refusal{status: http.StatusNotFound, message: "There is nothing at this address. A port of a sandbox is at {port}-{sandbox id} below this domain."}
	errHalfRouted = &refusal{status: http.StatusBadRequest, message: "Send both E2b-Sandbox-Id and E2b-Sandbox-Port, each once and valid, or neither."}
	errPrivate    = &refusal{status: http.StatusForbidden, port: true, message: "This port is private, and the request has no token that opens it. Use a link that its team shared, or ask for a new one when it has expired."}
	errForeign    = &refusal{status: http.StatusForbidden, port: true, message: "A page of another site may not use what you have opened here."}
	errNoWorker   = &refusal{status: http.StatusForbidden, port: true, message: "Service workers are not served from sandboxes."}
	errNoToken    = &refusal{status: http.StatusUnauthorized, message: "unauthorized access, please provide a valid access token or method signing if supported"}
	errNoPath     = &refusal{status: http.StatusNotFound, message: "There is nothing at this path."}
	errNoSandbox  = &refusal{status: http.StatusBadGateway, message: "The sandbox was not found"}
	errPaused     = &refusal{status: http.StatusBadGateway, message: "The sandbox is paused. Resume it, then try again."}
	errNotRunning = &refusal{status: http.StatusBadGateway, message: "The sandbox is not running."}
	errEnded      = &refusal{status: http.StatusBadGateway, message: "The sandbox ended, or was paused, before it answered."}
	errClosed     = &refusal{status: http.StatusBadGateway, port: true, message: "The sandbox is running but port is not open"}
	errBroken     = &refusal{status: http.StatusBadGateway, port: true, message: "The connection to the port broke before it answered."}
	errHost       = &refusal{status: http.StatusBadGateway, message: "The host that runs this sandbox cannot be reached now. Try again in a few seconds."}
	errNoRoom     = &refusal{status: http.StatusServiceUnavailable, message: "No host has room to resume the sandbox now. Try again."}
	errBusy       = &refusal{status: http.StatusServiceUnavailable, message: "Too much is asked at a time. Try again."}
	errFull       = &refusal{status: http.StatusServiceUnavailable, message: "There are as many open connections as there may be. Close some and try again."}
	errStopping   = &refusal{status: http.StatusServiceUnavailable, message: "The server is being restarted. Connect again."}
	errOurs       = &refusal{status: http.StatusInternalServerError, message: "Something went wrong on our side. Try again."}
)

// refusalOf names a failure on the way to a sandbox.
func refusalOf(err error) *refusal {
	e := errs.As(err)
	switch {
	case e.Reason == "port_closed", e.Reason == "port_unresponsive":
		return errClosed.because(err)
	case e.Reason == "no_capacity":
		return errNoRoom.because(err)
	case e.Reason == "too_many_connections":
		return errFull.because(err)
	case e.Reason == "sandbox_not_found", e.Reason == "unknown_sandbox", e.Reason == "sandbox_gone":
		return errNoSandbox.because(err)
	case e.Reason == "stale_incarnation", e.Reason == "sandbox_not_running":
		return errEnded.because(err)
	case e.Reason == "invalid_state":
		switch e.Details["status"] {
		case "paused":
			return errPaused.because(err)
		case "stopped", "error", "stopping":
			return errNoSandbox.because(err)
		}
		return errNotRunning.because(err)
	case e.Code == errs.CodeUnavailable:
		return errHost.because(err)
	default:
		return errBroken.because(err)
	}
}

// page is what people see. It loads nothing and runs nothing.
var page = template.Must(template.New("refusal").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Code}}</title></head>
<body><main><h1>{{.Title}}</h1><p>{{.Message}}</p>{{if .Sandbox}}<p>{{.Sandbox}}{{if .Port}}, port {{.Port}}{{end}}</p>{{end}}</main></body></html>
`))

// write answers with the refusal: a page for browsers, else JSON in the form
// that clients of E2B know.
func (r *refusal) write(w http.ResponseWriter, req *http.Request, t Target) {
	h := w.Header()
	clear(h)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	if t.Port == control {
		allowAnyOrigin(h)
	}
	number := 0
	if r.port {
		number = t.Port
	}
	if wantsPage(req) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(r.status)
		_ = page.Execute(w, map[string]any{
			"Code": r.status, "Title": strconv.Itoa(r.status) + " " + http.StatusText(r.status), "Message": r.message, "Sandbox": t.Name, "Port": number,
		})
		return
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	_ = json.NewEncoder(w).Encode(struct {
		Sandbox string `json:"sandboxId,omitempty"`
		Message string `json:"message"`
		Port    int    `json:"port,omitempty"`
		Code    int    `json:"code"`
	}{t.Name, r.message, number, r.status})
}

// wantsPage tells a person at a browser from a program.
func wantsPage(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Contains(r.Header.Get("Accept"), "text/html")
}
