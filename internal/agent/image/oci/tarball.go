package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// maxFiles bounds what a tarball may hold beside its layers.
	maxFiles = 10_000
	// maxNames bounds the memory their names take.
	maxNames = 4 << 20
	// maxDepth is how far indexes may name indexes.
	maxDepth = 4
)

// Tarball opens the image in a tarball of docker save or of an OCI layout, which
// may be compressed: dir takes it plain then, of at most limit bytes, which an
// operator changes by setting. The image reads file until done is called.
func Tarball(ctx context.Context, file, dir string, limit int64, setting, arch string) (img Image, done func(), err error) {
	plain, err := inflate(ctx, file, dir, limit, setting)
	if err != nil {
		return Image{}, nil, err
	}
	f, err := os.Open(plain)
	if err != nil {
		return Image{}, nil, err
	}
	t := tarball{f: f}
	if err = t.scan(ctx); err == nil {
		img, err = t.image(ctx, arch)
	}
	if err != nil {
		_ = f.Close()
		return Image{}, nil, err
	}
	return img, func() { _ = f.Close() }, nil
}

// inflate returns the plain form of file.
func inflate(ctx context.Context, file, dir string, limit int64, setting string) (string, error) {
	in, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer in.Close()
	head := make([]byte, 4)
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if head = head[:n]; !bytes.HasPrefix(head, gzipMagic) && !bytes.HasPrefix(head, zstdMagic) {
		return file, nil
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	r, err := decompress(in)
	if err != nil {
		return "", err
	}
	defer r.Close()
	out, err := os.CreateTemp(dir, "tarball-")
	if err != nil {
		return "", err
	}
	size, err := copyUntil(ctx, out, io.LimitReader(r, limit+1))
	if err = errors.Join(err, out.Close()); err != nil {
		return "", err
	}
	if size > limit {
		return "", errs.New(errs.CodeTooLarge, "image_too_large", fmt.Sprintf(
			"The tarball unpacks to more than %d MB. Make it smaller, or raise %s on this host.", limit>>20, setting)).
			With("limit", limit).With("setting", setting)
	}
	return out.Name(), nil
}

// copyUntil is io.Copy that ends with ctx.
func copyUntil(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, 1<<20)
	for sum := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return sum, err
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return sum, err
			}
			sum += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// tarball is where the files of one lie. Nothing of it is ever unpacked under
// its own name.
type tarball struct {
	f     *os.File
	files map[string]span
	links map[string]string // old docker save says a layer twice by a link
}

type span struct{ at, size int64 }

func (t *tarball) scan(ctx context.Context) error {
	t.files, t.links = make(map[string]span), make(map[string]string)
	names := 0
	for r := tar.NewReader(t.f); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errs.Invalid("archive_damaged", "The tarball is damaged or none.").Because(err)
		}
		name := path.Clean("/" + h.Name)
		if names += len(name) + len(h.Linkname); names > maxNames || len(t.files)+len(t.links) >= maxFiles {
			return errs.Invalid("image_unknown", "The tarball has more files than an image's has. Make it with docker save, or as an OCI layout.")
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			t.files[name] = span{at, h.Size}
		case tar.TypeSymlink:
			t.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			t.links[name] = path.Clean("/" + h.Linkname)
		}
	}
}

// find returns where a file lies, through one link at most.
func (t *tarball) find(name string) (span, error) {
	name = path.Clean("/" + name)
	if to, ok := t.links[name]; ok {
		name = to
	}
	s, ok := t.files[name]
	if !ok {
		return span{}, errs.Invalid("image_unknown", fmt.Sprintf("The tarball lacks %.200q, which its image needs. It is not whole.", strings.TrimPrefix(name, "/")))
	}
	return s, nil
}

func (t *tarball) section(s span) io.Reader { return io.NewSectionReader(t.f, s.at, s.size) }

func (t *tarball) document(name string) ([]byte, error) {
	s, err := t.find(name)
	if err != nil {
		return nil, err
	}
	if s.size > maxDocument {
		return nil, errs.Invalid("image_unknown", fmt.Sprintf("The tarball's %.200q is larger than any such file.", name))
	}
	return io.ReadAll(t.section(s))
}

func (t *tarball) opener(s span) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(t.section(s)), nil }
}

