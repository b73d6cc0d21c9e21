package app

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/gen/agentrpc/agent/v1/agentv1connect"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/rpcerr"
)

// fakeHost is a machine with an agent: it joins, sends heartbeats, and serves
// agent.v1 behind mutual TLS with its own certificate. Its sandboxes are entries
// of a map.
type fakeHost struct {
	agentv1connect.UnimplementedAgentServiceHandler

	dir     string
	url     string // of the server's agent listener
	address string
	csr     string
	key     *ecdsa.PrivateKey
	client  *http.Client
	creds   struct {
		HostID      string `json:"host_id"`
		JWT         string `json:"host_jwt"`
		Refresh     string `json:"refresh_token"`
		Certificate string `json:"certificate"`
		CA          string `json:"ca"`
	}

	mu        sync.Mutex
	sandboxes map[string]*agentv1.CreateSandboxRequest

	open atomic.Int64 // connections to its listener
}

// pinned believes a server whose chain holds the CA of that fingerprint.
func pinned(sum string) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		for _, c := range s.PeerCertificates {
			if got := sha256.Sum256(c.Raw); hex.EncodeToString(got[:]) == sum {
				return nil
			}
		}
		return errors.New("the server is not the one that the install command names")
	}
}

func newFakeHost(t testing.TB, url, caSHA256 string) *fakeHost {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{dir: t.TempDir(), url: url, key: key, sandboxes: map[string]*agentv1.CreateSandboxRequest{}}
	h.csr = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	h.client = &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, VerifyConnection: pinned(caSHA256),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if h.creds.Certificate == "" {
				return &tls.Certificate{}, nil
			}
			cert, err := h.certificate()
			return &cert, err
		},
	}}}
	t.Cleanup(h.client.CloseIdleConnections)
	return h
}

func (h *fakeHost) certificate() (tls.Certificate, error) {
	block, _ := pem.Decode([]byte(h.creds.Certificate))
	if block == nil {
		return tls.Certificate{}, errors.New("no certificate")
	}
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: h.key}, nil
}

// call posts JSON to the agents' listener and returns status and body.
func (h *fakeHost) call(t testing.TB, path string, body any) (int, []byte) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if h.creds.JWT != "" {
		req.Header.Set("Authorization", "Bearer "+h.creds.JWT)
	}
	res, err := h.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, got
}

// join registers, opens the agent's listener and sends a heartbeat.
func (h *fakeHost) join(t testing.TB, token string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = listener.Addr().String()
	status, body := h.call(t, "/v1/hosts/register", map[string]any{
		"registration_token": token, "csr": h.csr, "facts": map[string]any{
			"hostname": "box", "arch": "amd64", "cpus": 4, "memory_bytes": 8 << 30, "disk_bytes": 100 << 30, "kernel": "6.1", "version": "1",
			"address": h.address, "engines": []map[string]any{{"name": "fake", "version": "1", "healthy": true}},
		},
	})
	if status != http.StatusOK {
		t.Fatalf("register: %d %s", status, body)
	}
	if err := json.Unmarshal(body, &h.creds); err != nil {
		t.Fatal(err)
	}
	h.client.CloseIdleConnections() // from now on with a certificate
	h.serve(t, listener)
	if status, body := h.beat(t); status != http.StatusNoContent {
		t.Fatalf("heartbeat: %d %s", status, body)
	}
}

func (h *fakeHost) beat(t testing.TB) (int, []byte) {
	t.Helper()
	return h.call(t, "/v1/hosts/"+h.creds.HostID+"/heartbeat", map[string]any{
		"generation": 1, "address": h.address, "version": "1",
		"load": map[string]any{"sandboxes": 0, "cpu_millis": 0, "memory_bytes": 0, "disk_free_bytes": 1},
	})
}

func (h *fakeHost) serve(t testing.TB, listener net.Listener) {
	t.Helper()
	cert, err := h.certificate()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(h.creds.CA)) {
		t.Fatal("no CA")
	}
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewAgentServiceHandler(h))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			guest(t, w)
			return
		}
		mux.ServeHTTP(w, r)
	}), ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			h.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			h.open.Add(-1)
		}
	}}
	done := make(chan error, 1)
	go func() {
		done <- server.Serve(tls.NewListener(listener, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
			NextProtos: []string{"h2", "http/1.1"},
			VerifyConnection: func(s tls.ConnectionState) error {
				if uris := s.PeerCertificates[0].URIs; len(uris) != 1 || uris[0].String() != "skerry://control" {
					return fmt.Errorf("a stranger calls: %v", uris)
				}
				return nil
			},
		}))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
}

// Hello implements agent.v1.
// guest is a daemon that refuses whatever it is asked.
func guest(t testing.TB, w http.ResponseWriter) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	for {
		req, err := http.ReadRequest(buffered.Reader)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		const refusal = `{"code":"invalid_argument","message":"refused"}`
		status, kind, body := "400 Bad Request", "application/json", refusal
		if sent := req.Header.Get("Content-Type"); strings.HasPrefix(sent, "application/connect+") { // a stream that ends at once
			end := `{"error":` + refusal + `}`
			status, kind, body = "200 OK", sent, "\x02\x00\x00\x00"+string(rune(len(end)))+end
		}
		_, err = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", status, kind, len(body), body)
		if err != nil {
			return
		}
	}
}

