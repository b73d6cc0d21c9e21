package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// record is what is known of an instance: kept in StateDir/instances for
// ourselves, and given away as the handle. The file is the newer one when they
// differ: the agent may have died before it could journal a handle.
type record struct {
	Version   int               `json:"version"`
	ID        engine.InstanceID `json:"id"`
	WorkDir   string            `json:"work_dir"`
	GuestAddr string            `json:"guest_addr"`
	BootID    string            `json:"boot_id"`
	Resources engine.Resources  `json:"resources"`
	// Build is the digest of the runsc it was started by, which is used for it to
	// its end. Set with Launched.
	Build string `json:"build,omitempty"`
	// Launched is set before the first attempt to start.
	Launched bool `json:"launched,omitempty"`
	// Process is the sentry once the instance was started.
	Process shim.Process `json:"process,omitzero"`
	// Pause is set while the sentry holds the guest's tasks, over and above a
	// freeze.
	Pause string `json:"pause,omitempty"`
}

const recordVersion = 1

func (r *record) path(name string) string { return filepath.Join(r.WorkDir, name) }
func (r *record) started() bool           { return r.Process.PID != 0 }

// files are all names below WorkDir the engine uses.
var files = []string{"bundle", "disk", "console", "console.log", "console.log.1", "runsc.log", "panic.log", "pid", "stdin"}

func (e *Engine) recordPath(id engine.InstanceID) string {
	return filepath.Join(e.cfg.StateDir, "instances", string(id)+".json")
}

// save replaces the record. It is not synced: when the machine goes down the
// instance does as well.
func (e *Engine) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := e.recordPath(r.ID)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	return nil
}

func (e *Engine) load(id engine.InstanceID) (*record, error) {
	b, err := os.ReadFile(e.recordPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	return decode(b)
}

func decode(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("gvisor: unreadable handle: %w", err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("gvisor: handle of version %d, this engine knows %d", r.Version, recordVersion)
	}
	return &r, validID(r.ID)
}

// find returns the newest knowledge about the instance of a handle.
func (e *Engine) find(h engine.Handle) (*record, error) {
	r, err := decode(h)
	if err != nil {
		return nil, err
	}
	return e.load(r.ID)
}

// findEnded is find, but for an instance that was destroyed the handle's own
// word counts: its end may still be on record.
func (e *Engine) findEnded(h engine.Handle) (*record, error) {
	r, err := e.find(h)
	if errors.Is(err, engine.ErrNotFound) {
		if r, err = decode(h); err == nil && !r.started() {
			err = fmt.Errorf("%w: %s", engine.ErrNotFound, r.ID)
		}
	}
	return r, err
}

func validID(id engine.InstanceID) error {
	if len(id) != idLen || strings.Trim(string(id), "0123456789abcdef") != "" {
		return fmt.Errorf("gvisor: instance id %q: exactly %d lower-case hex digits", id, idLen)
	}
	return nil
}
