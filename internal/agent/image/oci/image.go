package oci

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// maxDocument bounds manifests, indexes and configurations.
	maxDocument = 8 << 20
	// maxLayers is what a kernel's overlay takes, and more than anybody builds.
	maxLayers = 500
	// maxLayer is more than any layer has, and small enough for sums of them.
	maxLayer = 1 << 50
	// maxWindow bounds the memory of one decompression.
	maxWindow = 128 << 20
	// maxSettings bounds environment, command and the rest of what an image says of
	// itself: a sandbox takes no more.
	maxSettings = 128 << 10
)

// Image is one image for one platform.
type Image struct {
	Env        []string
	User       string
	Workdir    string
	Entrypoint []string
	Command    []string
	// Created is when it says it was made; zero when it does not.
	Created time.Time
	Arch    string
	Layers  []Layer
}

// Layer is one archive of an image.
type Layer struct {
	// Size is that of what is transferred.
	Size int64
	// content is the digest of what is transferred, none in some tarballs; tree
	// that of the archive in it.
	content, tree v1.Hash
	open          func(ctx context.Context) (io.ReadCloser, error)
}

// Open reads the layer as it is transferred, mostly compressed. A read that ends
// well has given what the digest names.
func (l Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := l.open(ctx)
	if err != nil {
		return nil, err
	}
	if l.content == (v1.Hash{}) {
		return r, nil
	}
	return &checked{r: io.LimitReader(r, l.Size+1), closer: r, h: sha256.New(), want: l.content, size: l.Size}, nil
}

// Archive reads the tar archive in what Open gave, whatever it is compressed
// with. A read that ends well has given what the image's digest names.
func (l Layer) Archive(content io.Reader) (io.ReadCloser, error) {
	r, err := decompress(content)
	if err != nil {
		return nil, err
	}
	return &checked{r: r, closer: r, h: sha256.New(), want: l.tree, size: -1}, nil
}

// checked turns the end of a stream of other content into an error.
type checked struct {
	r      io.Reader
	closer io.Closer
	h      hash.Hash
	want   v1.Hash
	size   int64 // negative: any
	n      int64
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	if err == io.EOF {
		if got := hex.EncodeToString(c.h.Sum(nil)); got != c.want.Hex || c.size >= 0 && c.n != c.size {
			return n, errs.Invalid("digest_mismatch", fmt.Sprintf(
				"A layer of the image is not what its digest %s names. The registry or the tarball is damaged.", c.want)).
				With("digest", c.want.String())
		}
	}
	return n, err
}

func (c *checked) Close() error { return c.closer.Close() }

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress looks at what the content is, for media types are often wrong.
func decompress(content io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(content, 256<<10)
	head, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, damaged(err)
		}
		return reader{blaming{z}, z.Close}, nil
	case bytes.HasPrefix(head, zstdMagic):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, damaged(err)
		}
		return reader{blaming{z}, func() error { z.Close(); return nil }}, nil
	}
	return reader{b, func() error { return nil }}, nil
}

type reader struct {
	io.Reader
	close func() error
}

func (r reader) Close() error { return r.close() }

// blaming says that what cannot be decompressed is damaged.
type blaming struct{ r io.Reader }

func (b blaming) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		err = damaged(err)
	}
	return n, err
}

func damaged(err error) error {
	var typed *errs.Error
	if asTyped(err, &typed) || ended(err) {
		return err
	}
	return errs.Invalid("archive_damaged", "A layer of the image is damaged: it cannot be decompressed.").Because(err)
}

// layerTypes are the media types of layers; their compression is looked at.
var layerTypes = []types.MediaType{
	types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer,
	types.DockerLayer + ".zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// assemble makes an image of its configuration and what fetches its layers.
func assemble(raw []byte, arch string, descs []v1.Descriptor, open func(i int) func(context.Context) (io.ReadCloser, error)) (Image, error) {
	cfg, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Image{}, errs.Invalid("image_unknown", "The image's configuration is no configuration of a container image.").Because(err)
	}
	if cfg.OS != "" && cfg.OS != "linux" || cfg.Architecture != "" && cfg.Architecture != arch {
		return Image{}, wrongPlatform(arch, cfg.OS+"/"+cfg.Architecture)
	}
	if len(descs) == 0 || len(descs) > maxLayers || len(cfg.RootFS.DiffIDs) != len(descs) {
		return Image{}, errs.Invalid("image_unknown", fmt.Sprintf(
			"The image has %d layers and describes %d. It is damaged, or no container image.", len(descs), len(cfg.RootFS.DiffIDs)))
	}
	img := Image{
		Env: cfg.Config.Env, User: cfg.Config.User, Workdir: cfg.Config.WorkingDir,
		Entrypoint: cfg.Config.Entrypoint, Command: cfg.Config.Cmd, Created: cfg.Created.Time, Arch: arch,
	}
	said := 0
	for _, s := range slices.Concat(img.Env, img.Entrypoint, img.Command, []string{img.User, img.Workdir}) {
		if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
			return Image{}, errs.Invalid("invalid_image", fmt.Sprintf(
				"The image's environment, user, directory or command has something that is no text: %.100q. Take it out of the image.", s))
		}
		said += len(s)
	}
	if said > maxSettings {
		return Image{}, errs.Invalid("image_settings_too_large", fmt.Sprintf(
			"The image's environment and command have %d KiB, a sandbox takes %d. Take out what it does not need.", said>>10, maxSettings>>10))
	}
	for i, d := range descs {
		if d.MediaType != "" && !slices.Contains(layerTypes, d.MediaType) {
			return Image{}, errs.Invalid("unknown_media_type", fmt.Sprintf(
				"Layer %d of the image is of the type %.100q, which is no layer of a file system. Images of that kind cannot be imported.", i+1, d.MediaType))
		}
		tree := cfg.RootFS.DiffIDs[i]
		if tree.Algorithm != "sha256" || d.Digest != (v1.Hash{}) && d.Digest.Algorithm != "sha256" {
			return Image{}, errs.Invalid("image_unknown", "The image names its layers by other digests than SHA-256.")
		}
		if d.Size < 0 || d.Size > maxLayer {
			return Image{}, errs.Invalid("image_unknown", fmt.Sprintf("Layer %d of the image has no size that a layer can have.", i+1))
		}
		img.Layers = append(img.Layers, Layer{Size: d.Size, content: d.Digest, tree: tree, open: open(i)})
	}
	return img, nil
}

// Size is what all layers transfer, as the image has it.
func (i Image) Size() int64 {
	var sum int64
	for _, l := range i.Layers {
		sum += l.Size
	}
	return sum
}

// Variables are the environment by name; what has no name is left out.
func (i Image) Variables() map[string]string {
	out := make(map[string]string, len(i.Env))
	for _, kv := range i.Env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			out[name] = value
		}
	}
	return out
}

func wrongPlatform(arch string, has ...string) error {
	have := maps.Collect(func(yield func(string, bool) bool) {
		for _, h := range has {
			if !yield(h, true) {
				return
			}
		}
	})
	delete(have, "unknown/unknown") // attestations
	names := slices.Sorted(maps.Keys(have))
	return errs.FailedPrecondition("wrong_platform", fmt.Sprintf(
		"The image is for %.200s, this host needs linux/%s. Choose a tag for it, or a host of the other kind.", strings.Join(names, ", "), arch)).
		With("needs", "linux/"+arch)
}
