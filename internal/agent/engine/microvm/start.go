package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
	"skerry.dev/skerry/internal/agent/shim"
	"skerry.dev/skerry/internal/guest/vmapi"
)

// startWithin bounds a start, with all of memory and disk read from a slow disk.
func startWithin(r *record, from *source) time.Duration {
	if from == nil {
		return bootWithin
	}
	return bootWithin + writeWithin(r)
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, h engine.Handle) (engine.Handle, error) {
	return e.launch(ctx, h, nil)
}

// launch starts the machine, afresh or from a checkpoint.
func (e *Engine) launch(ctx context.Context, h engine.Handle, from *source) (engine.Handle, error) {
	r, err := decode(h)
	if err != nil {
		return nil, err
	}
	ctx, done, err := e.begin(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	defer done()
	if r, err = e.load(r.ID); err != nil {
		return nil, err
	}
	if r.started() && r.Ready {
		if !e.alive(r) {
			return nil, fmt.Errorf("%w: %s", engine.ErrExited, r.ID)
		}
		return e.handle(r)
	}
	// What an interrupted start left behind has not begun, for all anybody knows.
	if r.Launched {
		if err := e.unlaunch(ctx, r); err != nil {
			return nil, err
		}
	}
	limit, cancel := context.WithTimeout(ctx, startWithin(r, from))
	defer cancel()
	err = e.run(limit, r, from, true)
	if errors.Is(err, errBooted) && limit.Err() == nil {
		e.cfg.Logger.Warn("a machine that was booted ahead does not do; this one is booted", "instance_id", r.ID, "error", err)
		if err = e.unlaunch(limit, r); err == nil {
			err = e.run(limit, r, from, false)
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err() // Destroy is on its way, or owed: it finds what runs by the id
		}
		err = fmt.Errorf("%w%s", err, consoleTail(r))
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		return nil, errors.Join(err, e.unlaunch(cleanup, r))
	}
	_ = os.Remove(r.path(startFile))
	return e.handle(r)
}

// unlaunch takes an instance back to what it was after Prepare.
func (e *Engine) unlaunch(ctx context.Context, r *record) error {
	if err := e.sweep(ctx, r.ID, r); err != nil {
		return err
	}
	r.Launched, r.Process = false, shim.Process{}
	return e.save(r)
}

// run brings the machine up to where its workload runs. With ahead it may begin
// from a machine that was booted before.
func (e *Engine) run(ctx context.Context, r *record, from *source, ahead bool) (err error) {
	text, err := os.ReadFile(r.path(startFile))
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	var start vmapi.Start
	if err := json.Unmarshal(text, &start); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	k, err := kit.Current(e.cfg.KitDir)
	if err != nil {
		return err
	}
	own := r.Machine
	defer func() {
		if err != nil {
			r.Machine = own
		}
	}()
	q := vmapi.Request{Op: vmapi.OpStart, Start: &start}
	var memory *source // what the machine begins with; nil boots
	switch {
	case from != nil && from.Memory:
		memory, q = from, vmapi.Request{Op: vmapi.OpGo, Copied: true}
		r.Machine = from.Machine
	case ahead:
		if memory = e.bootedAhead(ctx, k, r); memory != nil {
			defer func() {
				if err != nil && ctx.Err() == nil {
					err = fmt.Errorf("%w: %w", errBooted, err)
					e.forgetBoot(memory)
				}
			}()
		}
	}
	r.Launched = true
	if err := e.save(r); err != nil {
		return err
	}
	if err := e.makeDisk(ctx, r, from); err != nil {
		return err
	}
	if err := e.spawn(ctx, r, k, memory); err != nil {
		return err
	}
	if err := e.save(r); err != nil {
		return err
	}
	if memory != nil {
		err = e.resume(ctx, r, memory)
	} else if err = e.booted(ctx, r); err == nil {
		err = e.keepBoot(ctx, k, r)
	}
	if err != nil {
		return err
	}
	q.Net = &vmapi.Net{Addr: r.Network.GuestAddr, PrefixLen: r.Network.PrefixLen, Gateway: r.Network.Gateway, GatewayMAC: tapMAC}
	if _, err := e.ask(ctx, r, fresh(q)); err != nil {
		return err
	}
	r.Ready = true
	return e.save(r)
}

// booted waits until the first process listens, or the machine has ended.
func (e *Engine) booted(ctx context.Context, r *record) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := e.shim.Wait(ctx, r.Process); err == nil {
			cancel(fmt.Errorf("microvm: the machine ended while it booted"))
		}
	}()
	_, err := e.ask(ctx, r, vmapi.Request{Op: vmapi.OpHello})
	if err != nil && context.Cause(ctx) != ctx.Err() {
		err = context.Cause(ctx)
	}
	cancel(nil)
	<-gone
	return err
}

