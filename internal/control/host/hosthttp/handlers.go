// Package hosthttp is the host room's slice of the REST handler: people
// announce hosts, agents join, refresh, live and report.
package hosthttp

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/idempotency"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Reports takes what agents tell of sandboxes.
type Reports interface {
	Report(ctx context.Context, from id.Host, generation int64, reports []sandbox.Report) error
	Samples(ctx context.Context, from id.Host, samples []sandbox.Sample) error
}

// Strays are what a host holds that is not known to be there.
type Strays interface {
	Strays(ctx context.Context, h id.Host, p page.Request) (page.Page[sandbox.Stray], error)
	DestroyStray(ctx context.Context, by principal.Principal, h id.Host, x id.Sandbox) error
}

// Handlers serves the routes. Principals come from the request's context.
type Handlers struct {
	hosts   *host.Service
	reports Reports
	strays  Strays
	replays *idempotency.Service
}

// New makes the handlers.
func New(hosts *host.Service, reports Reports, strays Strays, replays *idempotency.Service) *Handlers {
	return &Handlers{hosts: hosts, reports: reports, strays: strays, replays: replays}
}

// CreateHost implements createHost.
func (h *Handlers) CreateHost(ctx context.Context, req *restapi.CreateHostRequest, _ restapi.CreateHostParams) (*restapi.CreatedHost, error) {
	made, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (host.Created, error) {
		return h.hosts.Create(ctx, principal.From(ctx), host.CreateRequest{
			Type: host.Type(req.Type), Name: req.Name.Value, Provider: req.Provider.Value,
			AvailabilityZone: req.AvailabilityZone.Value, Labels: req.Labels.Value,
		})
	})
	if err != nil {
		return nil, err
	}
	return toCreated(made), nil
}

// CreateHostToken implements createHostToken.
func (h *Handlers) CreateHostToken(ctx context.Context, params restapi.CreateHostTokenParams) (*restapi.CreatedHost, error) {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return nil, err
	}
	made, err := idempotency.Do(ctx, h.replays, func(ctx context.Context) (host.Created, error) {
		return h.hosts.IssueToken(ctx, principal.From(ctx), hostID)
	})
	if err != nil {
		return nil, err
	}
	return toCreated(made), nil
}

// GetHost implements getHost.
func (h *Handlers) GetHost(ctx context.Context, params restapi.GetHostParams) (*restapi.Host, error) {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return nil, err
	}
	got, err := h.hosts.Get(ctx, principal.From(ctx), hostID)
	if err != nil {
		return nil, err
	}
	out := toHost(got)
	return &out, nil
}

// ListHosts implements listHosts.
func (h *Handlers) ListHosts(ctx context.Context, params restapi.ListHostsParams) (*restapi.HostList, error) {
	var limit *int
	if n, ok := params.Limit.Get(); ok {
		limit = &n
	}
	p, err := page.NewRequest(limit, params.Cursor.Value)
	if err != nil {
		return nil, err
	}
	got, err := h.hosts.List(ctx, principal.From(ctx), p)
	if err != nil {
		return nil, err
	}
	out := &restapi.HostList{Items: make([]restapi.Host, len(got.Items)), NextCursor: optString(got.NextCursor)}
	for i, x := range got.Items {
		out.Items[i] = toHost(x)
	}
	return out, nil
}

// RegisterHost implements registerHost.
func (h *Handlers) RegisterHost(ctx context.Context, req *restapi.RegisterHostRequest) (*restapi.HostCredentials, error) {
	f := req.Facts
	facts := host.Facts{
		Hostname: f.Hostname, Arch: f.Arch, CPUs: int64(f.Cpus), MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		Kernel: f.Kernel, Version: f.Version, Address: f.Address,
	}
	facts.Engines = toEngines(f.Engines)
	made, err := h.hosts.Register(ctx, principal.From(ctx), req.RegistrationToken, req.Csr, facts)
	if err != nil {
		return nil, err
	}
	return toCredentials(made), nil
}

