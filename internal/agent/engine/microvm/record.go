package microvm

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
// differ.
type record struct {
	Version   int               `json:"version"`
	ID        engine.InstanceID `json:"id"`
	WorkDir   string            `json:"work_dir"`
	BootID    string            `json:"boot_id"`
	Resources engine.Resources  `json:"resources"`
	Network   engine.Network    `json:"network"`
	Roots     []string          `json:"roots"`
	// Machine is what runs, which for a copy is the source's.
	Machine machine `json:"machine"`
	// EmptyBytes is what the disk took on the host when nothing was written to it.
	EmptyBytes int64 `json:"empty_bytes,omitempty"`
	// Launched is set before the first attempt to start.
	Launched bool `json:"launched,omitempty"`
	// Process is the machine's program once it runs; Ready, that the workload does.
	Process shim.Process `json:"process,omitzero"`
	Ready   bool         `json:"ready,omitempty"`
	// Still is set before the guest is stopped and cleared when it goes on again.
	Still bool `json:"still,omitempty"`
	// Saving is set while a checkpoint is written of an instance that is to go on
	// afterwards: an agent that finds it lets it go on.
	Saving bool `json:"saving,omitempty"`
}

// machine is what a checkpoint needs the same again.
type machine struct {
	MemoryBytes int64   `json:"memory_bytes"`
	CPUs        int     `json:"cpus"`
	RootBytes   []int64 `json:"root_bytes"` // sizes of the layers
}

const recordVersion = 1

const idLen = 32

func (r *record) path(name string) string { return filepath.Join(r.WorkDir, name) }
func (r *record) started() bool           { return r.Process.PID != 0 }

// fsBytes is the size of the disk's file system; the End of the workload comes
// after it.
func fsBytes(res engine.Resources) int64 { return res.DiskBytes &^ (block - 1) }

// Names below WorkDir, all there are.
const (
	startFile   = "start" // what PID 1 is given, a secret in it; until it has it
	diskFile    = "disk"
	consoleFIFO = "console"
	consoleLog  = "console.log"
	pidFile     = "pid"
	qmpSocket   = "qmp"
	guestSocket = "guest"
)

var files = []string{startFile, diskFile, diskFile + ".new", consoleFIFO, consoleLog, consoleLog + ".1", pidFile, qmpSocket, guestSocket}

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
		return fmt.Errorf("microvm: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	return nil
}

func (e *Engine) load(id engine.InstanceID) (*record, error) {
	b, err := os.ReadFile(e.recordPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", engine.ErrNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	return decode(b)
}

func decode(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("microvm: unreadable handle: %w", err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("microvm: handle of version %d, this engine knows %d", r.Version, recordVersion)
	}
	return &r, validID(r.ID)
}

func (e *Engine) handle(r *record) (engine.Handle, error) {
	b, err := json.Marshal(r)
	return engine.Handle(b), err
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
		return fmt.Errorf("microvm: instance id %q: exactly %d lower-case hex digits", id, idLen)
	}
	return nil
}
