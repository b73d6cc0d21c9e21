package app_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/protobuf/proto"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/gen/guestrpc/process/processconnect"
	"skerry.dev/skerry/internal/agent/app"
	artifactfs "skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
	"skerry.dev/skerry/internal/testkit"
)

// shelf is a store the control plane serves.
type shelf struct {
	signer *transfer.Signer
	ledger *transfertest.Ledger
	url    string
}

func (p *platform) shelf(t *testing.T) *shelf {
	t.Helper()
	store, err := artifactfs.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := transfer.NewSigner([]byte(strings.Repeat("k", 32)), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{signer: signer, ledger: &transfertest.Ledger{}, url: p.control.URL}
	handler := transfer.NewHandler(store, signer, s.ledger, transfer.HandlerOptions{})
	p.control.Lock()
	defer p.control.Unlock()
	p.control.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/v1/store/") {
			return false
		}
		handler.ServeHTTP(w, r)
		return true
	}
	return s
}

// place is a new artifact: where it is put, and where it is read from then.
func (s *shelf) place() (to, from *agentv1.Source) {
	by := id.NewHost()
	a := s.ledger.Begin(id.PlatformTeamID, by)
	return &agentv1.Source{Url: s.signer.WriteURL(s.url, a, by, time.Hour)}, &agentv1.Source{Url: s.signer.ReadURL(s.url, a, by, time.Hour)}
}

// handImage is a container image with one program, which runs as user 1234.
func handImage(t *testing.T) v1.Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "hand")
	build := exec.Command("go", "build", "-o", program, "./testdata/hand")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the program: %v\n%s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h tar.Header, content string) {
		h.Typeflag, h.Size, h.ModTime = tar.TypeReg, int64(len(content)), time.Unix(1_700_000_000, 0)
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	put(tar.Header{Name: "bin/hand", Mode: 0o755}, string(binary))
	put(tar.Header{Name: "etc/hosts", Mode: 0o644}, "127.0.0.1 localhost\n192.0.2.7 of-the-image\n")
	put(tar.Header{Name: "srv/", Mode: 0o755, Uid: 1234, Gid: 1234}, "")
	put(tar.Header{Name: "d/kept", Mode: 0o644}, "kept")
	put(tar.Header{Name: "d/changed", Mode: 0o644}, "old")
	put(tar.Header{Name: "d/deleted", Mode: 0o644}, "x")
	put(tar.Header{Name: "opaque/old", Mode: 0o644}, "old")
	put(tar.Header{Name: "whole/tree/x", Mode: 0o644}, "x")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{User: "1234:1234", WorkingDir: "/srv", Env: []string{"A=from-the-image"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

// made takes a stream's lines and its result.
func made[T interface {
	GetLog() string
	GetResult() *agentv1.BuiltImage
}](t *testing.T, stream interface {
	Receive() bool
	Msg() T
	Err() error
	Close() error
}, err error,
) (*agentv1.BuiltImage, string, error) {
	t.Helper()
	if err != nil {
		return nil, "", err
	}
	defer stream.Close()
	var said strings.Builder
	var got *agentv1.BuiltImage
	for stream.Receive() {
		if r := stream.Msg().GetResult(); r != nil {
			got = r
		}
		said.WriteString(stream.Msg().GetLog() + "\n")
	}
	return got, said.String(), stream.Err()
}

// hand runs the image's program as user, or as the sandbox's own, to its end.
func (b *box) hand(user string, words ...string) string {
	b.t.Helper()
	out, err := b.tryHand(user, words...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *box) tryHand(user string, words ...string) (string, error) {
	return b.runs(user, "/bin/hand", words...)
}

// runs runs a program as user, or as the sandbox's own, to its end.
func (b *box) runs(user, program string, words ...string) (string, error) {
	client, hangUp := b.client(guestapi.DefaultPort)
	defer hangUp()
	client.Timeout = time.Minute
	proc := processconnect.NewProcessClient(client, "http://guest", connect.WithProtoJSON(), connect.WithInterceptors(acting(user)))
	stream, err := proc.Start(b.t.Context(), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: program, Args: words}, Stdin: proto.Bool(false)})
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out, problem strings.Builder
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		problem.Write(e.GetData().GetStderr())
		if end := e.GetEnd(); end != nil && end.ExitCode != 0 {
			return out.String(), errors.New(end.Status + ": " + problem.String())
		}
	}
	return out.String(), stream.Err()
}

// acting names the account a call is made for.
type acting string

func (a acting) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }
func (a acting) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (a acting) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, s connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, s)
		if a != "" {
			r := http.Request{Header: http.Header{}}
			r.SetBasicAuth(string(a), "")
			conn.RequestHeader().Set("Authorization", r.Header.Get("Authorization"))
		}
		return conn
	}
}

func (b *box) create(img *agentv1.BuiltImage, from *agentv1.Source) {
	b.t.Helper()
	b.req = request("gvisor")
	b.req.AccessToken, b.req.Hostname, b.req.DefaultUser, b.req.DefaultWorkdir, b.req.Env = "tok", "box", img.User, img.Workdir, img.Env
	b.req.Image = &agentv1.Image{Digest: img.Digest, SizeBytes: img.SizeBytes, From: from}
	if _, err := b.r.CreateSandbox(b.t.Context(), b.req); err != nil {
		b.t.Fatal(err)
	}
}

