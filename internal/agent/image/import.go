package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"skerry.dev/skerry/internal/agent/image/oci"
	"skerry.dev/skerry/internal/agent/image/unpack"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Limits bound the images that are made on a host.
type Limits struct {
	MaxBytes int64 // unpacked
	MaxFiles int
	// What an operator sets to change them.
	BytesSetting, FilesSetting string
}

// ImportOptions say which container image is imported.
type ImportOptions struct {
	// Reference is pulled with Login from a registry; without one it is read from
	// the file Tarball.
	Reference  string
	Login      oci.Login
	Registries oci.Registries
	Tarball    string
	Arch       string // as Go names it
	Limits     Limits
}

// Imported is an image with what it says of itself.
type Imported struct {
	Built
	Env           map[string]string
	User, Workdir string
	Arch          string
	Command       []string // entrypoint and command
}

const (
	layersAtOnce  = 3
	layerAttempts = 4
	layerPause    = time.Second
	progressEvery = 5 * time.Second
)

// Import makes an image file of a container image in outDir and tells log what
// happens, a line at a time. The same container image gives the same digest. It
// needs root and mkfs.erofs. A failure or the end of ctx leaves nothing behind;
// what a killed import left is removed by the next one in outDir.
func Import(ctx context.Context, log func(line string), o ImportOptions, outDir string) (Imported, error) {
	if err := os.MkdirAll(outDir, 0o700); err != nil {
		return Imported{}, err
	}
	work, done, err := newWorkDir(outDir)
	if err != nil {
		return Imported{}, err
	}
	defer done()
	log = serial(log)
	img, release, err := o.open(ctx, log, work)
	if err != nil {
		return Imported{}, err
	}
	defer release()
	if size := img.Size(); size > o.Limits.MaxBytes {
		return Imported{}, errs.New(errs.CodeTooLarge, "image_too_large", fmt.Sprintf(
			"The image's layers have %s, which is more than this host's %d MB. Make it smaller, or raise %s there.", megabytes(size), o.Limits.MaxBytes>>20, o.Limits.BytesSetting)).
			With("limit", o.Limits.MaxBytes).With("setting", o.Limits.BytesSetting)
	}
	root := filepath.Join(work, "root")
	out := Imported{Env: img.Variables(), Workdir: img.Workdir, Arch: img.Arch, Command: slices.Concat(img.Entrypoint, img.Command)}
	epoch, err := o.layers(ctx, log, img, root, work, &out.User)
	if err != nil {
		return Imported{}, err
	}
	out.Built, err = pack(ctx, log, root, work, outDir, epoch)
	return out, err
}

// serial makes log take a line at a time: layers come several at once.
func serial(log func(string)) func(string) {
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		log(line)
	}
}

func (o ImportOptions) open(ctx context.Context, log func(string), work string) (oci.Image, func(), error) {
	if o.Reference == "" {
		log("reading the tarball for linux/" + o.Arch)
		return oci.Tarball(ctx, o.Tarball, work, o.Limits.MaxBytes, o.Limits.BytesSetting, o.Arch)
	}
	log(fmt.Sprintf("pulling %s for linux/%s", o.Reference, o.Arch))
	return o.Registries.Pull(ctx, o.Reference, o.Login, o.Arch)
}

// layers makes the tree and returns the time of its youngest file.
func (o ImportOptions) layers(ctx context.Context, log func(string), img oci.Image, root, work string, user *string) (time.Time, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	created := img.Created
	if created.Unix() < 0 || created.After(now) {
		created = time.Unix(0, 0)
	}
	tree, err := unpack.Open(root, unpack.Options{
		MaxBytes: o.Limits.MaxBytes, MaxEntries: o.Limits.MaxFiles, SizeSetting: o.Limits.BytesSetting, EntriesSetting: o.Limits.FilesSetting,
		Now: now, Otherwise: created,
	})
	if err != nil {
		return time.Time{}, err
	}
	defer tree.Close()
	log(fmt.Sprintf("%d layers, %s", len(img.Layers), megabytes(img.Size())))
	began := time.Now()
	if o.Reference == "" {
		err = unpackTarball(ctx, img, tree)
	} else {
		err = unpackPulled(ctx, log, img, work, tree)
	}
	if err != nil {
		return time.Time{}, err
	}
	if *user, err = furnish(tree, img.User); err != nil {
		return time.Time{}, err
	}
	if err := tree.SettleTimes(); err != nil {
		return time.Time{}, err
	}
	log(fmt.Sprintf("unpacked %d files and directories, %s", tree.Entries(), rate(tree.Bytes(), time.Since(began))))
	if n := tree.Skipped(); n > 0 {
		log(fmt.Sprintf("left out %d devices: a sandbox has a /dev of its own", n))
	}
	return tree.Newest(), nil
}

