package sandboxpg

import (
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxpg/sqlcgen"
	"skerry.dev/skerry/internal/kernel/id"
)

func fromRow(r sqlcgen.Sandbox, address, hostStatus string) (sandbox.Sandbox, error) {
	out := sandbox.Sandbox{
		ID: r.ID, TeamID: r.TeamID, Host: host.Ref{ID: r.HostID, Address: address, Online: host.Status(hostStatus).Reachable()},
		TemplateID: r.TemplateID, TemplateName: r.TemplateName, ImageDigest: r.ImageDigest,
		Status: sandbox.Status(r.Status), Incarnation: r.Incarnation, Engine: r.Engine, EngineVersion: r.EngineVersion,
		CPUMillis: int64(r.CpuMillis), MemoryMB: int64(r.MemoryMb), DiskMB: int64(r.DiskMb), Internet: r.Internet, EnvSealed: r.EnvSealed,
		TimeoutSec: int64(r.TimeoutSec), OnTimeout: sandbox.OnTimeout(r.OnTimeout), DeadlineAt: r.DeadlineAt,
		IdleTimeoutSec: widen(r.IdleTimeoutSec), IdleCheckAt: r.IdleCheckAt, CheckpointIntervalSec: widen(r.CheckpointIntervalSec),
		PausedTTLSec: widen(r.PausedTtlSec), AutoResume: r.AutoResume,
		FromState: r.FromSnapshotID, BuildID: r.BuildID, StateID: r.StateID, StateAt: r.StateAt, PausedAt: r.PausedAt, PausedReason: r.PausedReason,
		EndReason: r.EndReason, Error: r.Error,
		CreatedByType: r.CreatedByType, CreatedByID: r.CreatedByID, CreatedByName: r.CreatedByName,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, UpdatedAt: r.UpdatedAt,
	}
	if err := json.Unmarshal(r.Metadata, &out.Metadata); err != nil {
		return sandbox.Sandbox{}, fmt.Errorf("metadata of %s: %w", r.ID, err)
	}
	return out, nil
}

// joined adds what a read finds beside the row; a sandbox without a saved state
// has NULLs there.
func joined(r sqlcgen.GetSandboxRow) (sandbox.Sandbox, error) {
	out, err := fromRow(r.Sandbox, r.Address, r.HostStatus)
	if err != nil {
		return out, err
	}
	out.HostDeleted = r.HostStatus == string(host.StatusDeleted)
	if r.StateBytes != nil {
		out.StateBytes = *r.StateBytes
	}
	if r.StateStatus != nil {
		out.StateStatus = sandbox.StateStatus(*r.StateStatus)
	}
	out.StateStored, out.StateCopies = r.StateArtifact == string(artifact.StatusReady), hosts(r.StateCopies)
	if len(r.Progress) > 2 { // not {}
		out.Progress = &sandbox.Progress{}
		if err := json.Unmarshal(r.Progress, out.Progress); err != nil {
			return out, fmt.Errorf("progress of %s: %w", out.ID, err)
		}
	}
	return out, nil
}

func lockedRow(r sqlcgen.LockSandboxRow) (sandbox.Sandbox, error) {
	return joined(sqlcgen.GetSandboxRow{
		Sandbox: r.Sandbox, Address: r.Address, HostStatus: r.HostStatus, StateBytes: r.StateBytes, StateStatus: r.StateStatus,
		StateArtifact: r.StateArtifact, StateCopies: r.StateCopies, Progress: r.Progress,
	})
}

func hosts(ids []uuid.UUID) []id.Host {
	out := make([]id.Host, len(ids))
	for i, u := range ids {
		out[i] = id.Host{}.FromUUID(u)
	}
	return out
}

func widen(v *int32) *int64 {
	if v == nil {
		return nil
	}
	n := int64(*v)
	return &n
}

// moved gives the row of a common table expression, whose ids have lost their
// kind, its type again.
func moved(r sqlcgen.TransitionRow) sqlcgen.Sandbox {
	return sqlcgen.Sandbox{
		ID: id.Sandbox{}.FromUUID(r.ID), TeamID: r.TeamID, HostID: id.Host{}.FromUUID(r.HostID), TemplateID: r.TemplateID,
		TemplateName: r.TemplateName, ImageDigest: r.ImageDigest, Status: r.Status, Incarnation: r.Incarnation,
		Engine: r.Engine, EngineVersion: r.EngineVersion, CpuMillis: r.CpuMillis, MemoryMb: r.MemoryMb, DiskMb: r.DiskMb,
		Internet: r.Internet, EnvSealed: r.EnvSealed, Metadata: r.Metadata, TimeoutSec: r.TimeoutSec, OnTimeout: r.OnTimeout,
		IdleTimeoutSec: r.IdleTimeoutSec, DeadlineAt: r.DeadlineAt, IdleCheckAt: r.IdleCheckAt,
		CheckpointIntervalSec: r.CheckpointIntervalSec, CheckpointDueAt: r.CheckpointDueAt, RetryAt: r.RetryAt,
		PausedTtlSec: r.PausedTtlSec, TtlWarnedAt: r.TtlWarnedAt,
		FromSnapshotID: snapshotID(r.FromSnapshotID), BuildID: buildID(r.BuildID), StateID: snapshotID(r.StateID), StateAt: r.StateAt,
		PausedAt: r.PausedAt, PausedReason: r.PausedReason, EndReason: r.EndReason, Error: r.Error,
		CreatedByType: r.CreatedByType, CreatedByID: r.CreatedByID, CreatedByName: r.CreatedByName,
		CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, UpdatedAt: r.UpdatedAt,
	}
}

func snapshotID(u *uuid.UUID) *id.Snapshot {
	if u == nil {
		return nil
	}
	s := id.Snapshot{}.FromUUID(*u)
	return &s
}

func buildID(u *uuid.UUID) *id.Build {
	if u == nil {
		return nil
	}
	b := id.Build{}.FromUUID(*u)
	return &b
}

func snapshotUUID(s *id.Snapshot) *uuid.UUID {
	if s == nil || s.IsZero() {
		return nil
	}
	u := s.UUID()
	return &u
}

func operation(r sqlcgen.Operation) (sandbox.Operation, error) {
	out := sandbox.Operation{
		ID: r.ID, SandboxID: r.SandboxID, TeamID: r.TeamID, Kind: sandbox.OperationKind(r.Kind), Incarnation: r.Incarnation,
		Attempts: int64(r.Attempts), DeadlineAt: r.DeadlineAt, CreatedAt: r.CreatedAt,
	}
	if err := json.Unmarshal(r.Params, &out.Params); err != nil {
		return out, fmt.Errorf("params of %s: %w", r.ID, err)
	}
	return out, nil
}

// placedState adds where a state is.
func placedState(r sqlcgen.GetStateRow) sandbox.Snapshot {
	out := stateOf(r.Snapshot)
	out.Host = host.Ref{ID: r.Snapshot.HostID, Address: r.Address, Online: host.Status(r.HostStatus).Reachable()}
	out.Copies = hosts(r.Copies)
	switch artifact.Status(r.ArtifactStatus) {
	case artifact.StatusReady:
		out.Stored, out.StoredBytes = true, r.StoredBytes
	case artifact.StatusUploading:
		out.SentBytes = r.SentBytes
	}
	out.Uploading = r.Snapshot.UploadAt != nil && !out.Stored
	return out
}

// stateOf is the row alone.
func stateOf(r sqlcgen.Snapshot) sandbox.Snapshot {
	out := sandbox.Snapshot{
		ID: r.ID, TeamID: r.TeamID, Kind: sandbox.StateKind(r.Kind), Status: sandbox.StateStatus(r.Status), Error: r.Error,
		SandboxID: r.SandboxID, Incarnation: r.Incarnation, Host: host.Ref{ID: r.HostID}, Arch: r.Arch, UploadError: r.UploadError,
		TemplateID: r.TemplateID, TemplateName: r.TemplateName, ImageDigest: r.ImageDigest, Engine: r.Engine, EngineVersion: r.EngineVersion,
		CPUFeatures: r.CpuFeatures, Memory: r.Memory, CPUMillis: int64(r.CpuMillis), MemoryMB: int64(r.MemoryMb), DiskMB: int64(r.DiskMb),
		Internet: r.Internet, EnvSealed: r.EnvSealed, SizeBytes: r.SizeBytes, Digest: r.Digest,
		CreatedByName: r.CreatedByName, CreatedAt: r.CreatedAt, ReadyAt: r.ReadyAt,
	}
	if r.Name != nil {
		out.Name = *r.Name
	}
	return out
}