// spawn starts the machine's program, limits in force.
func (e *Engine) spawn(ctx context.Context, r *record, k kit.Kit, memory *source) error {
	id := string(r.ID)
	if err := e.cg.make(id); err != nil {
		return err
	}
	if err := e.limit(r, r.Resources); err != nil {
		return err
	}
	uid, err := strconv.ParseUint(id[:6], 16, 32)
	if err != nil {
		return err
	}
	j := job{
		ID: r.ID, Program: e.cfg.QEMU, Accel: e.cfg.Accel, WorkDir: r.WorkDir, Network: r.Network, Roots: r.Roots, Machine: r.Machine,
		Groups: e.cg.procsOf(id), UID: firstUID + uint32(uid),
	}
	if memory != nil {
		j.Memory = filepath.Join(memory.dir, memoryFile)
	} else {
		j.Kernel, j.Initrd = k.Kernel(), k.Initrd()
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	res, err := e.shim.Spawn(ctx, shim.Spawn{
		Key: id, Argv: e.cfg.Launcher, Env: e.cfg.LauncherEnv, Stdin: text, PIDFile: r.path(pidFile), Timeout: bootWithin + writeWithin(r),
		Console: &shim.Console{FIFO: r.path(consoleFIFO), Log: r.path(consoleLog)},
	})
	if err != nil {
		return fmt.Errorf("microvm: launch: %w", err)
	}
	if res.Code != 0 {
		return fmt.Errorf("microvm: the launcher ended with status %d", res.Code)
	}
	r.Process = res.Process
	return nil
}

// firstUID begins the users machines run as, one for each but for chance: far
// from those of people.
const firstUID = 0x70000000

// limit sets the machine's share of the host.
func (e *Engine) limit(r *record, res engine.Resources) error {
	return e.cg.limit(string(r.ID), res.CPUMillis, max(r.Machine.MemoryBytes, res.MemoryBytes)+e.cfg.HeadroomBytes, int64(256+8*r.Machine.CPUs))
}

// makeDisk makes the disk anew, empty or from a checkpoint.
func (e *Engine) makeDisk(ctx context.Context, r *record, from *source) error {
	path := r.path(diskFile)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	defer f.Close()
	size := fsBytes(r.Resources)
	if err := f.Truncate(size + vmapi.EndBytes); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	if from != nil {
		err = from.unpackDisk(f, size)
	} else {
		cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m0", "-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
			path+".new", strconv.FormatInt(size>>10, 10)+"k")
		var out []byte
		if out, err = cmd.CombinedOutput(); err != nil {
			err = fmt.Errorf("microvm: mkfs.ext4: %w: %.300s", err, out)
		}
	}
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	var st unix.Stat_t
	if r.EmptyBytes = 0; from == nil && unix.Fstat(int(f.Fd()), &st) == nil {
		r.EmptyBytes = st.Blocks * 512
	}
	return nil
}

// consoleTail is what a machine that failed said last.
func consoleTail(r *record) string {
	b, err := os.ReadFile(r.path(consoleLog))
	if err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf(" (its console: %q)", b[max(0, len(b)-500):])
}
