package e2b

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Timeouts of requests that name none, in seconds.
const (
	timeoutV1      = 15
	timeoutV2      = 300
	timeoutResume  = 15
	timeoutRefresh = 15
	mostRefresh    = 3600
)

// newSandbox is a create's body. Sandboxes are always secure, so `secure` is not
// looked at.
type newSandbox struct {
	Template        string            `json:"templateID"`
	Timeout         *int64            `json:"timeout"`
	Metadata        map[string]string `json:"metadata"`
	Env             map[string]string `json:"envVars"`
	Internet        *bool             `json:"allow_internet_access"`
	Network         *network          `json:"network"`
	AutoPause       bool              `json:"autoPause"`
	AutoPauseMemory *bool             `json:"autoPauseMemory"`
	AutoResume      struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Mcp     json.RawMessage `json:"mcp"`
	Iam     json.RawMessage `json:"iam"`
	Volumes json.RawMessage `json:"volumeMounts"`
}

// network is a sandbox's wish of what it reaches and is reached by. That ports
// may be public is not looked at: they are opened one by one.
type network struct {
	AllowOut    json.RawMessage `json:"allowOut"`
	DenyOut     []string        `json:"denyOut"`
	Rules       json.RawMessage `json:"rules"`
	EgressProxy json.RawMessage `json:"egressProxy"`
	MaskHost    json.RawMessage `json:"maskRequestHost"`
	HTTPSPorts  json.RawMessage `json:"httpsPorts"`
}

// everywhere as the only thing denied is no internet at all.
const everywhere = "0.0.0.0/0"

// request translates a body. What would be without effect here is refused, not
// passed over: a rule that does not hold is worse than none.
func (n newSandbox) request(timeout int64) (sandbox.CreateRequest, error) {
	if n.Template == "" {
		return sandbox.CreateRequest{}, errs.Field("templateID", "templateID must name a template; `base` comes with Skerry.")
	}
	for field, raw := range map[string]json.RawMessage{"mcp": n.Mcp, "iam": n.Iam, "volumeMounts": n.Volumes} {
		if !empty(raw) {
			return sandbox.CreateRequest{}, unsupported(field)
		}
	}
	out := sandbox.CreateRequest{
		TimeoutSec: &timeout, OnTimeout: sandbox.OnTimeoutKill, Metadata: n.Metadata, Env: n.Env, Internet: n.Internet, AutoResume: n.AutoResume.Enabled,
	}
	if n.Timeout != nil {
		out.TimeoutSec = n.Timeout
	}
	if *out.TimeoutSec < 1 {
		return out, errs.Field("timeout", "timeout must be at least 1 second.")
	}
	if n.AutoPause {
		out.OnTimeout = sandbox.OnTimeoutPause
	}
	if n.AutoPauseMemory != nil && !*n.AutoPauseMemory {
		if !n.AutoPause {
			return out, errs.Field("autoPauseMemory", "autoPauseMemory can only be false together with autoPause.")
		}
		return out, unsupported("autoPauseMemory")
	}
	if n.Network == nil {
		return out, nil
	}
	no, err := n.Network.closed()
	if no {
		internet := false
		out.Internet = &internet
	}
	return out, err
}

// closed reports whether nothing outside may be reached.
func (n network) closed() (bool, error) {
	for field, raw := range map[string]json.RawMessage{
		"allowOut": n.AllowOut, "rules": n.Rules, "egressProxy": n.EgressProxy, "maskRequestHost": n.MaskHost, "httpsPorts": n.HTTPSPorts,
	} {
		if !empty(raw) {
			return false, unsupported("network." + field)
		}
	}
	switch {
	case len(n.DenyOut) == 0:
		return false, nil
	case len(n.DenyOut) == 1 && n.DenyOut[0] == everywhere:
		return true, nil
	}
	return false, errs.Field("network.denyOut", "network.denyOut can only be [\""+everywhere+"\"]: no internet at all.")
}

func unsupported(field string) *errs.Error {
	return errs.Field(field, fmt.Sprintf("Skerry does not support %s yet; leave it out.", field))
}

// empty reports whether a value asks for nothing.
func empty(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "null", "[]", "{}", `""`:
		return true
	}
	return false
}

// source says what a name starts from. `alias:tag` has only the tag that every
// template has, and a namespace is the team's own, so there is none.
func source(name string) (templateName, snapshot string) {
	name = strings.TrimSuffix(name, ":default")
	if strings.HasPrefix(name, "snap-") {
		return "", name
	}
	return name, ""
}

// create starts a sandbox and answers once it serves.
func (f *Facade) create(timeout int64) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		var body newSandbox
		if err := read(r, &body); err != nil {
			return err
		}
		req, err := body.request(timeout)
		if err != nil {
			return err
		}
		req.Template, req.Snapshot = source(body.Template)
		ctx, by := r.Context(), principal.From(r.Context())
		receipt, err := f.Sandboxes.Create(ctx, by, req)
		if errs.Is(err, template.ErrNotFound.Reason) && req.Template != "" {
			// A snapshot goes by its name as well.
			req.Template, req.Snapshot = "", req.Template
			receipt, err = f.Sandboxes.Create(ctx, by, req)
		}
		if errs.CodeOf(err) == errs.CodeNotFound {
			return errs.NotFound(template.ErrNotFound.Reason, fmt.Sprintf("template '%s' not found", body.Template)).Because(err)
		}
		if err != nil {
			return err
		}
		x, err := f.Sandboxes.Await(ctx, receipt)
		if err != nil {
			return err
		}
		return answered(w, http.StatusCreated, f.connectionTo(x))
	}
}