// toEngines keeps apart what was left out from what is empty.
func toEngines(in []restapi.HostEngine) (out []scheduler.Engine) {
	if in != nil {
		out = make([]scheduler.Engine, len(in))
	}
	for i, e := range in {
		out[i] = scheduler.Engine{
			Name: e.Name, Version: e.Version, Digest: e.Digest.Or(""), Healthy: e.Healthy, Reasons: e.Reasons, CPUFeatures: e.CPUFeatures,
		}
		for _, b := range e.Builds {
			out[i].Builds = append(out[i].Builds, scheduler.EngineBuild(b))
		}
	}
	return out
}

// RefreshHost implements refreshHost.
func (h *Handlers) RefreshHost(ctx context.Context, req *restapi.RefreshHostRequest) (*restapi.HostCredentials, error) {
	made, err := h.hosts.Refresh(ctx, principal.From(ctx), req.RefreshToken, req.Csr)
	if err != nil {
		return nil, err
	}
	return toCredentials(made), nil
}

// Heartbeat implements heartbeat.
func (h *Handlers) Heartbeat(ctx context.Context, req *restapi.HeartbeatRequest, params restapi.HeartbeatParams) error {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return err
	}
	l := req.Load
	return h.hosts.Heartbeat(ctx, principal.From(ctx), host.Beat{
		Host: hostID, Generation: req.Generation, Address: req.Address, Version: req.Version, Engines: toEngines(req.Engines),
		Load: host.Load{Sandboxes: int64(l.Sandboxes), CPUMillis: int64(l.CPUMillis), MemoryBytes: l.MemoryBytes, DiskFreeBytes: l.DiskFreeBytes},
	})
}

// ReportHostEvents implements reportHostEvents.
func (h *Handlers) ReportHostEvents(ctx context.Context, req *restapi.HostEventsRequest, params restapi.ReportHostEventsParams) error {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return err
	}
	if by := principal.From(ctx); by.Kind != principal.KindHost || by.HostID != hostID {
		return host.ErrHostToken
	}
	reports := make([]sandbox.Report, len(req.Events))
	for i, e := range req.Events {
		if reports[i], err = toReport(e); err != nil {
			return err
		}
	}
	return h.reports.Report(ctx, hostID, req.Generation, reports)
}

// ReportHostSamples implements reportHostSamples.
func (h *Handlers) ReportHostSamples(ctx context.Context, req *restapi.HostSamplesRequest, params restapi.ReportHostSamplesParams) error {
	hostID, err := id.ParseHost(params.ID)
	if err != nil {
		return err
	}
	if by := principal.From(ctx); by.Kind != principal.KindHost || by.HostID != hostID {
		return host.ErrHostToken
	}
	samples := make([]sandbox.Sample, len(req.Samples))
	for i, s := range req.Samples {
		x, err := id.Sandbox{}.ParseBare(s.SandboxID)
		if err != nil {
			return err
		}
		if s.CPUMillis < 0 || s.CPUMillis > maxSample || s.Processes < 0 || s.Processes > maxSample || s.MemoryBytes < 0 || s.DiskBytes < 0 {
			return errs.Field("samples", "A sample holds amounts that can be, none below zero.")
		}
		samples[i] = sandbox.Sample{Sandbox: x, Figures: sandbox.Figures{
			At: s.At, CPUMillis: int64(s.CPUMillis), MemoryBytes: s.MemoryBytes, DiskBytes: s.DiskBytes, Processes: int64(s.Processes),
		}}
	}
	return h.reports.Samples(ctx, hostID, samples)
}

// maxSample is what fits the database's integers.
const maxSample = 1<<31 - 1

// maxEventData bounds what one event may carry, in bytes.
const maxEventData = 16 << 10

