// Package e2b speaks the control plane's side of E2B's REST protocol, so that
// its published clients work against Skerry with other addresses and another
// key. It owns nothing: every request is one of our own operations on the rooms'
// services, with the same permissions, the same audit entries and the same
// state machine; here are only the other words for them.
package e2b

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Config is what the facade needs; all of it is required.
type Config struct {
	Sandboxes *sandbox.Service
	Templates *template.Service
	// Origin is where ports of sandboxes are.
	Origin port.Origin
	// Secret derives the sandboxes' tokens.
	Secret keyring.Secret
}

// Facade serves the routes.
type Facade struct {
	Config
	domain string
}

// New returns a facade; Mount makes it reachable.
func New(c Config) *Facade {
	domain := c.Origin.Domain
	if c.Origin.Port != "" {
		domain += ":" + c.Origin.Port
	}
	return &Facade{Config: c, domain: domain}
}

// spaces are the paths that belong to the protocol, with all below them.
var spaces = []string{"/sandboxes", "/v2", "/v3", "/templates", "/snapshots", "/teams", "/volumes", "/volumecontent", "/secrets", "/events"}

// route is one of the protocol's and the operation of ours that it is.
type route struct {
	pattern   string
	operation func(*http.Request) string
	handler   func(http.ResponseWriter, *http.Request) error
}

func is(operation string) func(*http.Request) string {
	return func(*http.Request) string { return operation }
}

func (f *Facade) routes() []route {
	return []route{
		{"POST /v2/sandboxes", is("createSandbox"), f.create(timeoutV2)},
		{"POST /sandboxes", is("createSandbox"), f.create(timeoutV1)},
		{"GET /v2/sandboxes", is("listSandboxes"), f.list},
		{"GET /sandboxes", is("listSandboxes"), f.listRunning},
		{"GET /sandboxes/{id}", is("getSandbox"), f.get},
		{"DELETE /sandboxes/{id}", is("deleteSandbox"), f.kill},
		{"POST /sandboxes/{id}/timeout", is("setSandboxTimeout"), f.setTimeout},
		{"POST /sandboxes/{id}/refreshes", is("setSandboxTimeout"), f.refresh},
		{"POST /v2/sandboxes/{id}/connect", is("resumeSandbox"), f.connect(timeoutV2)},
		{"POST /sandboxes/{id}/connect", is("resumeSandbox"), f.connect(0)},
		{"POST /sandboxes/{id}/resume", is("resumeSandbox"), f.resume},
		{"POST /sandboxes/{id}/pause", is("pauseSandbox"), f.pause},
		{"POST /sandboxes/{id}/fork", is("forkSandbox"), f.fork},
		{"GET /sandboxes/{id}/metrics", is("getSandboxMetrics"), f.metrics},
		{"POST /sandboxes/{id}/snapshots", is("createSnapshot"), f.snapshot},
		{"GET /snapshots", is("listSnapshots"), f.listSnapshots},
		{"GET /templates", is("listTemplates"), f.listTemplates},
		{"GET /v2/templates", is("listTemplates"), f.listTemplates},
		{"GET /templates/aliases/{alias}", is("getTemplate"), f.alias},
		{"DELETE /templates/{id}", deletes, f.deleteTemplate},
	}
}

// Mount adds the routes to the API's server. Whatever else is below the
// protocol's paths is answered in its form, too.
func (f *Facade) Mount(s *web.Server) {
	for _, r := range f.routes() {
		s.MountForeign(web.Foreign{Pattern: r.pattern, Operation: r.operation, Handler: r.handler, Fail: fail})
	}
	for _, space := range spaces {
		s.MountNowhere(space, fail)
		s.MountNowhere(space+"/", fail)
	}
}

// failure is an error's body. Clients look at Code, which is the status.
type failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Reason  string `json:"error_code,omitempty"`
}

// fail answers with an error.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	answer := web.Errors{}.NewError(r.Context(), foreign(err))
	e := answer.Response.Error
	_ = answered(w, answer.StatusCode, failure{Code: answer.StatusCode, Message: e.Message, Reason: e.Code}) // the client is gone, the log has the rest
}

// foreign changes what the protocol has another status for.
func foreign(err error) error {
	if e := (*errs.Error)(nil); errors.As(err, &e) && e.Reason == "template_not_ready" {
		return errs.Invalid(e.Reason, e.Message).Because(err)
	}
	return err
}

func answered(w http.ResponseWriter, status int, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return errs.Internal(err)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(raw) // the client is gone; what was done is done
	return nil
}

func done(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// read fills into from a body, which may be absent. Fields that are not known
// are passed over, as the protocol has it.
func read(r *http.Request, into any) error {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return errs.Field(kind.Field, fmt.Sprintf("The field %q has the wrong type.", kind.Field)).Because(err)
		}
		return errs.Invalid("invalid_request", "The body must be a JSON object.").Because(err)
	}
	return nil
}

// named finds which sandbox a path names. What is no id names none.
func named(r *http.Request) (id.Sandbox, error) {
	x, ok := edge.ParseName(r.PathValue("id"))
	if !ok {
		return x, missing(r.PathValue("id"))
	}
	return x, nil
}

func missing(name string) *errs.Error {
	return errs.NotFound(sandbox.ErrNotFound.Reason, fmt.Sprintf("sandbox %q doesn't exist or you don't have access to it", name))
}

// living reads a sandbox of the caller's team that has not ended and is not
// about to. There is none other to this protocol.
func (f *Facade) living(r *http.Request) (sandbox.Sandbox, error) {
	x, err := named(r)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	found, err := f.Sandboxes.Get(r.Context(), principal.From(r.Context()), x)
	if errs.Is(err, sandbox.ErrNotFound.Reason) || err == nil && !present(found.Status) {
		return found, missing(r.PathValue("id"))
	}
	return found, err
}

// present reports whether a sandbox in s exists to this protocol.
func present(s sandbox.Status) bool { return s.Live() && s != sandbox.StatusStopping }

// gone turns what a sandbox that has ended meanwhile refuses into its absence.
func gone(r *http.Request, err error) error {
	if errs.Is(err, sandbox.ErrNotFound.Reason) || errs.Is(err, "invalid_state") && !present(statusIn(err)) {
		return missing(r.PathValue("id"))
	}
	return err
}

// statusIn is the status that an invalid_state names.
func statusIn(err error) sandbox.Status {
	word, _ := errs.As(err).Details["status"].(string)
	return sandbox.Status(word)
}

// clientID stands where E2B names a host. It is of no use to clients, which want
// it there.
const clientID = "skerry"

// connection is what a client needs to speak to a sandbox.
type connection struct {
	SandboxID  string `json:"sandboxID"`
	TemplateID string `json:"templateID"`
	ClientID   string `json:"clientID"`
	Alias      string `json:"alias,omitempty"`
	Version    string `json:"envdVersion"`
	Access     string `json:"envdAccessToken"`
	Traffic    string `json:"trafficAccessToken"`
	Domain     string `json:"domain"`
}

// connectionTo names the sandbox, and the tokens that are good for as long as
// it exists.
func (f *Facade) connectionTo(x sandbox.Sandbox) connection {
	return connection{
		SandboxID: edge.ShortName(x.ID), TemplateID: x.TemplateID.String(), ClientID: clientID, Alias: x.TemplateName, Version: guestapi.ProtocolVersion,
		Access: sandbox.AccessToken(f.Secret, x.ID), Traffic: edge.TrafficToken(f.Secret, x.ID), Domain: f.domain,
	}
}