func (b *box) export(to *agentv1.Source) (*agentv1.BuiltImage, string, error) {
	b.t.Helper()
	stream, err := b.r.ExportImage(b.t.Context(), &agentv1.ExportImageRequest{SandboxId: b.req.SandboxId, Incarnation: b.req.Incarnation, To: to})
	return made(b.t, stream, err)
}

// A container image is pulled from a registry, a sandbox runs on it, what it has
// become is exported while it works, and another one that runs on that sees the
// same files.
func TestP2_ImportRunExport_OnARealHost(t *testing.T) {
	p := newPlatform(t)
	cfg := realHost(t, p)
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		testkit.Missing(t, "erofs", "mkfs.erofs is not installed")
	}
	stored := p.shelf(t)
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer reg.Close()
	ref, err := name.ParseReference(strings.TrimPrefix(reg.URL, "http://") + "/team/hand:1")
	if err == nil {
		err = remote.Write(ref, handImage(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg.RegistryNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	a := p.start(t, cfg, app.Options{})
	to, from := stored.place()
	stream, err := a.ImportImage(t.Context(), &agentv1.ImportImageRequest{Reference: ref.Name(), To: to})
	img, said, err := made(t, stream, err)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("import:\n%s", said)
	if img.User != "u1234" || img.Workdir != "/srv" || img.Env["A"] != "from-the-image" || img.Arch != runtime.GOARCH || img.ManifestDigest == "" || !strings.Contains(said, "MB/s") {
		t.Errorf("imported %v", img)
	}
	b := &box{t: t, p: p, r: a}
	b.create(img, from)
	defer b.destroy()
	if got, want := b.hand("", "whoami"), "1234 1234 /srv from-the-image\n"; got != want {
		t.Errorf("the command ran as %q, not %q", got, want)
	}
	b.hand("", "write /srv/own mine")
	b.hand("root",
		"rm /d/deleted", "write /d/changed new", "rm /opaque", "mkdir /opaque", "write /opaque/new n", "write /opaque/brief x", "rm /opaque/brief", "rm /whole", "write /whole file",
		"mkdir /made", "write /made/f x", "write /made/brief x", "rm /made/brief", "ln /made/f /made/g", "ln /d/kept /made/kept", "symlink /made/f /made/s", "mkfifo /made/pipe",
		"chown 5 6 /made/f", "chmod 0x9ed /made/f", "xattr user.note /made/f \"n\"", "mv /bin/hand /bin/hand.1", "symlink hand.1 /bin/hand",
		`xattr security.capability /bin/hand.1 "\x01\x00\x00\x02\x80\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"`,
		"write /etc/hosts ours", "rm /tmp", "mkdir /tmp", "truncate 0x800000 /made/sparse", "fill 20 /made/large")
	want := b.hand("root", "list")
	to, from = stored.place()
	began := time.Now()
	built, said, err := b.export(to)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("export in %v:\n%s", time.Since(began), said)
	to, _ = stored.place()
	if again, said, err := b.export(to); err != nil || again.Digest != built.Digest || !strings.Contains(said, "of which 0.0 MB were new") {
		t.Errorf("exported twice: %v, %v; %s", again, err, said)
	}
	// It goes on, and works while it is exported once more.
	if got := b.hand("root", "list"); got != want {
		t.Errorf("the sandbox has changed by its export: %s", cmp.Diff(want, got))
	}
	b.hand("root", "mkdir /churn")
	churned := make(chan error, 1)
	go func() {
		_, err := b.tryHand("root", "churn /churn")
		churned <- err
	}()
	to, busy := stored.place()
	later, _, err := b.export(to)
	if err != nil {
		t.Fatalf("while it works: %v", err)
	}
	select {
	case err := <-churned:
		t.Errorf("what ran has ended: %v", err)
	default:
	}
	if got := b.hand("", "whoami"); got == "" {
		t.Error("it does not answer")
	}

	c := &box{t: t, p: p, r: a}
	built.User, built.Workdir, built.Env = img.User, img.Workdir, img.Env
	c.create(built, from)
	defer c.destroy()
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(c.hand("root", "list"), "\n")); diff != "" {
		t.Error(diff)
	}
	d := &box{t: t, p: p, r: a}
	later.User, later.Workdir, later.Env = img.User, img.Workdir, img.Env
	d.create(later, busy)
	if got := d.hand("", "whoami"); got != "1234 1234 /srv from-the-image\n" {
		t.Errorf("on what was exported while it worked: %q", got)
	}
	d.destroy()

	for _, req := range []*agentv1.ExportImageRequest{
		{SandboxId: d.req.SandboxId, Incarnation: 1, To: to}, {SandboxId: b.req.SandboxId, Incarnation: 2, To: to}, {SandboxId: b.req.SandboxId, Incarnation: 1}, {SandboxId: "x", To: to},
	} {
		stream, err := a.ExportImage(t.Context(), req)
		if _, _, err := made(t, stream, err); err == nil {
			t.Errorf("exported %v", req)
		}
	}
	to, _ = stored.place()
	for _, req := range []*agentv1.ImportImageRequest{{To: to}, {Reference: ref.Name()}, {Reference: ref.Name(), Tarball: from, To: to}} {
		stream, err := a.ImportImage(t.Context(), req)
		if _, _, err := made(t, stream, err); !errs.Is(rpcerr.FromConnect(err), "invalid_request") {
			t.Errorf("imported %v: %v", req, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(cfg.DataDir, "imaging")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
