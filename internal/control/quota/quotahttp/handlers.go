// Package quotahttp serves the operations on limits.
package quotahttp

import (
	"context"
	"math"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/quota"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Limits is the limits' slice of restapi.Handler.
type Limits struct{ service *quota.Service }

// New returns the slice.
func New(service *quota.Service) *Limits { return &Limits{service: service} }

// GetLimits implements restapi.Handler.
func (l *Limits) GetLimits(ctx context.Context) (*restapi.Limits, error) {
	return answer(l.service.Mine(ctx, principal.From(ctx)))
}

// AdminGetTeamLimits implements restapi.Handler.
func (l *Limits) AdminGetTeamLimits(ctx context.Context, params restapi.AdminGetTeamLimitsParams) (*restapi.Limits, error) {
	team, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	return answer(l.service.OfTeam(ctx, team))
}

// AdminSetTeamLimits implements restapi.Handler.
func (l *Limits) AdminSetTeamLimits(ctx context.Context, req *restapi.TeamLimits, params restapi.AdminSetTeamLimitsParams) (*restapi.Limits, error) {
	team, err := id.ParseTeam(params.ID)
	if err != nil {
		return nil, err
	}
	to := quota.Override{
		Sandboxes: count(req.Sandboxes), MemoryMB: amount(req.MemoryMB), DiskMB: amount(req.DiskMB), StoredMB: amount(req.StoredMB),
		APIKeys: count(req.APIKeys), Hosts: count(req.Hosts), Templates: count(req.Templates),
	}
	if v, ok := req.Vcpus.Get(); ok {
		if math.IsNaN(v) || math.Abs(v) > 1e12 {
			return nil, errs.Field("vcpus", "vcpus must be a number of vCPUs, such as 16.")
		}
		millis := int64(math.Round(v * 1000))
		to.CPUMillis = &millis
	}
	return answer(l.service.Set(ctx, principal.From(ctx), team, to))
}

func count(v restapi.OptInt) *int64 {
	n, ok := v.Get()
	if !ok {
		return nil
	}
	wide := int64(n)
	return &wide
}

func amount(v restapi.OptInt64) *int64 {
	n, ok := v.Get()
	if !ok {
		return nil
	}
	return &n
}

func answer(l quota.Limits, err error) (*restapi.Limits, error) {
	if err != nil {
		return nil, err
	}
	pair := func(limit, used int64) restapi.Limit { return restapi.Limit{Limit: limit, Used: used} }
	return &restapi.Limits{
		Sandboxes: pair(l.Limit.Sandboxes, l.Used.Sandboxes),
		Vcpus:     restapi.LimitNumber{Limit: float64(l.Limit.CPUMillis) / 1000, Used: float64(l.Used.CPUMillis) / 1000},
		MemoryMB:  pair(l.Limit.MemoryMB, l.Used.MemoryMB), DiskMB: pair(l.Limit.DiskMB, l.Used.DiskMB),
		StoredMB: pair(l.Limit.StoredMB, l.Used.StoredMB), APIKeys: pair(l.Limit.APIKeys, l.Used.APIKeys),
		Hosts: pair(l.Limit.Hosts, l.Used.Hosts), Templates: pair(l.Limit.Templates, l.Used.Templates),
	}, nil
}
