package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/network"
	"skerry.dev/skerry/internal/guest/guestapi"
)

// bare runs instances by hand with runsc: the bundle of a sandbox of Skerry's,
// its image and flags, a network slot made ahead, and nothing of ours around.
type bare struct {
	dir   string
	runsc string
	spec  specs.Spec
	disk  int64
	slots *network.Manager
	next  int
}

// newBare takes the bundle of a sandbox that it creates and deletes.
func newBare(b *testing.B) *bare {
	b.Helper()
	return newBareLike(b, map[string]any{"template": "base"})
}

// newBareLike is newBare for a sandbox of other sizes.
func newBareLike(b *testing.B, request map[string]any) *bare {
	b.Helper()
	before := bundles(b)
	var made struct {
		ID     string
		DiskMB int64 `json:"disk_mb"`
	}
	skerry.Must(b, "POST", "/v1/sandboxes", request, &made)
	defer skerry.Must(b, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
	r := &bare{dir: b.TempDir(), runsc: filepath.Join(skerry.Root, "bin", "runsc"), disk: made.DiskMB << 20}
	for bundle := range bundles(b) {
		if before[bundle] {
			continue
		}
		raw, err := os.ReadFile(bundle)
		if err == nil {
			err = json.Unmarshal(raw, &r.spec)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if r.spec.Root == nil {
		b.Fatal("the sandbox's bundle was not found")
	}
	slots, err := network.New(b.Context(), network.Config{Tag: "be0c41", WarmSlots: 8, StateDir: filepath.Join(r.dir, "network")})
	if err != nil {
		b.Fatal(err)
	}
	r.slots = slots
	b.Cleanup(func() {
		if err := slots.Purge(context.Background()); err != nil {
			b.Error(err)
		}
		if err := slots.Close(); err != nil {
			b.Error(err)
		}
		parents, _ := filepath.Glob("/sys/fs/cgroup/*/skerry-bare")
		for _, parent := range parents {
			if err := os.Remove(parent); err != nil {
				b.Error(err)
			}
		}
	})
	return r
}

func bundles(b *testing.B) map[string]bool {
	b.Helper()
	found := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(skerry.Data, "agent", "instances", "*", "bundle", "config.json"))
	if err != nil {
		b.Fatal(err)
	}
	for _, file := range files {
		found[file] = true
	}
	return found
}

// one is an instance run by hand.
type one struct {
	*bare
	id     string
	slot   network.Slot
	cgroup string
	client *http.Client
	url    string
}

const secret = "00112233445566778899aabbccddeeff"

// start runs it and waits until its daemon is configured.
func (r *bare) start(b *testing.B) *one {
	b.Helper()
	o := r.place(b)
	o.begin(b, "run")
	res, err := post(b.Context(), o.client, o.url+guestapi.PathInit, http.Header{guestapi.HeaderInit: {secret}}, guestapi.Init{DefaultUser: "user"})
	if err != nil {
		b.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		b.Fatalf("init: %s", res.Status)
	}
	return o
}

// place makes all that an instance needs but the instance.
func (r *bare) place(b *testing.B) *one {
	b.Helper()
	r.next++
	id := fmt.Sprintf("%032x", r.next)
	slot, err := r.slots.Acquire(b.Context(), engine.InstanceID(id), network.Policy{Internet: true})
	if err != nil {
		b.Fatal(err)
	}
	o := &one{bare: r, id: id, slot: slot, cgroup: "skerry-bare/" + id}
	bundle := filepath.Join(r.dir, id)
	if err := os.MkdirAll(filepath.Join(bundle, "disk"), 0o700); err != nil {
		b.Fatal(err)
	}
	spec := r.spec
	linux := *spec.Linux
	linux.CgroupsPath = "/" + o.cgroup
	linux.Namespaces = nil
	for _, ns := range r.spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			ns.Path = slot.Net.NamespacePath
		}
		linux.Namespaces = append(linux.Namespaces, ns)
	}
	spec.Linux = &linux
	raw, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	o.client = &http.Client{Transport: &http.Transport{}}
	o.url = "http://" + net.JoinHostPort(slot.Net.GuestAddr, strconv.Itoa(guestapi.DefaultPort))
	return o
}

// begin has runsc run or restore it, and waits until its daemon answers.
func (o *one) begin(b *testing.B, command string, args ...string) {
	b.Helper()
	boot, err := json.Marshal(guestapi.Boot{InitSecret: secret, Hostname: "bare", Nameserver: o.slot.Net.Gateway})
	if err != nil {
		b.Fatal(err)
	}
	args = append([]string{command, "-detach", "-bundle=" + filepath.Join(o.dir, o.id)}, args...)
	cmd := o.command(append(args, o.id)...)
	cmd.Stdin = strings.NewReader(string(boot))
	if err := cmd.Run(); err != nil {
		b.Fatalf("runsc %s: %v", command, err)
	}
	o.await(b)
}

// checkpoint saves it to a directory.
func (o *one) checkpoint(b *testing.B, dir string, args ...string) {
	b.Helper()
	args = append([]string{"checkpoint", "-compression=none", "-image-path=" + dir}, args...)
	if out, err := o.command(append(args, o.id)...).CombinedOutput(); err != nil {
		b.Fatalf("runsc checkpoint: %v %s", err, out)
	}
}

// restore begins it where another one was saved.
func (o *one) restore(b *testing.B, dir string) {
	b.Helper()
	o.begin(b, "restore", "-background", "-image-path="+dir)
}

func (o *one) await(b *testing.B) {
	b.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		res, err := o.client.Get(o.url + guestapi.PathHealth)
		if err == nil {
			res.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// spawn runs the command of the benchmarks straight through the daemon.
func (o *one) spawn(b *testing.B) {
	b.Helper()
	o.answers(b, "answered\n", "/bin/echo", "answered")
}

// answers runs a command straight through the daemon, which must print just that.
func (o *one) answers(b *testing.B, want, cmd string, args ...string) {
	b.Helper()
	client := processconnect.NewProcessClient(o.client, o.url, connect.WithProtoJSON())
	stdin := false
	stream, err := client.Start(b.Context(), &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &stdin,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer stream.Close()
	var out strings.Builder
	for stream.Receive() {
		out.Write(stream.Msg().GetEvent().GetData().GetStdout())
	}
	if out.String() != want {
		b.Fatalf("the command gave %q, %v", out.String(), stream.Err())
	}
}

// remove ends it as runsc does.
func (o *one) remove(b *testing.B) {
	b.Helper()
	o.client.CloseIdleConnections()
	if err := o.command("delete", "-force", o.id).Run(); err != nil {
		b.Fatalf("runsc delete: %v", err)
	}
	if err := o.slots.Release(b.Context(), o.slot.Index); err != nil {
		b.Fatal(err)
	}
}

func (o *one) command(args ...string) *osexec.Cmd {
	flags := []string{
		"--root=" + filepath.Join(o.dir, "runsc"), "--network=sandbox", "--allow-suid", "--allow-connected-on-save",
		fmt.Sprintf("--overlay2=root:dir=%s,size=%d", filepath.Join(o.dir, o.id, "disk"), o.disk),
		"--directfs=false", "--platform=systrap", "--host-uds=none",
	}
	return osexec.Command(o.runsc, append(flags, args...)...)
}
