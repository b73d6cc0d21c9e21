package s3_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/artifacttest"
	"skerry.dev/skerry/internal/artifact/s3"
	"skerry.dev/skerry/internal/artifact/s3/s3test"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/artifact/transfer/transfertest"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/testkit"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, cfg s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.New(cfg)
	must(t, err)
	return s
}

func TestP1_Store(t *testing.T) {
	cfg := s3test.Serve(t)
	artifacttest.Run(t, func(t *testing.T) artifact.Store { return open(t, cfg) })
}

func TestProbe_NamesWhatIsWrong(t *testing.T) {
	cfg := s3test.Serve(t)
	must(t, open(t, cfg).Probe(t.Context()))
	for name, change := range map[string]func(*s3.Config){
		"no such bucket": func(c *s3.Config) { c.Bucket = "another" },
		"a wrong secret": func(c *s3.Config) { c.SecretKey += "x" },
		"a wrong key":    func(c *s3.Config) { c.AccessKey = "nobody" },
	} {
		bad := cfg
		change(&bad)
		if err := open(t, bad).Probe(t.Context()); err == nil || strings.Contains(err.Error(), bad.SecretKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestList_GoesOverPages(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand blobs")
	}
	s := open(t, s3test.Serve(t))
	team := id.NewTeam()
	n := testkit.Scaled(1100, 120)
	for i := range n {
		must(t, s.Put(t.Context(), artifact.ChunkKey(team, artifact.DigestOf([]byte("x")), int64(i+1)), strings.NewReader("x"), 1))
	}
	prefix := artifact.Prefix{Team: team, Kind: artifact.KindChunk}
	all, err := s.List(t.Context(), prefix, "", n+1)
	if err != nil || len(all) != n {
		t.Fatalf("%d blobs, %v", len(all), err)
	}
	rest, err := s.List(t.Context(), prefix, all[49].Key.Name(), 20)
	if err != nil || len(rest) != 20 || rest[0] != all[50] {
		t.Errorf("after the 50th: %d, %v", len(rest), err)
	}
}

// What is damaged, or cut, is whole again once it is put again.
func TestTS01_DamageIsHealedByTheNextPut(t *testing.T) {
	cfg := s3test.Serve(t)
	s := open(t, cfg)
	raw, err := minio.New(strings.TrimPrefix(cfg.Endpoint, "http://"), &minio.Options{Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""), Region: cfg.Region})
	must(t, err)
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf([]byte("whole")), 1)
	for _, damaged := range []string{"whale", "who"} {
		must(t, s.Put(t.Context(), key, strings.NewReader("whole"), 5))
		_, err := raw.PutObject(t.Context(), cfg.Bucket, cfg.Prefix+"/"+key.String(), strings.NewReader(damaged), int64(len(damaged)), minio.PutObjectOptions{})
		must(t, err)
		if sound, err := artifact.Sound(t.Context(), s, key); err != nil || sound {
			t.Fatalf("%q is taken for whole: %v", damaged, err)
		}
		must(t, s.Put(t.Context(), key, strings.NewReader("whole"), 5))
		if sound, err := artifact.Sound(t.Context(), s, key); err != nil || !sound {
			t.Errorf("%q was not healed: %v", damaged, err)
		}
	}
}

