package rpcserver

import (
	"context"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

// maxTargets and maxTargetKey bound what is to be kept warm.
const (
	maxTargets   = 256
	maxTargetKey = 64
)

// KeepWarm takes all targets or none.
func (s *service) KeepWarm(_ context.Context, in *agentv1.KeepWarmRequest) (*agentv1.KeepWarmResponse, error) {
	if len(in.GetTargets()) > maxTargets {
		return nil, rpcerr.ToConnect(errs.Field("targets", "There may be 256 of them."))
	}
	targets := make([]manager.WarmTarget, len(in.GetTargets()))
	for i, t := range in.GetTargets() {
		spec, err := warmSpec(t)
		if err != nil {
			return nil, rpcerr.ToConnect(err)
		}
		targets[i] = manager.WarmTarget{Key: t.GetKey(), Spec: spec, Count: int(t.GetCount())}
	}
	out := &agentv1.KeepWarmResponse{}
	for _, k := range s.sandboxes.KeepWarm(targets) {
		out.Kept = append(out.Kept, &agentv1.KeepWarmResponse_Kept{Key: k.Key, Ready: uint32(k.Ready), Reason: k.Reason}) //nolint:gosec // not negative
	}
	return out, nil
}

func warmSpec(t *agentv1.KeepWarmRequest_Target) (journal.Spec, error) {
	r := t.GetResources()
	switch {
	case len(t.GetKey()) == 0 || len(t.GetKey()) > maxTargetKey:
		return journal.Spec{}, errs.Field("targets.key", "Name each target by 1 to 64 bytes.")
	case t.GetImage().GetDigest() == "":
		return journal.Spec{}, errs.Field("targets.image.digest", "Name the template's image.")
	case r.GetCpuMillis() == 0 || r.GetMemoryMb() == 0 || r.GetDiskMb() == 0 || r.GetMaxProcesses() == 0:
		return journal.Spec{}, errs.Field("targets.resources", "CPU, memory, disk and processes must all be positive.")
	}
	template, err := id.Template{}.ParseBare(t.GetTemplateId())
	if err != nil {
		return journal.Spec{}, err
	}
	var state id.Snapshot
	if t.GetStateId() != "" {
		if state, err = (id.Snapshot{}).ParseBare(t.GetStateId()); err != nil {
			return journal.Spec{}, err
		}
	}
	return journal.Spec{
		Template: template, Engine: t.GetEngine(), Image: imageIn(t.GetImage()), Resources: resourcesIn(r), Internet: t.GetInternet(), State: state,
	}, nil
}

func imageIn(i *agentv1.Image) journal.Image {
	return journal.Image{Digest: i.GetDigest(), SizeBytes: i.GetSizeBytes(), From: sourceOf(i.GetFrom())}
}

func resourcesIn(r *agentv1.Resources) journal.Resources {
	return journal.Resources{
		CPUMillis: int(r.GetCpuMillis()), MemoryBytes: int64(r.GetMemoryMb()) * mib,
		DiskBytes: int64(r.GetDiskMb()) * mib, MaxProcesses: int(r.GetMaxProcesses()),
	}
}
