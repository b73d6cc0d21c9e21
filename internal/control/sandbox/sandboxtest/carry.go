package sandboxtest

import (
	"context"
	"errors"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Damaged is the digest of a copy that a byte was flipped in.
const Damaged = "damaged"

// Upload implements sandbox.Agents.
func (a *Agents) Upload(ctx context.Context, h host.Ref, what host.Cargo, to content.Source, progress host.Progress) (host.Uploaded, error) {
	c, ok := what.(host.StateCargo)
	if !ok {
		return host.Uploaded{}, errors.New("sandboxtest: only states are uploaded")
	}
	if err := hook(ctx, a.Before, "upload", id.Sandbox{}); err != nil {
		return host.Uploaded{}, err
	}
	a.mu.Lock()
	held, ok := a.machine(h.ID).states[c.ID]
	if ok && held.Digest != Damaged {
		a.stored[to.URL] = held
		a.transfers["upload"]++
	}
	a.mu.Unlock()
	switch {
	case !ok:
		return host.Uploaded{}, errs.NotFound("unknown_state", "There is no such state.")
	case held.Digest == Damaged:
		return host.Uploaded{}, errs.FailedPrecondition("state_damaged", "It is damaged.")
	}
	progress(held.SizeBytes/2, held.SizeBytes)
	if err := a.complete(ctx, to.URL); err != nil {
		return host.Uploaded{}, err
	}
	return host.Uploaded{SizeBytes: held.SizeBytes, SentBytes: held.SizeBytes}, hook(ctx, a.After, "upload", id.Sandbox{})
}

// Fetch implements sandbox.Agents.
func (a *Agents) Fetch(ctx context.Context, h host.Ref, what host.Cargo, from content.Source, progress host.Progress) error {
	if err := hook(ctx, a.Before, "fetch", id.Sandbox{}); err != nil {
		return err
	}
	a.mu.Lock()
	m := a.machine(h.ID)
	err := error(nil)
	switch c := what.(type) {
	case host.StateCargo:
		held, ok := a.stored[from.URL]
		if was, here := m.states[c.ID]; here && was.Digest == c.Digest {
			if ok && m.bare[c.ID] && !a.stripped {
				delete(m.bare, c.ID)
				a.transfers["daemon"]++
			}
			break
		}
		if !ok || held.ID != c.ID || held.Digest != c.Digest {
			err = errs.FailedPrecondition("content_mismatch", "The store has something else.")
			break
		}
		m.states[c.ID] = held
		a.transfers["fetch"]++
	case host.EngineCargo:
		m.builds[c.Version] = true
		a.transfers["engine"]++
	case host.ImageCargo:
		a.transfers["image"]++
	default:
		err = errors.New("sandboxtest: nothing to fetch")
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	progress(1, 2)
	return hook(ctx, a.After, "fetch", id.Sandbox{})
}

// Transfers is how often something was really moved: upload, fetch, engine.
func (a *Agents) Transfers(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.transfers[what]
}

// Wreck takes a host's disk away.
func (a *Agents) Wreck(h id.Host) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.hosts, h)
}

// Damage flips a byte of a host's copy of a state.
func (a *Agents) Damage(h id.Host, state id.Snapshot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if held, ok := a.machine(h).states[state]; ok {
		held.Digest = Damaged
		a.machine(h).states[state] = held
	}
}

// Strip takes the daemon away from a host's copy of a state, and from what the
// store has when everywhere.
func (a *Agents) Strip(h id.Host, state id.Snapshot, everywhere bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.machine(h).bare[state] = true
	a.stripped = everywhere
}

// Upgrade has a host run another version of its engine.
func (a *Agents) Upgrade(h id.Host, version string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.machine(h).version = version
}

// On is what one host holds of a sandbox, and whether it has a state.
func (a *Agents) On(h id.Host, x id.Sandbox) (phase sandbox.Phase, incarnation int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.machine(h).instances[x]; in != nil {
		return in.Phase, in.Incarnation
	}
	return "", 0
}

// HoldsState reports whether one host has a state.
func (a *Agents) HoldsState(h id.Host, state id.Snapshot) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.machine(h).states[state]
	return ok
}

// vault gives out addresses that name the artifact.
type vault struct{ *World }

// Source implements sandbox.Artifacts.
func (v vault) Source(_ context.Context, a id.Artifact, _ id.Host, _ artifact.Op) (content.Source, error) {
	return content.Source{URL: a.UUID().String()}, nil
}

// Progress implements sandbox.Artifacts.
func (v vault) Progress(ctx context.Context, a id.Artifact, done int64) error {
	_, err := v.Pool.Exec(ctx, `UPDATE artifacts SET sent_bytes = $2 WHERE id = $1 AND status = 'uploading'`, a, done)
	return err
}

// Vault is the store that the world's servers give hosts access to.
func (w *World) Vault() sandbox.Artifacts { return vault{w} }

func (w *World) completeArtifact(ctx context.Context, a string) error {
	tag, err := w.Pool.Exec(ctx, `UPDATE artifacts SET status = 'ready', manifest_digest = repeat('ab', 32), manifest_object = nextval('store_objects'), ready_at = now(), lease_until = NULL,
		size_bytes = 1, stored_bytes = 1 WHERE id = $1::uuid AND status IN ('uploading', 'ready')`, a)
	if err == nil && tag.RowsAffected() == 0 {
		return errs.FailedPrecondition("upload_gone", "This upload is over.")
	}
	return err
}