func toReport(e restapi.HostEventRequest) (sandbox.Report, error) {
	x, err := id.Sandbox{}.ParseBare(strings.TrimPrefix(e.SandboxID, "sb-"))
	if err != nil {
		return sandbox.Report{}, err
	}
	if e.Seq < 0 || e.Kind == "" {
		return sandbox.Report{}, errs.Field("events", "An event needs a seq that is not negative and a kind.")
	}
	out := sandbox.Report{Seq: e.Seq, Kind: e.Kind, Sandbox: x, Incarnation: e.Incarnation, At: e.At, Data: map[string]any{}}
	size := 0
	for k, raw := range e.Data.Value {
		// The database keeps no zero characters; an event is not worth a refusal.
		if size += len(k) + len(raw); size > maxEventData || strings.Contains(string(raw), `\u0000`) || strings.ContainsRune(k, 0) {
			out.Data["cut"] = true
			continue
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return sandbox.Report{}, errs.Field("events", "The data of an event must be JSON.").Because(err)
		}
		out.Data[k] = v
	}
	return out, nil
}

func toCreated(c host.Created) *restapi.CreatedHost {
	return &restapi.CreatedHost{
		Host: toHost(c.Host), RegistrationToken: c.Token, ExpiresAt: c.ExpiresAt.UTC(), CaSHA256: c.CASHA256, InstallCommand: c.Install,
	}
}

func toCredentials(c host.Credentials) *restapi.HostCredentials {
	return &restapi.HostCredentials{
		HostID: c.HostID.String(), HostJwt: c.JWT, HostJwtExpiresAt: c.JWTExpiresAt.UTC(),
		RefreshToken: c.RefreshToken, RefreshTokenExpiresAt: c.RefreshExpiresAt.UTC(), Certificate: c.Certificate, Ca: c.CA,
	}
}

func toHost(h host.Host) restapi.Host {
	f := h.Facts
	out := restapi.Host{
		ID: h.ID.String(), Name: h.Name, Type: restapi.HostType(h.Type), Status: restapi.HostStatus(h.Status), StatusReason: optString(h.Why()),
		TeamID: h.TeamID.String(), TeamName: optString(h.TeamName), Provider: h.Provider, AvailabilityZone: h.AvailabilityZone,
		Labels: h.Labels, Address: optString(f.Address), Arch: f.Arch, CPUCount: int(f.CPUs), MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		Kernel: optString(f.Kernel), AgentVersion: optString(f.Version), Engines: make([]restapi.HostEngine, len(f.Engines)), CreatedAt: h.CreatedAt.UTC(),
	}
	if out.Labels == nil {
		out.Labels = restapi.HostLabels{}
	}
	for i, e := range f.Engines {
		out.Engines[i] = restapi.HostEngine{
			Name: e.Name, Version: e.Version, Digest: optString(e.Digest), Healthy: e.Healthy, Reasons: e.Reasons, CPUFeatures: e.CPUFeatures,
		}
		for _, b := range e.Builds {
			out.Engines[i].Builds = append(out.Engines[i].Builds, restapi.HostEngineBuild(b))
		}
	}
	out.Sandboxes.SetTo(int(h.Sandboxes))
	out.Capacity, out.Reserved = restapi.HostAmounts(h.Capacity()), restapi.HostAmounts(h.Reserved)
	if h.DrainRequestedAt != nil {
		out.OnlyHere.SetTo(int(h.OnlyHere))
	}
	out.NeedsRegistration, out.Drained, out.DrainError = h.NeedsRegistration, h.Drained(), optString(h.DrainError)
	setTime(&out.DrainRequestedAt, h.DrainRequestedAt)
	setTime(&out.DrainDeadline, h.DrainDeadlineAt)
	if setTime(&out.LastHeartbeatAt, h.LastHeartbeatAt); h.LastHeartbeatAt != nil {
		out.Load.SetTo(restapi.HostLoad(h.Load))
	}
	return out
}

func setTime(to *restapi.OptDateTime, at *time.Time) {
	if at != nil {
		to.SetTo(at.UTC())
	}
}

func optString(s string) (out restapi.OptString) {
	if s != "" {
		out.SetTo(s)
	}
	return out
}
