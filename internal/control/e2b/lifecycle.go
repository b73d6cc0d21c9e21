package e2b

import (
	"net/http"
	"time"

	"skerry.dev/skerry/internal/control/edge"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/errs"
)

// detail is a sandbox as lists show it, and with Access and what follows as it
// is shown alone.
type detail struct {
	SandboxID  string            `json:"sandboxID"`
	TemplateID string            `json:"templateID"`
	ClientID   string            `json:"clientID"`
	Alias      string            `json:"alias,omitempty"`
	StartedAt  time.Time         `json:"startedAt"`
	EndAt      time.Time         `json:"endAt"`
	State      string            `json:"state"`
	CPUCount   int64             `json:"cpuCount"`
	MemoryMB   int64             `json:"memoryMB"`
	DiskMB     int64             `json:"diskSizeMB"`
	Version    string            `json:"envdVersion"`
	Metadata   map[string]string `json:"metadata,omitempty"`

	Access    string     `json:"envdAccessToken,omitempty"`
	Domain    string     `json:"domain,omitempty"`
	Internet  *bool      `json:"allowInternetAccess,omitempty"`
	Lifecycle *lifecycle `json:"lifecycle,omitempty"`
}

type lifecycle struct {
	OnTimeout  string `json:"onTimeout"`
	AutoResume bool   `json:"autoResume"`
}

// The two states that there are.
const (
	stateRunning = "running"
	statePaused  = "paused"
)

func stateOf(s sandbox.Status) string {
	if s == sandbox.StatusPaused {
		return statePaused
	}
	return stateRunning
}

// itemOf is a line of a list. What began with the creation is ordered by it.
func itemOf(x sandbox.Sandbox) detail {
	d := detail{
		SandboxID: edge.ShortName(x.ID), TemplateID: x.TemplateID.String(), ClientID: clientID, Alias: x.TemplateName,
		StartedAt: x.CreatedAt.UTC(), State: stateOf(x.Status), CPUCount: wholeCPUs(x.CPUMillis), MemoryMB: x.MemoryMB, DiskMB: x.DiskMB,
		Version: guestapi.ProtocolVersion, Metadata: x.Metadata,
	}
	switch {
	case x.Status == sandbox.StatusPaused && x.PausedAt != nil:
		d.EndAt = x.PausedAt.UTC()
	case x.DeadlineAt != nil:
		d.EndAt = x.DeadlineAt.UTC()
	default: // one that is starting: its deadline comes with its start
		d.EndAt = x.CreatedAt.Add(time.Duration(x.TimeoutSec) * time.Second).UTC()
	}
	return d
}

// wholeCPUs rounds up: the protocol has no parts of one.
func wholeCPUs(millis int64) int64 { return (millis + 999) / 1000 }

// detailOf adds what is shown of one alone. Whoever may only read hears no token
// with which to do more.
func (f *Facade) detailOf(x sandbox.Sandbox, by principal.Principal) detail {
	d := itemOf(x)
	d.Domain, d.Internet = f.domain, &x.Internet
	if by.Can(principal.ScopeSandboxes) {
		d.Access = sandbox.AccessToken(f.Secret, x.ID)
	}
	d.Lifecycle = &lifecycle{OnTimeout: string(x.OnTimeout), AutoResume: x.AutoResume}
	return d
}

// get shows a sandbox.
func (f *Facade) get(w http.ResponseWriter, r *http.Request) error {
	x, err := f.living(r)
	if err != nil {
		return err
	}
	return answered(w, http.StatusOK, f.detailOf(x, principal.From(r.Context())))
}

// kill ends a sandbox, a paused one, too.
func (f *Facade) kill(w http.ResponseWriter, r *http.Request) error {
	x, err := f.living(r)
	if err != nil {
		return err
	}
	if err := f.Sandboxes.Delete(r.Context(), principal.From(r.Context()), x.ID); err != nil {
		return gone(r, err)
	}
	return done(w)
}

// setTimeout moves the deadline, to either side. Less than a second from now is
// a second.
func (f *Facade) setTimeout(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := read(r, &body); err != nil {
		return err
	}
	if body.Timeout == nil {
		return errs.Field("timeout", "timeout must be given, in seconds.")
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	_, err = f.Sandboxes.SetTimeout(r.Context(), principal.From(r.Context()), x.ID, max(*body.Timeout, 1))
	if err != nil {
		return stopped(r, err)
	}
	return done(w)
}

// refresh puts the deadline off.
func (f *Facade) refresh(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Duration *int64 `json:"duration"`
	}
	if err := read(r, &body); err != nil {
		return err
	}
	duration := int64(timeoutRefresh)
	if body.Duration != nil {
		if *body.Duration < 0 || *body.Duration > mostRefresh {
			return errs.Field("duration", "duration must be between 0 and 3600 seconds.")
		}
		duration = max(duration, *body.Duration)
	}
	x, err := f.living(r)
	if err != nil {
		return err
	}
	if _, err := f.Sandboxes.ExtendTimeout(r.Context(), principal.From(r.Context()), x.ID, duration); err != nil {
		return stopped(r, err)
	}
	return done(w)
}

// stopped is what a sandbox that does not run answers where the protocol knows
// only those that do.
func stopped(r *http.Request, err error) error {
	if errs.Is(err, "invalid_state") && statusIn(err) == sandbox.StatusPaused {
		return missing(r.PathValue("id"))
	}
	return gone(r, err)
}
