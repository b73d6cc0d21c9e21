package app_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

// reads is a file of the sandbox, and the answer's status.
func (b *box) reads(path string) (int, string) {
	b.t.Helper()
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	res, err := client.Get("http://guest" + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res.StatusCode, strings.TrimSpace(string(text))
}

// Instances wait, are given away, outlive the agent's death and are gone with it.
func TestWarmStarts_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg, root := realHost(t, p), newTree(t)
	cfg.MaxWarm = 2
	a, cmd := p.spawn(t, cfg, root)
	like := request("gvisor")
	target := &agentv1.KeepWarmRequest_Target{
		TemplateId: like.TemplateId, Engine: like.Engine, Image: like.Image, Resources: like.Resources, Count: 2, Key: []byte("k"),
	}
	ready := func(r *running, n uint32) {
		t.Helper()
		testkit.Eventually(t, 60*time.Second, "warm instances", func() bool {
			res, err := r.KeepWarm(t.Context(), &agentv1.KeepWarmRequest{Targets: []*agentv1.KeepWarmRequest_Target{target}})
			if err != nil {
				t.Fatal(err)
			}
			return res.Kept[0].Ready == n
		})
	}
	ready(a, 2)
	waiting := map[string]bool{}
	inv, err := a.Inventory(t.Context(), &agentv1.InventoryRequest{})
	if err != nil || len(inv.Sandboxes) != 0 || len(inv.Warm) != 2 {
		t.Fatalf("%v, %v", inv, err)
	}
	for _, w := range inv.Warm {
		waiting[w.InstanceId] = true
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	a, cmd = p.spawn(t, cfg, root)
	said := map[string]bool{}
	var all []*box
	for _, name := range []string{"sb-one", "sb-two"} {
		b := &box{t: t, p: p, r: a, req: proto.CloneOf(like)}
		b.req.SandboxId, b.req.Hostname, b.req.AccessToken, b.req.Env = request("gvisor").SandboxId, name, "tok", map[string]string{"NAME": name}
		began := time.Now()
		res, err := a.CreateSandbox(t.Context(), b.req)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a warm start took %v", time.Since(began))
		if !waiting[res.Sandbox.InstanceId] {
			t.Errorf("%s did not wait: %v", res.Sandbox.InstanceId, waiting)
		}
		if _, is := b.reads("/files?path=/etc/hostname&username=root"); is != name {
			t.Errorf("%s calls itself %q", name, is)
		}
		if _, is := b.reads("/files?path=/etc/hosts&username=root"); !strings.Contains(is, name) {
			t.Errorf("%s does not find itself: %q", name, is)
		}
		if _, is := b.reads(guestapi.PathEnvs); is != `{"NAME":"`+name+`"}` {
			t.Errorf("the environment of %s: %q", name, is)
		}
		_, boot := b.reads("/files?path=/proc/sys/kernel/random/boot_id&username=root")
		if said[boot] && boot != "" {
			t.Errorf("two have one boot id")
		}
		said[boot] = true
		all = append(all, b)
	}
	if code, _ := all[0].reads(guestapi.PathInit); code == http.StatusOK {
		t.Error("anybody may configure it")
	}
	// None are kept any more; those in use go on.
	if _, err := a.KeepWarm(t.Context(), &agentv1.KeepWarmRequest{}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 60*time.Second, "nothing waits", func() bool {
		inv, err = a.Inventory(t.Context(), &agentv1.InventoryRequest{})
		return err == nil && len(inv.Warm) == 0
	})
	if len(inv.Sandboxes) != 2 {
		t.Errorf("%v", inv.Sandboxes)
	}
	for _, b := range all {
		b.destroy()
	}
	quiet(t, cfg)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
