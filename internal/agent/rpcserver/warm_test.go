package rpcserver

import (
	"strings"
	"testing"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/kernel/id"
)

func TestWarmTargetsOverTheWire(t *testing.T) {
	f := start(t, &fixture{})
	c := f.client(t, f.ca.ControlCertificate())
	template, from := id.NewTemplate(), id.NewSnapshot()
	target := func() *agentv1.KeepWarmRequest_Target {
		return &agentv1.KeepWarmRequest_Target{
			TemplateId: template.UUID().String(), Engine: "fake", Image: &agentv1.Image{Digest: "d", SizeBytes: 7}, Internet: true, Count: 2,
			StateId: from.UUID().String(), Key: []byte("k"), Resources: &agentv1.Resources{CpuMillis: 1, MemoryMb: 2, DiskMb: 3, MaxProcesses: 4},
		}
	}
	res, err := c.KeepWarm(t.Context(), &agentv1.KeepWarmRequest{Targets: []*agentv1.KeepWarmRequest_Target{target()}})
	if err != nil || len(res.Kept) != 1 || string(res.Kept[0].Key) != "k" || res.Kept[0].Ready != 3 || res.Kept[0].Reason != manager.WarmLimit {
		t.Fatalf("%v, %v", res, err)
	}
	got := f.world.targets[0]
	if string(got.Key) != "k" || got.Count != 2 || got.Spec.Template != template || got.Spec.State != from || got.Spec.Engine != "fake" ||
		!got.Spec.Internet || got.Spec.Image.Digest != "d" || got.Spec.Image.SizeBytes != 7 ||
		got.Spec.Resources != (journal.Resources{CPUMillis: 1, MemoryBytes: 2 << 20, DiskBytes: 3 << 20, MaxProcesses: 4}) {
		t.Errorf("the manager was told %+v", got)
	}
	for name, change := range map[string]func(*agentv1.KeepWarmRequest_Target){
		"no key":       func(t *agentv1.KeepWarmRequest_Target) { t.Key = nil },
		"a long key":   func(t *agentv1.KeepWarmRequest_Target) { t.Key = []byte(strings.Repeat("k", 65)) },
		"no image":     func(t *agentv1.KeepWarmRequest_Target) { t.Image = nil },
		"no memory":    func(t *agentv1.KeepWarmRequest_Target) { t.Resources.MemoryMb = 0 },
		"no template":  func(t *agentv1.KeepWarmRequest_Target) { t.TemplateId = "x" },
		"a wild state": func(t *agentv1.KeepWarmRequest_Target) { t.StateId = "x" },
	} {
		bad := target()
		change(bad)
		if _, err := c.KeepWarm(t.Context(), &agentv1.KeepWarmRequest{Targets: []*agentv1.KeepWarmRequest_Target{target(), bad}}); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	many := make([]*agentv1.KeepWarmRequest_Target, 257)
	for i := range many {
		many[i] = target()
	}
	if _, err := c.KeepWarm(t.Context(), &agentv1.KeepWarmRequest{Targets: many}); err == nil {
		t.Error("257 targets are taken")
	}
	inv, err := c.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil || len(inv.Warm) != 1 || inv.Warm[0].InstanceId != "w" || string(inv.Warm[0].Key) != "k" || !inv.Warm[0].Ready {
		t.Errorf("%v, %v", inv, err)
	}
}
