package app

import (
	"context"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/agent/carry"
	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/journal"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/agent/state"
	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/errs"
)

// sweepBuilds is how often builds of engines that nothing needs are looked for.
const sweepBuilds = time.Hour

func openCarrier(cfg Config, states *state.Store, imgs manager.Images, daemon string, engines map[string]engine.Engine, clients transfer.Clients) (*carry.Carrier, error) {
	fetched, ok := imgs.(carry.Images)
	if !ok {
		fetched = noImages{}
	}
	return carry.New(carry.Config{
		States: states, Images: fetched, Engines: engines, Clients: clients,
		Dir: filepath.Join(cfg.DataDir, "engines", "incoming"), Daemon: imgs.DaemonFile(daemon), DaemonDigest: artifact.Digest(daemon), Logger: cfg.Logger,
	})
}

// noImages is where there is no cache to fetch images to.
type noImages struct{}

func (noImages) Fetch(context.Context, journal.Image, transfer.Progress) error {
	return errs.FailedPrecondition("image_unavailable", "This host fetches no images.")
}

// keepBuilds removes the builds of engines that no instance and no saved state
// needs any more.
func keepBuilds(ctx context.Context, cfg Config, engines map[string]engine.Engine, states *state.Store) {
	tick := time.NewTicker(sweepBuilds)
	defer tick.Stop()
	for {
		for name, e := range engines {
			b, ok := e.(engine.Builder)
			if !ok {
				continue
			}
			if err := b.SweepBuilds(ctx, func() map[string]bool { return versionsOf(states, name) }); err != nil && ctx.Err() == nil {
				cfg.Logger.Error("builds of an engine that nothing needs are not removed yet", "engine", name, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// versionsOf are the builds that saved states were made by.
func versionsOf(states *state.Store, engine string) map[string]bool {
	out := map[string]bool{}
	for _, st := range states.List() {
		if st.Engine == engine {
			out[st.EngineVersion] = true
		}
	}
	return out
}