// send puts body to a presigned address and returns the status.
func send(t *testing.T, method, url string, header http.Header, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	must(t, err)
	r.Header = header.Clone()
	resp, err := http.DefaultClient.Do(r)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

func TestP1_PresignedAddressesAllowOneThingForATime(t *testing.T) {
	s := open(t, s3test.Serve(t))
	ctx := t.Context()
	key := artifact.ChunkKey(id.NewTeam(), artifact.DigestOf([]byte("right")), 7)
	put, header, err := s.PresignPut(ctx, key, 5, time.Minute)
	must(t, err)
	for name, c := range map[string]struct {
		header http.Header
		body   string
	}{
		"other content": {header, "wrong"},
		"more":          {header, "right and more"},
		"no checksum":   {http.Header{}, "right"},
	} {
		if status, body := send(t, http.MethodPut, put, c.header, c.body); status/100 == 2 {
			t.Errorf("%s is taken: %d %s", name, status, body)
		}
	}
	if _, err := s.Stat(ctx, key); err == nil {
		t.Error("what was refused is there")
	}
	if status, body := send(t, http.MethodPut, put, header, "right"); status != http.StatusOK {
		t.Fatalf("put: %d %s", status, body)
	}
	get, err := s.PresignGet(ctx, key, time.Minute)
	must(t, err)
	if status, body := send(t, http.MethodGet, get, http.Header{}, ""); status != http.StatusOK || body != "right" {
		t.Errorf("get: %d %q", status, body)
	}
	if status, _ := send(t, http.MethodDelete, get, http.Header{}, ""); status/100 == 2 {
		t.Error("an address for reading deletes")
	}
	other := strings.Replace(get, key.Name(), artifact.ChunkKey(key.Team, artifact.DigestOf(nil), 7).Name(), 1)
	if status, _ := send(t, http.MethodGet, other, http.Header{}, ""); status != http.StatusForbidden {
		t.Errorf("another blob by this address: %d", status)
	}
	short, err := s.PresignGet(ctx, key, time.Second)
	must(t, err)
	testkit.Eventually(t, 10*time.Second, "the address to expire", func() bool {
		status, _ := send(t, http.MethodGet, short, http.Header{}, "")
		return status == http.StatusForbidden
	})
}

// hosts is a control plane in front of the bucket.
type hosts struct {
	ledger *transfertest.Ledger
	signer *transfer.Signer
	server *httptest.Server
	host   id.Host
	passed atomic.Int64 // chunks that went through the control plane
	direct *http.Client
	sent   *atomic.Int64
}

type counting struct{ n *atomic.Int64 }

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	return http.DefaultTransport.RoundTrip(r)
}

func newHosts(t *testing.T, s artifact.Store, ttl time.Duration) *hosts {
	t.Helper()
	h := &hosts{ledger: &transfertest.Ledger{}, host: id.NewHost(), sent: &atomic.Int64{}}
	h.direct = &http.Client{Transport: counting{h.sent}}
	var err error
	h.signer, err = transfer.NewSigner(bytes.Repeat([]byte("s"), 32), clock.System{})
	must(t, err)
	handler := transfer.NewHandler(s, h.signer, h.ledger, transfer.HandlerOptions{PresignFor: ttl, Logger: slog.New(slog.DiscardHandler)})
	h.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if transfertest.IsChunk(r) {
			h.passed.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(h.server.Close)
	return h
}

func (h *hosts) clients() transfer.Clients {
	return transfer.Clients{Control: h.server.Client(), Direct: h.direct}
}

func (h *hosts) move(t *testing.T, path string) (a id.Artifact, key artifact.ContentKey) {
	t.Helper()
	key = bytes.Repeat([]byte("k"), artifact.ContentKeyBytes)
	a = h.ledger.Begin(id.NewTeam(), h.host)
	to := artifact.Source{URL: h.signer.WriteURL(h.server.URL, a, h.host, time.Minute), Key: key}
	_, err := transfer.Upload(t.Context(), h.clients(), to, []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{})
	must(t, err)
	return a, key
}

func (h *hosts) fetch(ctx context.Context, a id.Artifact, key artifact.ContentKey, dir string) error {
	from := artifact.Source{URL: h.signer.ReadURL(h.server.URL, a, h.host, time.Minute), Key: key}
	return transfer.Fetch(ctx, h.clients(), from, transfer.Want{MediaType: artifact.MediaTypeState}, transfer.Into(dir), transfer.Options{})
}

func content(t *testing.T, chunks int) (path string, b []byte) {
	t.Helper()
	for i := range chunks {
		b = append(b, bytes.Repeat([]byte{byte(i), byte(i >> 8), 1}, artifact.ChunkSize/3+1)[:artifact.ChunkSize]...)
	}
	path = filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, b, 0o600))
	return path, b
}