func (h *fakeHost) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{HostId: h.creds.HostID[len("host-"):], Version: "1", Generation: 1}, nil
}

// CreateSandbox implements agent.v1; it fetches the image as a host does.
func (h *fakeHost) CreateSandbox(ctx context.Context, req *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error) {
	image := filepath.Join(h.dir, req.GetSandboxId())
	from := artifact.Source{URL: req.GetImage().GetFrom().GetUrl(), Key: req.GetImage().GetFrom().GetKey()}
	want := transfer.Want{MediaType: artifact.MediaTypeErofs, Files: map[string]artifact.Digest{artifact.ImageFile: digest(req.GetImage().GetDigest())}}
	if err := transfer.Fetch(ctx, transfer.Clients{Control: h.client}, from, want, transfer.At(artifact.ImageFile, image), transfer.Options{}); err != nil {
		return nil, rpcerr.ToConnect(errs.Unavailable("image_unavailable", "The image cannot be fetched.").Because(err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sandboxes[req.GetSandboxId()] = req
	return &agentv1.CreateSandboxResponse{Sandbox: &agentv1.SandboxReport{SandboxId: req.GetSandboxId(), EngineVersion: "fake-7"}}, nil
}

// DestroySandbox implements agent.v1.
func (h *fakeHost) DestroySandbox(_ context.Context, req *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sandboxes, req.GetSandboxId())
	return &agentv1.DestroySandboxResponse{}, nil
}

// Inventory implements agent.v1.
func (h *fakeHost) state(id string, memory bool) *agentv1.State {
	return &agentv1.State{StateId: id, Engine: "fake", EngineVersion: "fake-7", Memory: memory, SizeBytes: 1, Digest: "d", CreatedAt: timestamppb.Now()}
}

func (h *fakeHost) PauseSandbox(_ context.Context, req *agentv1.PauseSandboxRequest) (*agentv1.PauseSandboxResponse, error) {
	return &agentv1.PauseSandboxResponse{State: h.state(req.GetStateId(), req.GetMemory())}, nil
}

func (h *fakeHost) CheckpointSandbox(_ context.Context, req *agentv1.CheckpointSandboxRequest) (*agentv1.CheckpointSandboxResponse, error) {
	return &agentv1.CheckpointSandboxResponse{State: h.state(req.GetStateId(), req.GetMemory())}, nil
}

func (h *fakeHost) DeleteState(context.Context, *agentv1.DeleteStateRequest) (*agentv1.DeleteStateResponse, error) {
	return &agentv1.DeleteStateResponse{}, nil
}

func (h *fakeHost) SetDeadlines(context.Context, *agentv1.SetDeadlinesRequest) (*agentv1.SetDeadlinesResponse, error) {
	return &agentv1.SetDeadlinesResponse{}, nil
}

func (h *fakeHost) SandboxStats(context.Context, *agentv1.SandboxStatsRequest) (*agentv1.SandboxStatsResponse, error) {
	return &agentv1.SandboxStatsResponse{}, nil
}

func (h *fakeHost) SandboxLogs(context.Context, *agentv1.SandboxLogsRequest) (*agentv1.SandboxLogsResponse, error) {
	return &agentv1.SandboxLogsResponse{}, nil
}

func (h *fakeHost) Inventory(context.Context, *agentv1.InventoryRequest) (*agentv1.InventoryResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := &agentv1.InventoryResponse{Generation: 1}
	for x, req := range h.sandboxes {
		out.Sandboxes = append(out.Sandboxes, &agentv1.SandboxReport{
			SandboxId: x, Incarnation: req.GetIncarnation(), Phase: agentv1.SandboxPhase_SANDBOX_PHASE_RUNNING,
		})
	}
	return out, nil
}

// BuildBase implements agent.v1 with an image that is a line of text.
func (h *fakeHost) BuildBase(ctx context.Context, req *agentv1.BuildBaseRequest, out *connect.ServerStream[agentv1.BuildBaseResponse]) error {
	image := filepath.Join(h.dir, "base")
	if err := os.WriteFile(image, []byte("an image\n"), 0o600); err != nil {
		return err
	}
	if err := out.Send(&agentv1.BuildBaseResponse{Message: &agentv1.BuildBaseResponse_Log{Log: "building"}}); err != nil {
		return err
	}
	to := artifact.Source{URL: req.GetTo().GetUrl(), Key: req.GetTo().GetKey()}
	up, err := transfer.Upload(ctx, transfer.Clients{Control: h.client}, to,
		[]transfer.File{{Name: artifact.ImageFile, Path: image}}, artifact.MediaTypeErofs, transfer.Options{})
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	return out.Send(&agentv1.BuildBaseResponse{Message: &agentv1.BuildBaseResponse_Result{Result: &agentv1.BuiltImage{
		Digest: string(up.Files[artifact.ImageFile]), SizeBytes: up.SizeBytes, ManifestDigest: string(up.Manifest),
	}}})
}
