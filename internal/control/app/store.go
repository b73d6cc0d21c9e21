package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	content "skerry.dev/skerry/internal/artifact"
	artifactfs "skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/s3"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// storeAt is where the store is: a directory, or a bucket.
type storeAt struct {
	dir    string
	bucket s3.Config
}

// parseStore reads the settings of the store.
func parseStore(at, accessKey, secretKey string) (storeAt, error) {
	if !strings.HasPrefix(at, "s3://") {
		if strings.Contains(at, "://") || !filepath.IsAbs(at) {
			return storeAt{}, fmt.Errorf("must be an absolute path, or s3://bucket/prefix?endpoint=…&region=…, not %q", at)
		}
		return storeAt{dir: filepath.Clean(at)}, nil
	}
	bucket, err := s3.Parse(at)
	bucket.AccessKey, bucket.SecretKey = accessKey, secretKey
	if accessKey == "" || secretKey == "" {
		err = errors.Join(err, errors.New("a bucket needs SKERRY_S3_ACCESS_KEY and SKERRY_S3_SECRET_KEY"))
	}
	return storeAt{bucket: bucket}, err
}

// open makes the store, and the look at whether it is there. A directory is made
// when there is none; a bucket is not.
func (at storeAt) open() (content.Store, func(context.Context) error, error) {
	if at.dir == "" {
		store, err := s3.New(at.bucket)
		if err != nil {
			return nil, nil, err
		}
		return store, store.Probe, nil
	}
	if err := os.MkdirAll(at.dir, 0o700); err != nil {
		return nil, nil, err
	}
	store, err := artifactfs.New(at.dir)
	return store, func(context.Context) error {
		_, err := os.Stat(at.dir)
		return err
	}, err
}

// OpenStore is the store that a configuration names.
func OpenStore(c Config) (content.Store, error) {
	at, err := parseStore(c.Store, c.S3AccessKey, c.S3SecretKey)
	if err != nil {
		return nil, fmt.Errorf("SKERRY_STORE: %w", err)
	}
	store, _, err := at.open()
	return store, err
}

// CheckStore compares the store with the rows of the database, both ways.
func CheckStore(ctx context.Context, databaseURL string, store content.Store, depth artifact.Depth, told func(artifact.Fault)) (artifact.Checked, error) {
	pool, err := pg.Open(ctx, databaseURL)
	if err != nil {
		return artifact.Checked{}, err
	}
	defer pool.Close()
	return artifact.Check(ctx, artifactpg.New(pool), store, depth, told)
}

func (c *control) openStore(context.Context) (err error) {
	if c.store, c.storeThere, err = c.cfg.at.open(); err != nil {
		return fmt.Errorf("SKERRY_STORE: %w", err)
	}
	if c.signer, err = transfer.NewSigner(c.cfg.secret.Derive("artifact-grants"), clock.System{}); err != nil {
		return err
	}
	ledger := artifactpg.New(c.pool)
	c.artifacts = artifact.NewService(ledger, c.signer, c.cfg.secret, c.cfg.AgentURL)
	c.moves = transfer.NewHandler(c.store, c.signer, ledger, transfer.HandlerOptions{Logger: c.log, Peer: peer})
	c.collector = artifact.NewCollector(ledger, c.store, c.log)
	return nil
}

// peer is the host whose certificate a request shows; zero for the control plane
// itself, which speaks to its store within the process.
func peer(r *http.Request) id.Host {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return id.Host{}
	}
	h, _ := keyring.HostOf(r.TLS.VerifiedChains[0][0])
	return h
}

// local are clients with which the control plane itself moves artifacts, under
// addresses made for the zero host.
func (c *control) local() transfer.Clients {
	return transfer.Clients{Control: &http.Client{Transport: inside{c.moves}}, Direct: http.DefaultClient}
}

// inside answers requests without a connection. Answers are as large as a chunk
// or a manifest, and held in memory.
type inside struct{ handler http.Handler }

// RoundTrip implements http.RoundTripper.
func (i inside) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r = r.Clone(r.Context())
		r.Body = http.NoBody
	}
	defer r.Body.Close()
	a := &answer{status: http.StatusOK, header: http.Header{}}
	i.handler.ServeHTTP(a, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status, Proto: r.Proto, ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: r,
	}, nil
}

type answer struct {
	status  int
	written bool
	header  http.Header
	body    bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if !a.written {
		a.status, a.written = status, true
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}
