package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/guestlink"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/image"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/network"
	"skerry.dev/skerry/internal/agent/rpcserver"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
)

// networks is the slots as the manager wants them.
type networks struct{ *network.Manager }

func (n networks) Acquire(ctx context.Context, owner engine.InstanceID, internet bool) (manager.Slot, error) {
	s, err := n.Manager.Acquire(ctx, owner, network.Policy{Internet: internet})
	return manager.Slot(s), err
}

func (n networks) Adopt(ctx context.Context, index int, owner engine.InstanceID) (manager.Slot, error) {
	s, err := n.Manager.Adopt(ctx, index, owner)
	return manager.Slot(s), err
}

func (n networks) Slots() []manager.OwnedSlot {
	infos := n.Manager.Slots()
	out := make([]manager.OwnedSlot, len(infos))
	for i, info := range infos {
		out[i] = manager.OwnedSlot{Index: info.Index, Owner: info.Owner}
	}
	return out
}

// images is the cache as the manager wants it.
type images struct {
	cache   *image.Cache
	clients transfer.Clients
}

func (i images) Acquire(ctx context.Context, img journal.Image, daemon manager.Daemon, owner string) (manager.Tree, error) {
	tree, err := i.cache.Acquire(ctx, image.Image{
		Digest: artifact.Digest(img.Digest), SizeBytes: img.SizeBytes, From: img.From,
	}, image.Daemon{Digest: artifact.Digest(daemon.Digest), File: daemon.File}, owner, i.clients)
	return manager.Tree{Dir: tree.Dir, Daemon: string(tree.Daemon), Layers: tree.Layers}, err
}

func (i images) DaemonFile(daemon string) string { return i.cache.DaemonFile(artifact.Digest(daemon)) }

// Fetch implements carry.Images.
func (i images) Fetch(ctx context.Context, img journal.Image, progress transfer.Progress) error {
	return i.cache.Fetch(ctx, image.Image{Digest: artifact.Digest(img.Digest), SizeBytes: img.SizeBytes, From: img.From}, i.clients, progress)
}

func (i images) Release(ctx context.Context, digest, owner string) error {
	return i.cache.Release(ctx, artifact.Digest(digest), owner)
}

func (i images) Recover(ctx context.Context, owners map[string]manager.Holding) error {
	trees := make(map[string]image.Holding, len(owners))
	for owner, h := range owners {
		trees[owner] = image.Holding{Image: artifact.Digest(h.Image), Daemon: artifact.Digest(h.Daemon)}
	}
	return i.cache.Recover(ctx, trees)
}

// newGuest links the manager to guest daemons.
func newGuest(cfg Config) func(manager.GuestOptions) manager.Guest {
	return func(o manager.GuestOptions) manager.Guest {
		return guestlink.New(guestlink.Options{
			Dial: o.Dial, InitSecret: o.InitSecret, AccessToken: o.AccessToken, After: o.After, OnEvent: o.OnEvent, Logger: cfg.Logger,
		})
	}
}

// samples are what the manager measures as the control plane takes it.
func samples(m *manager.Manager) func(context.Context) []identity.Sample {
	return func(ctx context.Context) []identity.Sample {
		list := m.Samples(ctx)
		out := make([]identity.Sample, len(list))
		for i, s := range list {
			out[i] = identity.Sample{
				SandboxID: s.Sandbox.UUID().String(), Incarnation: s.Incarnation, At: s.At, CPUMillis: s.CPUMillis,
				MemoryBytes: s.MemoryBytes, DiskBytes: s.DiskBytes, Processes: s.Processes,
			}
		}
		return out
	}
}

// buildBase builds below the data directory, so that the bytes are on its disk,
// and leaves nothing there.
func buildBase(dataDir string, clients transfer.Clients) rpcserver.BuildBase {
	return func(ctx context.Context, uploadURL string, log func(string) error) (rpcserver.Built, error) {
		parent := filepath.Join(dataDir, "build")
		if err := os.RemoveAll(parent); err != nil { // of a build that was killed
			return rpcserver.Built{}, fmt.Errorf("agent: %w", err)
		}
		if err := os.MkdirAll(parent, 0o700); err != nil {
			return rpcserver.Built{}, fmt.Errorf("agent: %w", err)
		}
		defer os.RemoveAll(parent)
		// A line that cannot be sent ends the call's context, and with it the build.
		say := func(line string) { _ = log(line) }
		built, err := image.BuildBase(ctx, say, parent)
		if err != nil {
			return rpcserver.Built{}, err
		}
		say(fmt.Sprintf("uploading %d MB", built.Size>>20))
		up, err := transfer.Upload(ctx, clients, artifact.Source{URL: uploadURL}, []transfer.File{{Name: artifact.ImageFile, Path: built.Path}}, artifact.MediaTypeErofs, transfer.Options{})
		if err != nil {
			return rpcserver.Built{}, err
		}
		return rpcserver.Built{Digest: string(built.Digest), ManifestDigest: string(up.Manifest), SizeBytes: up.SizeBytes}, nil
	}
}
