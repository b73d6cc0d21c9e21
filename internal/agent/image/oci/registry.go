package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Registries pulls images.
type Registries struct {
	// Denied are networks no registry may be in. Inside are those beside the public
	// internet where one may be: whoever names a reference reaches what is there.
	Denied, Inside []netip.Prefix
	// Proxy is what all pulls go through: it finds out where names lead and has to
	// keep rules of its own. Nil is none: one of the environment is not for what users
	// name, since it would lead past these.
	Proxy *url.URL

	stall time.Duration // 0 is stallTimeout
}

// Login is who pulls; empty is anybody.
type Login struct{ Username, Password string }

// Pull finds the image of a reference for linux on arch. Its layers are fetched
// when they are opened. Done is called when no more are.
func (r Registries) Pull(ctx context.Context, reference string, login Login, arch string) (img Image, done func(), err error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return Image{}, nil, errs.Field("reference", fmt.Sprintf("%.200q is no reference to an image, such as docker.io/library/debian:12.", reference)).Because(err)
	}
	client := r.client(ref.Context().Registry)
	defer func() {
		if err != nil {
			client.CloseIdleConnections()
			err = explain(ctx, ref, login, err)
		}
	}()
	auth := authn.Anonymous
	if login != (Login{}) {
		auth = authn.FromConfig(authn.AuthConfig{Username: login.Username, Password: login.Password})
	}
	options := []remote.Option{
		remote.WithTransport(client), remote.WithAuth(auth), remote.WithUserAgent("skerry"),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}),
	}
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return Image{}, nil, err
	}
	desc, err := puller.Get(ctx, ref)
	if err != nil {
		return Image{}, nil, err
	}
	manifest := desc.Manifest
	if desc.MediaType.IsIndex() {
		child, err := choose(desc.Manifest, arch)
		if err != nil {
			return Image{}, nil, err
		}
		if desc, err = puller.Get(ctx, ref.Context().Digest(child.Digest.String())); err != nil {
			return Image{}, nil, err
		}
		manifest = desc.Manifest
	}
	if !desc.MediaType.IsImage() {
		return Image{}, nil, errs.Invalid("unknown_media_type", fmt.Sprintf("The reference names something of the type %.100q, which is no container image.", desc.MediaType))
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifest))
	if err != nil {
		return Image{}, nil, errs.Invalid("image_unknown", "The registry's manifest is none of a container image.").Because(err)
	}
	open := func(d v1.Descriptor) func(context.Context) (io.ReadCloser, error) {
		return func(ctx context.Context) (io.ReadCloser, error) {
			layer, err := puller.Layer(context.WithValue(ctx, content{}, true), ref.Context().Digest(d.Digest.String()))
			if err != nil {
				return nil, explain(ctx, ref, login, err)
			}
			body, err := layer.Compressed()
			if err != nil {
				return nil, explain(ctx, ref, login, err)
			}
			return reader{explaining{body, func(err error) error { return explain(ctx, ref, login, err) }}, body.Close}, nil
		}
	}
	if m.Config.Size > maxDocument {
		return Image{}, nil, errs.Invalid("image_unknown", "The image's configuration is larger than any configuration.")
	}
	raw, err := document(ctx, Layer{Size: m.Config.Size, content: m.Config.Digest, open: open(m.Config)})
	if err != nil {
		return Image{}, nil, err
	}
	img, err = assemble(raw, arch, m.Layers, func(i int) func(context.Context) (io.ReadCloser, error) { return open(m.Layers[i]) })
	return img, client.CloseIdleConnections, err
}

// document reads something small, checked.
func document(ctx context.Context, l Layer) ([]byte, error) {
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxDocument+1))
}

// choose finds the one image of an index for the platform.
func choose(index []byte, arch string) (v1.Descriptor, error) {
	list, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return v1.Descriptor{}, errs.Invalid("image_unknown", "The list of images is none.").Because(err)
	}
	var has []string
	for _, d := range list.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == arch {
			return d, nil
		}
		has = append(has, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return v1.Descriptor{}, wrongPlatform(arch, has...)
}

// explaining puts errors of a stream into words.
type explaining struct {
	r       io.Reader
	explain func(error) error
}

func (e explaining) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		err = e.explain(err)
	}
	return n, err
}

// explain says what a registry's refusal means to whoever asked for the image.
// The registry's own words stay in the cause: they may be anything.
func explain(ctx context.Context, ref name.Reference, login Login, err error) error {
	var typed *errs.Error
	if asTyped(err, &typed) {
		return typed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	registry, repository := ref.Context().RegistryStr(), ref.Context().RepositoryStr()
	var status *transport.Error
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			if login == (Login{}) {
				return errs.FailedPrecondition("registry_unauthorized", fmt.Sprintf(
					"%s gives %s to nobody unknown, or has no such image. Check the reference, or give registry credentials: a username and a password or token.", registry, repository)).Because(err)
			}
			return errs.FailedPrecondition("registry_unauthorized", fmt.Sprintf(
				"%s refuses the registry credentials given for %s. Check username and password or token, and that they may pull it.", registry, repository)).Because(err)
		case http.StatusNotFound:
			return errs.NotFound("image_not_found", fmt.Sprintf("%s has no image %s. Check its name and tag.", registry, strings.TrimPrefix(ref.Name(), registry+"/"))).Because(err)
		case http.StatusTooManyRequests:
			return errs.Exhausted("registry_rate_limited", fmt.Sprintf("%s limits how often images are pulled. Try again later, or give registry credentials.", registry)).Because(err)
		}
		return errs.Unavailable("registry_failed", fmt.Sprintf("%s answered with status %d. Try again later.", registry, status.StatusCode)).Because(err)
	}
	var network net.Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return errs.Unavailable("registry_unreachable", fmt.Sprintf("There is no registry at %s: the name is unknown to this host.", registry)).Because(err)
	case errors.As(err, &network) && network.Timeout(), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errs.Unavailable("registry_timeout", fmt.Sprintf("%s did not answer in time. Try again later.", registry)).Because(err)
	case strings.Contains(err.Error(), "digest"): // the library's own check of manifests
		return errs.Invalid("digest_mismatch", fmt.Sprintf("What %s answered is not what the digest names.", registry)).Because(err)
	}
	return errs.Unavailable("registry_unreachable", fmt.Sprintf("%s cannot be reached from this host, or does not speak as a registry does. Check its address.", registry)).Because(err)
}

func asTyped(err error, typed **errs.Error) bool { return errors.As(err, typed) }

func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
