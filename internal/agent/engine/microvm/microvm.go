package microvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/shim"
)

// name of the engine.
const name = "microvm"

// Ways to run a guest's instructions.
const (
	KVM = "kvm"
	TCG = "tcg" // in software, and many times slower: only for who asks for it
)

// Config of the engine.
type Config struct {
	// StateDir is the engine's own directory, made with mode 0700.
	StateDir string
	// BootsDir keeps machines that were booted ahead; empty is below StateDir.
	BootsDir string
	// KitDir is where the kernel is installed, see package kit.
	KitDir string
	// QEMU is the program, qemu-system-x86_64.
	QEMU string
	// Accel is KVM or TCG.
	Accel string
	// Launcher is the command, with its environment, that runs Launch.
	Launcher    []string
	LauncherEnv []string
	// Tag makes names on this host our own; the cgroup parent is /skerry-vm-<tag>.
	Tag string
	// HeadroomBytes is the memory a machine's program may use on the host above
	// its guest's. Whoever places instances must count it. 0 is 192 MiB.
	HeadroomBytes int64
	Logger        *slog.Logger // nil discards
}

// Engine implements engine.Engine.
type Engine struct {
	cfg    Config
	shim   *shim.Client
	cg     groups
	bootID string
	probe  prober
	boots  sync.Mutex // held by who keeps a machine that was booted
	layers sync.Mutex // held by who makes an image of a directory

	mu    sync.Mutex
	calls map[engine.InstanceID]*turn
	conns map[engine.InstanceID]*connSet
	wg    sync.WaitGroup
	ctx   context.Context // of the connections' watchers; ends with Close
	stop  context.CancelFunc
}

var (
	_ engine.Engine = (*Engine)(nil)
	_ engine.Holder = (*Engine)(nil)
)

// New returns an engine on a state directory. Nothing of what exists there is
// touched; engines of several agents must differ in both StateDir and Tag.
func New(cfg Config, sh *shim.Client) (*Engine, error) {
	if cfg.Tag == "" || strings.Trim(cfg.Tag, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return nil, fmt.Errorf("microvm: tag %q: a-z, 0-9 and - only, not empty", cfg.Tag)
	}
	if cfg.BootsDir == "" {
		cfg.BootsDir = filepath.Join(cfg.StateDir, "boots")
	}
	for _, path := range []string{cfg.StateDir, cfg.BootsDir, cfg.KitDir, cfg.QEMU} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("microvm: %q must be an absolute path", path)
		}
	}
	if cfg.Accel != KVM && cfg.Accel != TCG {
		return nil, fmt.Errorf("microvm: accelerator %q: %s or %s", cfg.Accel, KVM, TCG)
	}
	if len(cfg.Launcher) == 0 {
		return nil, errors.New("microvm: no command that launches machines")
	}
	if cfg.HeadroomBytes <= 0 {
		cfg.HeadroomBytes = 192 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	for _, dir := range []string{filepath.Join(cfg.StateDir, "instances"), cfg.BootsDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("microvm: %w", err)
		}
	}
	cg, err := openGroups("/sys/fs/cgroup", "skerry-vm-"+cfg.Tag)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.StateDir, "layers"), 0o700); err != nil {
		return nil, fmt.Errorf("microvm: %w", err)
	}
	e := &Engine{
		cfg: cfg, shim: sh, cg: cg, bootID: strings.TrimSpace(string(boot)),
		calls: map[engine.InstanceID]*turn{}, conns: map[engine.InstanceID]*connSet{},
	}
	e.ctx, e.stop = context.WithCancel(context.Background()) //nolint:contextcheck // ends with Close
	return e, nil
}

// Close closes the connections Dial made and ends what runs in this process
// for them. Instances go on.
func (e *Engine) Close() error {
	e.stop()
	e.wg.Wait()
	return nil
}

// Purge removes what is shared by all instances: the empty parent cgroups, images
// of layers, and machines that were booted ahead.
func (e *Engine) Purge() error {
	return errors.Join(e.cg.removeParent(), os.RemoveAll(filepath.Join(e.cfg.StateDir, "boots")), os.RemoveAll(e.layersDir()))
}