func TestP1_HostsGoToTheBucketThemselves(t *testing.T) {
	h := newHosts(t, open(t, s3test.Serve(t)), 0)
	path, b := content(t, 3)
	a, key := h.move(t, path)
	dir := t.TempDir()
	must(t, h.fetch(t.Context(), a, key, dir))
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("the copy differs: %v", err)
	}
	if h.passed.Load() != 0 || h.sent.Load() != 6 {
		t.Errorf("%d chunks passed through the control plane, %d went straight", h.passed.Load(), h.sent.Load())
	}
}

// stale gives out addresses that have expired, now and then.
type stale struct {
	*s3.Store
	n atomic.Int64
}

func (s *stale) PresignGet(ctx context.Context, key artifact.Key, ttl time.Duration) (string, error) {
	if s.n.Add(1)%3 == 1 {
		return expire(s.Store.PresignGet(ctx, key, ttl))
	}
	return s.Store.PresignGet(ctx, key, ttl)
}

func (s *stale) PresignPut(ctx context.Context, key artifact.Key, size int64, ttl time.Duration) (string, http.Header, error) {
	url, header, err := s.Store.PresignPut(ctx, key, size, ttl)
	if err == nil && s.n.Add(1)%3 == 1 {
		url, err = expire(url, nil)
	}
	return url, header, err
}

// expire makes an address the server refuses as it does one after its time.
func expire(url string, err error) (string, error) {
	return strings.Replace(url, "X-Amz-Signature=", "X-Amz-Signature=0", 1), err
}

func TestP1_AnExpiredAddressIsAskedForAgain(t *testing.T) {
	h := newHosts(t, &stale{Store: open(t, s3test.Serve(t))}, 0)
	path, b := content(t, 5)
	a, key := h.move(t, path)
	dir := t.TempDir()
	must(t, h.fetch(t.Context(), a, key, dir))
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("the copy differs: %v", err)
	}
}

func TestP1_AChunkMissingInTheBucketIsNamed(t *testing.T) {
	s := open(t, s3test.Serve(t))
	h := newHosts(t, s, 0)
	path, _ := content(t, 2)
	team := id.NewTeam()
	a := h.ledger.Begin(team, h.host)
	to := artifact.Source{URL: h.signer.WriteURL(h.server.URL, a, h.host, time.Minute)}
	_, err := transfer.Upload(t.Context(), h.clients(), to, []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{})
	must(t, err)
	list, err := s.List(t.Context(), artifact.Prefix{Team: team, Kind: artifact.KindChunk}, "", 1)
	must(t, err)
	must(t, s.Delete(t.Context(), list[0].Key))
	if err := h.fetch(t.Context(), a, nil, t.TempDir()); !errs.Is(err, "chunk_missing") || errs.As(err).Details["digest"] != string(list[0].Key.Digest) {
		t.Errorf("got %v", err)
	}
}

func TestParse_OneFormAndEveryFault(t *testing.T) {
	got, err := s3.Parse("s3://my-bucket/a/b?endpoint=https://s3.example.com:9000&region=eu-1")
	want := s3.Config{Endpoint: "https://s3.example.com:9000", Region: "eu-1", Bucket: "my-bucket", Prefix: "a/b", PathStyle: true}
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := s3.Parse("s3://my-bucket"); err != nil || got.PathStyle || got.Prefix != "" {
		t.Errorf("Amazon's own: %+v %v", got, err)
	}
	for _, bad := range []string{
		"", "http://x", "s3://", "s3://x", "s3://UPPER", "s3://user:pw@bucket", "s3://bucket?endpoint=ftp://x", "s3://bucket?endpoint=https://x/path",
		"s3://bucket?region=EU%20west", "s3://bucket?secret=x", "s3://bucket?region=a&region=b", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket#x",
		"s3://bucket?path_style=maybe", "s3://bucket?%zz",
	} {
		if c, err := s3.Parse(bad); err == nil {
			t.Errorf("%q reads as %+v", bad, c)
		}
	}
	_, err = s3.Parse("s3://X?endpoint=ftp://x&region=A%20b")
	for _, word := range []string{"bucket", "endpoint", "region"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not among the faults: %v", word, err)
		}
	}
	if _, err := s3.New(want); err == nil {
		t.Error("a store without keys is made")
	}
}
