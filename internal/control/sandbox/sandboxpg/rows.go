package sandboxpg

import (
	"encoding/json"
	"fmt"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

func fromRow(r sqlcgen.Sandbox, address, hostStatus string) (sandbox.Sandbox, error) {
	out := sandbox.Sandbox{
		ID: r.ID, TeamID: r.TeamID, Host: host.Ref{ID: r.HostID, Address: address, Online: hostStatus == string(host.StatusOnline)},
		TemplateID: r.TemplateID, TemplateName: r.TemplateName, ImageDigest: r.ImageDigest,
		Status: sandbox.Status(r.Status), Incarnation: r.Incarnation, Engine: r.Engine, EngineVersion: r.EngineVersion,
		CPUMillis: int64(r.CpuMillis), MemoryMB: int64(r.MemoryMb), DiskMB: int64(r.DiskMb), Internet: r.Internet, EnvSealed: r.EnvSealed,
		TimeoutSec: int64(r.TimeoutSec), OnTimeout: sandbox.OnTimeout(r.OnTimeout), DeadlineAt: r.DeadlineAt,
		EndReason: r.EndReason, Error: r.Error,
		CreatedByType: r.CreatedByType, CreatedByID: r.CreatedByID, CreatedByName: r.CreatedByName,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, UpdatedAt: r.UpdatedAt,
	}
	if r.IdleTimeoutSec != nil {
		idle := int64(*r.IdleTimeoutSec)
		out.IdleTimeoutSec = &idle
	}
	if err := json.Unmarshal(r.Metadata, &out.Metadata); err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("metadata of %s: %w", r.ID, err)
	}
	return out, nil
}

// moved gives the row of a common table expression, whose ids have lost their
// kind, its type again.
func moved(r sqlcgen.TransitionRow) sqlcgen.Sandbox {
	return sqlcgen.Sandbox{
		ID: id.Sandbox{}.FromUUID(r.ID), TeamID: r.TeamID, HostID: id.Host{}.FromUUID(r.HostID), TemplateID: r.TemplateID,
		TemplateName: r.TemplateName, ImageDigest: r.ImageDigest, Status: r.Status, Incarnation: r.Incarnation,
		Engine: r.Engine, EngineVersion: r.EngineVersion, CpuMillis: r.CpuMillis, MemoryMb: r.MemoryMb, DiskMb: r.DiskMb,
		Internet: r.Internet, EnvSealed: r.EnvSealed, Metadata: r.Metadata, TimeoutSec: r.TimeoutSec, OnTimeout: r.OnTimeout,
		IdleTimeoutSec: r.IdleTimeoutSec, DeadlineAt: r.DeadlineAt, EndReason: r.EndReason, Error: r.Error,
		CreatedByType: r.CreatedByType, CreatedByID: r.CreatedByID, CreatedByName: r.CreatedByName,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, UpdatedAt: r.UpdatedAt,
	}
}

func operation(r sqlcgen.Operation) sandbox.Operation {
	return sandbox.Operation{
		ID: r.ID, SandboxID: r.SandboxID, TeamID: r.TeamID, Kind: sandbox.OperationKind(r.Kind), Incarnation: r.Incarnation,
		Attempts: int64(r.Attempts), DeadlineAt: r.DeadlineAt, CreatedAt: r.CreatedAt,
	}
}
