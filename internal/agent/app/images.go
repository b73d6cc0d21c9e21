package app

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/image/oci"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/rpcserver"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// imagersAtOnce bounds how many images are made at a time: each takes a disk's
	// bandwidth and a core.
	imagersAtOnce = 2
	// DefaultMaxImageBytes and DefaultMaxImageFiles bound the images made here.
	DefaultMaxImageBytes = 20 << 30
	DefaultMaxImageFiles = 1_000_000

	maxImageSetting      = "SKERRY_AGENT_MAX_IMAGE_MB"
	maxImageFilesSetting = "SKERRY_AGENT_MAX_IMAGE_FILES"

	uploadLogEvery = 5 * time.Second
)

// imager makes images below the data directory, so that the bytes are on its
// disk, and puts them into the host's own cache too.
type imager struct {
	cfg       Config
	cache     *image.Cache
	sandboxes *manager.Manager
	clients   transfer.Clients
	turns     chan struct{}
}

func newImager(cfg Config, imgs manager.Images, m *manager.Manager, clients transfer.Clients) *imager {
	own, _ := imgs.(images)
	return &imager{cfg: cfg, cache: own.cache, sandboxes: m, clients: clients, turns: make(chan struct{}, imagersAtOnce)}
}

func (i *imager) limits() image.Limits {
	l := image.Limits{
		MaxBytes: i.cfg.MaxImageBytes, MaxFiles: i.cfg.MaxImageFiles, BytesSetting: maxImageSetting, FilesSetting: maxImageFilesSetting,
	}
	if l.MaxBytes <= 0 {
		l.MaxBytes = DefaultMaxImageBytes
	}
	if l.MaxFiles <= 0 {
		l.MaxFiles = DefaultMaxImageFiles
	}
	return l
}

// begin takes a turn and makes a directory for the finished file; done removes
// it. What a killed agent left there is removed by the first of the next.
func (i *imager) begin(ctx context.Context, log func(string)) (dir string, done func(), err error) {
	select {
	case i.turns <- struct{}{}:
	default:
		log("waiting: this host makes other images")
		select {
		case i.turns <- struct{}{}:
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
	dir, remove, err := image.WorkDir(filepath.Join(i.cfg.DataDir, "imaging"))
	if err != nil {
		<-i.turns
		return "", nil, fmt.Errorf("agent: %w", err)
	}
	return dir, func() { remove(); <-i.turns }, nil
}

// Import implements rpcserver.Imager.
func (i *imager) Import(ctx context.Context, req rpcserver.ImportRequest, log func(string)) (rpcserver.BuiltImage, error) {
	dir, done, err := i.begin(ctx, log)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	defer done()
	o := image.ImportOptions{
		Reference: req.Reference, Login: oci.Login{Username: req.Username, Password: req.Password},
		Registries: oci.Registries{Denied: i.cfg.Denied, Inside: i.cfg.RegistryNetworks, Proxy: i.cfg.RegistryProxy}, Arch: runtime.GOARCH, Limits: i.limits(),
	}
	if req.Reference == "" {
		o.Tarball = filepath.Join(dir, "tarball")
		log("fetching the tarball")
		err := transfer.Fetch(ctx, i.clients, req.Tarball, transfer.Want{MediaType: artifact.MediaTypeContext},
			transfer.At(artifact.ContextFile, o.Tarball), transfer.Options{MaxBytes: o.Limits.MaxBytes, Progress: every(log, "fetching the tarball")})
		if err != nil {
			return rpcserver.BuiltImage{}, fmt.Errorf("fetching the tarball: %w", err)
		}
	}
	got, err := image.Import(ctx, log, o, dir)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	built, err := i.store(ctx, log, got.Built, req.To)
	return rpcserver.BuiltImage{Built: built, Env: got.Env, User: got.User, Workdir: got.Workdir, Arch: got.Arch, Command: got.Command}, err
}

// Export implements rpcserver.Imager.
func (i *imager) Export(ctx context.Context, req rpcserver.ExportRequest, log func(string)) (rpcserver.BuiltImage, error) {
	img, err := i.sandboxes.ImageOf(req.Sandbox, req.Incarnation)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	if i.cache == nil {
		return rpcserver.BuiltImage{}, errs.FailedPrecondition("export_unsupported", "This host keeps no images.")
	}
	dir, done, err := i.begin(ctx, log)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	defer done()
	digest, owner := artifact.Digest(img.Digest), "export-"+rand.Text()
	lower, err := i.cache.Hold(ctx, digest, owner)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	defer func() {
		if err := i.cache.Release(context.WithoutCancel(ctx), digest, owner); err != nil {
			i.cfg.Logger.Warn("an image is not given back cleanly", "digest", digest, "err", err)
		}
	}()
	got, err := image.Export(ctx, log, image.ExportOptions{
		Lower: lower, Limits: i.limits(),
		Changes: func(ctx context.Context, w io.Writer) error {
			return i.sandboxes.RootTar(ctx, req.Sandbox, req.Incarnation, w)
		},
	}, dir)
	if err != nil {
		return rpcserver.BuiltImage{}, err
	}
	built, err := i.store(ctx, log, got, req.To)
	return rpcserver.BuiltImage{Built: built, Arch: runtime.GOARCH}, err
}

// store uploads a finished image.
func (i *imager) store(ctx context.Context, log func(string), built image.Built, to artifact.Source) (rpcserver.Built, error) {
	began := time.Now()
	up, err := transfer.Upload(ctx, i.clients, to, []transfer.File{{Name: artifact.ImageFile, Path: built.Path}},
		artifact.MediaTypeErofs, transfer.Options{Progress: every(log, "storing")})
	if err != nil {
		return rpcserver.Built{}, fmt.Errorf("storing the image: %w", err)
	}
	took := time.Since(began)
	log(fmt.Sprintf("stored %.1f MB in %.1f s (%.0f MB/s), of which %.1f MB were new",
		mb(up.SizeBytes), took.Seconds(), mb(up.SizeBytes)/max(took.Seconds(), 1e-3), mb(up.SentBytes)))
	// What is made here is mostly wanted here next. Without room it is fetched.
	if i.cache != nil {
		if err := i.cache.Import(ctx, built.Path, built.Digest); err != nil {
			i.cfg.Logger.Warn("a new image is not kept on this host", "digest", built.Digest, "err", err)
		}
	}
	return rpcserver.Built{Digest: string(built.Digest), ManifestDigest: string(up.Manifest), SizeBytes: built.Size}, nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

// every is a progress that is told now and then.
func every(log func(string), what string) transfer.Progress {
	began := time.Now()
	last := began
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= uploadLogEvery {
			last = now
			log(fmt.Sprintf("%s: %.1f of %.1f MB (%.0f MB/s)", what, mb(done), mb(total), mb(done)/now.Sub(began).Seconds()))
		}
	}
}

var _ rpcserver.Imager = (*imager)(nil)