func (t *tarball) image(ctx context.Context, arch string) (Image, error) {
	_, docker := t.files["/manifest.json"]
	_, layout := t.files["/index.json"]
	switch {
	case docker:
		return t.saved(arch)
	case layout:
		return t.layout(ctx, arch)
	}
	return Image{}, errs.Invalid("image_unknown", "The tarball is no image: it has neither docker save's manifest.json nor an OCI layout's index.json.")
}

// saved is the image of docker save.
func (t *tarball) saved(arch string) (Image, error) {
	raw, err := t.document("manifest.json")
	if err != nil {
		return Image{}, err
	}
	var list []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return Image{}, errs.Invalid("image_unknown", "The tarball's manifest.json is none of docker save.").Because(err)
	}
	if len(list) != 1 {
		return Image{}, errs.Invalid("several_images", fmt.Sprintf("The tarball has %d images. Save the one that is wanted.", len(list)))
	}
	config, err := t.document(list[0].Config)
	if err != nil {
		return Image{}, err
	}
	spans, descs := []span{}, []v1.Descriptor{}
	for _, name := range list[0].Layers {
		s, err := t.find(name)
		if err != nil {
			return Image{}, err
		}
		spans, descs = append(spans, s), append(descs, v1.Descriptor{Size: s.size})
	}
	return assemble(config, arch, descs, func(i int) func(context.Context) (io.ReadCloser, error) { return t.opener(spans[i]) })
}

// layout is the image of an OCI layout.
func (t *tarball) layout(ctx context.Context, arch string) (Image, error) {
	raw, err := t.document("index.json")
	if err != nil {
		return Image{}, err
	}
	found := make(map[v1.Hash]v1.Descriptor)
	var has []string
	if err := t.walk(ctx, raw, arch, maxDepth, found, make(map[v1.Hash]bool), &has); err != nil {
		return Image{}, err
	}
	switch {
	case len(found) == 0:
		return Image{}, wrongPlatform(arch, has...)
	case len(found) > 1:
		return Image{}, errs.Invalid("several_images", fmt.Sprintf("The tarball has %d images for linux/%s. Save the one that is wanted.", len(found), arch))
	}
	for _, d := range found {
		raw, err := t.blob(ctx, d)
		if err != nil {
			return Image{}, err
		}
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return Image{}, errs.Invalid("image_unknown", "The tarball's manifest is none of a container image.").Because(err)
		}
		config, err := t.blob(ctx, m.Config)
		if err != nil {
			return Image{}, err
		}
		spans := make([]span, len(m.Layers))
		for i, l := range m.Layers {
			if spans[i], err = t.find(blobPath(l.Digest)); err != nil {
				return Image{}, err
			}
		}
		return assemble(config, arch, m.Layers, func(i int) func(context.Context) (io.ReadCloser, error) { return t.opener(spans[i]) })
	}
	return Image{}, nil // not reached: there is one
}

// walk collects the images for the platform of an index and those it names.
func (t *tarball) walk(ctx context.Context, index []byte, arch string, depth int, found map[v1.Hash]v1.Descriptor, seen map[v1.Hash]bool, has *[]string) error {
	list, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil || depth == 0 {
		return errs.Invalid("image_unknown", "The tarball's index is none of container images.").Because(err)
	}
	for _, d := range list.Manifests {
		if d.Platform != nil && d.Platform.OS != "" && (d.Platform.OS != "linux" || d.Platform.Architecture != arch) {
			*has = append(*has, d.Platform.OS+"/"+d.Platform.Architecture)
			continue
		}
		switch {
		case seen[d.Digest]:
		case d.MediaType.IsIndex():
			seen[d.Digest] = true
			raw, err := t.blob(ctx, d)
			if err != nil {
				return err
			}
			if err := t.walk(ctx, raw, arch, depth-1, found, seen, has); err != nil {
				return err
			}
		case d.MediaType.IsImage():
			found[d.Digest] = d
		default:
			return errs.Invalid("unknown_media_type", fmt.Sprintf("The tarball holds something of the type %.100q, which is no container image.", d.MediaType))
		}
	}
	return nil
}

// blob reads a small one and checks it.
func (t *tarball) blob(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	s, err := t.find(blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	if s.size > maxDocument {
		return nil, errs.Invalid("image_unknown", "A document in the tarball is larger than any such.")
	}
	return document(ctx, Layer{Size: s.size, content: d.Digest, open: t.opener(s)})
}

func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }
