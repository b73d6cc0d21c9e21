// Package kit gets a host what microVMs boot from: a stock kernel, and an
// initramfs with the modules it needs and our first process. Installed is what
// a directory's "current" leads to; a kit is complete before it does, is not
// written to again, and stays while machines may need it.
package kit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kit is one kernel and its initramfs.
type Kit struct {
	Release string `json:"release"` // of the kernel
	Digest  string `json:"digest"`  // SHA-256 over both files, hex
	Dir     string `json:"-"`
}

// The files of a kit.
const (
	kernelName  = "vmlinuz"
	initrdName  = "initramfs.cpio"
	aboutName   = "kit.json"
	currentName = "current"
)

// Package is Debian's name for the newest stock kernel for virtual machines.
const Package = "linux-image-cloud-amd64"

// Kernel is the path of the kernel.
func (k Kit) Kernel() string { return filepath.Join(k.Dir, kernelName) }

// Initrd is the path of the initramfs.
func (k Kit) Initrd() string { return filepath.Join(k.Dir, initrdName) }

// ErrMissing is an error of Current: nothing is installed.
var ErrMissing = errors.New("microvm: no kernel is installed: run `skerry engine install microvm`")

// Source says what a kit is made from.
type Source struct {
	// Init is our first process, a static program.
	Init string
	// Deb is a kernel package; empty fetches Package by apt.
	Deb string
	// Kernel and Modules are used in place of a package: an image QEMU boots, and
	// the directory of its modules, empty where all is built in.
	Kernel, Modules string
}

// Current is the kit that dir's machines boot from.
func Current(dir string) (Kit, error) {
	at, err := filepath.EvalSymlinks(filepath.Join(dir, currentName))
	if errors.Is(err, os.ErrNotExist) {
		return Kit{}, ErrMissing
	}
	if err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	return read(at)
}

func read(dir string) (Kit, error) {
	b, err := os.ReadFile(filepath.Join(dir, aboutName))
	if err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	k := Kit{Dir: dir}
	if err := json.Unmarshal(b, &k); err != nil || k.Release == "" || k.Digest == "" {
		return Kit{}, fmt.Errorf("microvm: %s is not what was installed: run `skerry engine install microvm`", filepath.Join(dir, aboutName))
	}
	return k, nil
}