func unpackTarball(ctx context.Context, img oci.Image, tree *unpack.Tree) error {
	for _, l := range img.Layers {
		content, err := l.Open(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(applyLayer(ctx, tree, l, content), content.Close()); err != nil {
			return err
		}
	}
	return nil
}

func applyLayer(ctx context.Context, tree *unpack.Tree, l oci.Layer, content io.Reader) error {
	archive, err := l.Archive(content)
	if err != nil {
		return err
	}
	return errors.Join(tree.Apply(ctx, archive, unpack.OCI), archive.Close())
}

// unpackPulled fetches a few layers at once, to files below work, and unpacks
// one after the other meanwhile.
func unpackPulled(ctx context.Context, log func(string), img oci.Image, work string, tree *unpack.Tree) error {
	group, ctx := errgroup.WithContext(ctx)
	fetched := make([]chan struct{}, len(img.Layers))
	path := func(i int) string { return filepath.Join(work, fmt.Sprintf("layer-%d", i)) }
	for i := range fetched {
		fetched[i] = make(chan struct{})
	}
	p := &progress{log: log, total: img.Size(), began: time.Now()}
	next := make(chan int)
	group.Go(func() error {
		defer close(next)
		for i := range img.Layers {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range min(layersAtOnce, len(img.Layers)) {
		group.Go(func() error {
			for i := range next {
				if err := fetchLayer(ctx, img.Layers[i], path(i), p); err != nil {
					return err
				}
				close(fetched[i])
				if p.layers.Add(1) == int32(len(img.Layers)) { //nolint:gosec // some hundred at most
					log("pulled " + rate(p.done.Load(), time.Since(p.began)))
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		for i, l := range img.Layers {
			if err := p.wait(ctx, fetched[i]); err != nil {
				return err
			}
			f, err := os.Open(path(i))
			if err != nil {
				return err
			}
			if err := errors.Join(applyLayer(ctx, tree, l, f), f.Close(), os.Remove(path(i))); err != nil {
				return err
			}
			log(fmt.Sprintf("layer %d of %d: %s", i+1, len(img.Layers), megabytes(l.Size)))
		}
		return nil
	})
	return group.Wait()
}

// progress tells how a download goes.
type progress struct {
	log    func(string)
	done   atomic.Int64
	layers atomic.Int32
	total  int64
	began  time.Time
}

func (p *progress) Write(b []byte) (int, error) {
	p.done.Add(int64(len(b)))
	return len(b), nil
}

// wait blocks until ready is closed and says now and then how far it is.
func (p *progress) wait(ctx context.Context, ready <-chan struct{}) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			p.log(fmt.Sprintf("pulling: %s of %s", rate(p.done.Load(), time.Since(p.began)), megabytes(p.total)))
		}
	}
}

// fetchLayer brings a layer to a file, beginning anew when the line breaks.
func fetchLayer(ctx context.Context, l oci.Layer, path string, p *progress) error {
	pause := layerPause
	for attempt := 1; ; attempt++ {
		n, err := fetchOnce(ctx, l, path, p)
		if err == nil || attempt == layerAttempts || ctx.Err() != nil || errs.CodeOf(err) != errs.CodeUnavailable {
			return err
		}
		p.done.Add(-n)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		pause *= 2
	}
}

func fetchOnce(ctx context.Context, l oci.Layer, path string, p *progress) (int64, error) {
	content, err := l.Open(ctx)
	if err != nil {
		return 0, err
	}
	defer content.Close()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.MultiWriter(f, p), content)
	return n, fullDisk(errors.Join(err, f.Close()))
}

// pack makes the image file of a tree.
func pack(ctx context.Context, log func(string), root, work, outDir string, epoch time.Time) (Built, error) {
	began := time.Now()
	file := filepath.Join(work, "image.erofs")
	if err := packErofs(ctx, root, file, epoch); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Built{}, fullDisk(err)
	}
	built, err := keepImage(file, outDir)
	if err == nil {
		log("packed into one read-only image: " + rate(built.Size, time.Since(began)))
	}
	return built, fullDisk(err)
}
