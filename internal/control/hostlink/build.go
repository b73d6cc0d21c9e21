package hostlink

import (
	"context"
	"fmt"
	"strings"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

var _ build.Agents = (*Agents)(nil)

// Bounds of what is believed of an image, in entries and bytes.
const (
	maxImageEnv   = 256
	maxImageBytes = 128 << 10
)

// ImportImage implements build.Agents.
func (a *Agents) ImportImage(ctx context.Context, h host.Ref, i build.Import, log func(line string) error) (build.Image, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return build.Image{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &agentv1.ImportImageRequest{Reference: i.Reference, To: source(i.To)}
	if i.Tarball.URL != "" {
		req.Tarball = source(i.Tarball)
	}
	if i.Login != nil {
		req.Username, req.Password = i.Login.Username, i.Login.Password
	}
	stream, err := c.ImportImage(ctx, req)
	if err != nil {
		return build.Image{}, failure(err)
	}
	defer stream.Close()
	for stream.Receive() {
		switch m := stream.Msg().GetMessage().(type) {
		case *agentv1.ImportImageResponse_Log:
			if err := log(m.Log); err != nil {
				return build.Image{}, err
			}
		case *agentv1.ImportImageResponse_Result:
			return imageOf(m.Result)
		}
	}
	return build.Image{}, cutShort(stream.Err())
}

// ExportImage implements build.Agents.
func (a *Agents) ExportImage(ctx context.Context, h host.Ref, x id.Sandbox, incarnation int64, to content.Source, log func(line string) error) (build.Image, error) {
	c, err := a.pool.Client(h)
	if err != nil {
		return build.Image{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.ExportImage(ctx, &agentv1.ExportImageRequest{SandboxId: x.UUID().String(), Incarnation: uint64(incarnation), To: source(to)})
	if err != nil {
		return build.Image{}, failure(err)
	}
	defer stream.Close()
	for stream.Receive() {
		switch m := stream.Msg().GetMessage().(type) {
		case *agentv1.ExportImageResponse_Log:
			if err := log(m.Log); err != nil {
				return build.Image{}, err
			}
		case *agentv1.ExportImageResponse_Result:
			return imageOf(m.Result)
		}
	}
	return build.Image{}, cutShort(stream.Err())
}

// cutShort is the end of a stream that came to no result.
func cutShort(err error) error {
	if err != nil {
		return failure(err)
	}
	return errs.Unavailable("build_broken", "The host ended its work without a result.").After(retryAfter)
}

// imageOf reads what a host says it made; what an image says of itself is
// anybody's word.
func imageOf(m *agentv1.BuiltImage) (build.Image, error) {
	said := append([]string{m.GetUser(), m.GetWorkdir()}, m.GetCommand()...)
	for k, v := range m.GetEnv() {
		if k == "" || strings.Contains(k, "=") {
			return build.Image{}, errs.Invalid("invalid_image", fmt.Sprintf("The image has a variable that is called %.100q. Take it out of the image.", k))
		}
		said = append(said, k, v)
	}
	size := 0
	for _, s := range said {
		if strings.ContainsRune(s, 0) {
			return build.Image{}, errs.Invalid("invalid_image", "What the image says of its environment, user, directory or command has a zero byte in it, which no program can be given. Take it out of the image.")
		}
		size += len(s)
	}
	if size > maxImageBytes || len(m.GetEnv()) > maxImageEnv {
		return build.Image{}, errs.Invalid("image_too_large", fmt.Sprintf("What the image says of itself has more than %d variables or %d bytes.", maxImageEnv, maxImageBytes))
	}
	return build.Image{
		Digest: content.Digest(m.GetDigest()), SizeBytes: m.GetSizeBytes(), ManifestDigest: content.Digest(m.GetManifestDigest()), Arch: m.GetArch(),
		Env: m.GetEnv(), User: m.GetUser(), Workdir: m.GetWorkdir(), Command: m.GetCommand(),
	}, nil
}