// Install makes a kit below dir and then the current one. Repeated it finds the
// same kit, or repairs it; whatever it is interrupted at, what was current is so
// still.
func Install(ctx context.Context, dir string, from Source) (Kit, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	// Another that was interrupted has left its own.
	stale, _ := filepath.Glob(filepath.Join(dir, ".new-*"))
	for _, path := range stale {
		if err := os.RemoveAll(path); err != nil {
			return Kit{}, fmt.Errorf("microvm: %w", err)
		}
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	defer os.RemoveAll(tmp)
	k, err := assemble(ctx, tmp, from)
	if err != nil {
		return Kit{}, err
	}
	k.Dir = filepath.Join(dir, k.Digest[:16])
	if err := os.RemoveAll(k.Dir + ".old"); err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	if _, err := read(k.Dir); err != nil || !same(tmp, k.Dir) {
		if err := os.Rename(k.Dir, k.Dir+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return Kit{}, fmt.Errorf("microvm: %w", err)
		}
		if err := os.Rename(filepath.Join(tmp, "kit"), k.Dir); err != nil {
			return Kit{}, fmt.Errorf("microvm: %w", err)
		}
		_ = os.RemoveAll(k.Dir + ".old")
	}
	link := filepath.Join(tmp, currentName)
	if err := errors.Join(os.Symlink(filepath.Base(k.Dir), link), os.Rename(link, filepath.Join(dir, currentName)), lock.Sync()); err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	return k, nil
}

// same tells whether what is installed has the bytes it was installed with.
func same(tmp, dir string) bool {
	for _, name := range []string{kernelName, initrdName} {
		a, errA := os.ReadFile(filepath.Join(tmp, "kit", name))
		b, errB := os.ReadFile(filepath.Join(dir, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			return false
		}
	}
	return true
}

// assemble makes the kit in tmp/kit.
func assemble(ctx context.Context, tmp string, from Source) (Kit, error) {
	kernel, modules := from.Kernel, from.Modules
	if kernel == "" {
		var err error
		if kernel, modules, err = unpack(ctx, tmp, from.Deb); err != nil {
			return Kit{}, err
		}
	}
	out := filepath.Join(tmp, "kit")
	if err := os.Mkdir(out, 0o755); err != nil {
		return Kit{}, fmt.Errorf("microvm: %w", err)
	}
	image, err := os.ReadFile(kernel)
	if err != nil {
		return Kit{}, fmt.Errorf("microvm: kernel: %w", err)
	}
	var initrd bytes.Buffer
	if err := Initramfs(&initrd, from.Init, modules); err != nil {
		return Kit{}, err
	}
	sum := sha256.New()
	sum.Write(image)
	sum.Write(initrd.Bytes())
	k := Kit{Release: release(kernel, modules), Digest: hex.EncodeToString(sum.Sum(nil))}
	about, err := json.Marshal(k)
	if err != nil {
		return Kit{}, err
	}
	for name, b := range map[string][]byte{kernelName: image, initrdName: initrd.Bytes(), aboutName: about} {
		if err := writeSynced(filepath.Join(out, name), b); err != nil {
			return Kit{}, err
		}
	}
	return k, nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	return nil
}

// release is the kernel's own name: of its modules, or of its file.
func release(kernel, modules string) string {
	if modules != "" {
		return filepath.Base(modules)
	}
	return strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
}

// Initramfs writes the archive: init is the first process, modules the
// directory of the kernel's modules or empty.
func Initramfs(w io.Writer, init, modules string) error {
	program, err := os.ReadFile(init)
	if err != nil {
		return fmt.Errorf("microvm: first process: %w", err)
	}
	a := &archive{w: w, inode: 1}
	for _, dir := range []string{"dev", "modules", "root"} {
		a.dir(dir)
	}
	a.device("dev/console", 5, 1)
	a.file("init", program)
	if modules != "" {
		list, err := order(modules, append(slices.Clone(wanted), late...))
		if err != nil {
			return err
		}
		early, err := order(modules, wanted)
		if err != nil {
			return err
		}
		lists := [2]strings.Builder{}
		for i, m := range list {
			b, err := os.ReadFile(m.path)
			if err != nil {
				return fmt.Errorf("microvm: %w", err)
			}
			a.file("modules/"+m.name+".ko", b)
			n := 0
			if i >= len(early) {
				n = 1
			}
			lists[n].WriteString(m.name + ".ko\n")
		}
		a.file("modules/order", []byte(lists[0].String()))
		a.file("modules/late", []byte(lists[1].String()))
	}
	if err := a.close(); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	return nil
}

// unpack fetches the kernel's package unless it is there, and finds kernel and
// modules in it. Nothing of it is installed: no hooks, no boot loader.
func unpack(ctx context.Context, tmp, deb string) (kernel, modules string, err error) {
	if deb == "" {
		if deb, err = fetch(ctx, tmp); err != nil {
			return "", "", err
		}
	}
	tree := filepath.Join(tmp, "tree")
	if err := run(ctx, tmp, "dpkg-deb", "-x", deb, tree); err != nil {
		return "", "", err
	}
	kernels, _ := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	dirs, _ := filepath.Glob(filepath.Join(tree, "lib", "modules", "*"))
	if len(dirs) == 0 {
		dirs, _ = filepath.Glob(filepath.Join(tree, "usr", "lib", "modules", "*"))
	}
	if len(kernels) != 1 || len(dirs) != 1 {
		return "", "", fmt.Errorf("microvm: %s holds %d kernels and %d trees of modules, not one each", deb, len(kernels), len(dirs))
	}
	return kernels[0], dirs[0], nil
}

// fetch downloads the package that Package stands for.
func fetch(ctx context.Context, tmp string) (string, error) {
	out, err := output(ctx, tmp, "apt-cache", "depends", "--important", Package)
	if err != nil {
		return "", err
	}
	name := ""
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			name = "linux-image-" + rest
		}
	}
	if name == "" {
		return "", fmt.Errorf("microvm: apt knows no package %s: run `apt-get update`, or give a kernel of your own", Package)
	}
	// As root apt would fetch as another user, who may not write here.
	if err := run(ctx, tmp, "apt-get", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return "", err
	}
	found, _ := filepath.Glob(filepath.Join(tmp, name+"_*.deb"))
	if len(found) != 1 {
		return "", fmt.Errorf("microvm: apt-get download %s left %d packages", name, len(found))
	}
	return found[0], nil
}

func run(ctx context.Context, dir, name string, args ...string) error {
	_, err := output(ctx, dir, name, args...)
	return err
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("microvm: %s: %w: %.500s", name, err, strings.TrimSpace(bad.String()))
	}
	return out.String(), nil
}
