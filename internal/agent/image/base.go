package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
)

// baseSuite is the Debian release the default image is made of.
const baseSuite = "bookworm"

// basePackages are installed beside what Debian calls required and apt.
var basePackages = []string{"ca-certificates", "curl", "git", "less", "procps", "python3", "sudo"}

// baseUUID is the file system's id: fixed, for the digest must not depend on
// when or where the image was built.
const baseUUID = "736b6572-7279-4261-8365-000000000001"

const buildPrefix = ".build-"

// Built is a finished image file.
type Built struct {
	Path   string // <outDir>/<digest>.erofs, mode 0400
	Digest artifact.Digest
	Size   int64
}

// BuildBase builds the default image from Debian packages into outDir and tells
// log what happens, a line at a time. The same package versions give the same
// digest. It needs root, mmdebstrap and mkfs.erofs. A failure or the end of ctx
// leaves nothing behind; what a killed build left is removed by the next one.
func BuildBase(ctx context.Context, log func(line string), outDir string) (Built, error) {
	for _, tool := range []string{"mmdebstrap", "mkfs.erofs"} {
		if _, err := exec.LookPath(tool); err != nil {
			return Built{}, fmt.Errorf("building the base image needs %s, which is not installed: %w", tool, err)
		}
	}
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return Built{}, err
	}
	work, done, err := newWorkDir(outDir)
	if err != nil {
		return Built{}, err
	}
	defer done()

	started := time.Now()
	root := filepath.Join(work, "root")
	if err := bootstrap(ctx, log, root, work); err != nil {
		return Built{}, fmt.Errorf("installing Debian packages: %w", err)
	}
	log("shaping the tree: user, sudo, locale, nothing that differs between two builds")
	epoch, err := shapeTree(root, started)
	if err != nil {
		return Built{}, fmt.Errorf("shaping the tree: %w", err)
	}
	log("packing the tree into one read-only image")
	file := filepath.Join(work, "base.erofs")
	if err := packErofs(ctx, root, file, epoch); err != nil {
		return Built{}, err
	}
	built, err := keepImage(file, outDir)
	if err != nil {
		return Built{}, err
	}
	log(fmt.Sprintf("done in %s: %d MB, sha256 %s", time.Since(started).Round(time.Second), built.Size>>20, built.Digest))
	return built, nil
}

// WorkDir makes a directory below parent for what an image is made of. done
// removes it with what is left in it; what a process that was killed left there
// goes with the next one.
func WorkDir(parent string) (dir string, done func(), err error) {
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, err
	}
	return newWorkDir(parent)
}

// newWorkDir makes a directory that is locked while its build lives, and
// removes those whose build died.
func newWorkDir(outDir string) (dir string, done func(), err error) {
	stale, err := filepath.Glob(filepath.Join(outDir, buildPrefix+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, d := range stale {
		if f, err := lockDir(d); err == nil {
			err := os.RemoveAll(d)
			f.Close()
			if err != nil {
				return "", nil, err
			}
		}
	}
	dir, err = os.MkdirTemp(outDir, buildPrefix)
	if err != nil {
		return "", nil, err
	}
	f, err := lockDir(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() { _ = os.RemoveAll(dir); f.Close() }, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// bootstrap runs mmdebstrap in a mount namespace of its own, so that whatever
// it mounts below root goes when it goes, however it ends.
func bootstrap(ctx context.Context, log func(string), root, work string) error {
	sources, err := debianSources("/etc/apt", baseSuite)
	if err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--format=directory", "--verbose",
		"--include=" + strings.Join(basePackages, ","),
		`--aptopt=Apt::Install-Recommends "false"`,
		`--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		`--customize-hook=chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash user`,
	}
	proxies, err := aptProxies(ctx)
	if err != nil {
		return err
	}
	for _, p := range proxies {
		args = append(args, "--aptopt="+p)
	}
	args = append(args, baseSuite, root)
	if sources == "" {
		log("this machine has no apt source for Debian " + baseSuite + ": using the installer's default")
	} else {
		args = append(args, "-")
	}
	progress := &bootstrapLog{log: log}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	// Without SOURCE_DATE_EPOCH: with it Python's compiled files carry hashes,
	// and each import reads the source again. shapeTree levels the times.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SOURCE_DATE_EPOCH=") })
	cmd.Env = append(cmd.Env, "LC_ALL=C.UTF-8", "TMPDIR="+work, "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdin = strings.NewReader(sources)
	cmd.Stdout, cmd.Stderr = progress, progress
	return runTree(cmd, progress.tail)
}

// runTree runs cmd in its own process group and mount namespace; at the end of
// its context the group is asked to stop, then killed. detail explains a
// failure.
func runTree(cmd *exec.Cmd, detail func() string) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: unix.CLONE_NEWNS}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	err := cmd.Wait()
	// Stragglers of the group hold files below the work directory; an empty
	// group answers ESRCH.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, detail())
	}
	return nil
}

// bootstrapLog turns the chatter of mmdebstrap, apt and dpkg into lines for
// people. Installer scripts write what they like: lines are bounded.
type bootstrapLog struct {
	log       func(string)
	partial   []byte
	last      []string // the end of the chatter, for errors
	installed int
}

const (
	maxLogLine  = 4096
	maxLogTail  = 12
	logEachPkgs = 20
)

func (b *bootstrapLog) Write(p []byte) (int, error) {
	b.partial = append(b.partial, p...)
	for {
		i := bytes.IndexAny(b.partial, "\r\n")
		if i < 0 {
			break
		}
		b.line(strings.TrimSpace(string(b.partial[:i])))
		b.partial = b.partial[i+1:]
	}
	if len(b.partial) > maxLogLine {
		b.partial = nil
	}
	return len(p), nil
}

func (b *bootstrapLog) line(s string) {
	if s == "" {
		return
	}
	if b.last = append(b.last, s); len(b.last) > maxLogTail {
		b.last = b.last[1:]
	}
	switch {
	case strings.HasPrefix(s, "I: "):
		b.log(strings.TrimPrefix(s, "I: "))
	case strings.HasPrefix(s, "Need to get "), strings.HasPrefix(s, "Fetched "):
		b.log(s)
	case strings.HasPrefix(s, "Setting up "):
		if b.installed++; b.installed%logEachPkgs == 0 {
			b.log(fmt.Sprintf("%d packages set up", b.installed))
		}
	}
}

func (b *bootstrapLog) tail() string { return strings.Join(b.last, " | ") }

// packErofs writes the tree to file. Uncompressed: pages of the image are then
// shared by all sandboxes straight from the page cache.
func packErofs(ctx context.Context, root, file string, epoch time.Time) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", "-U", baseUUID, file, root)
	// Dates the file system and clamps younger files, whereas -T would level all
	// times and so make every compiled Python file look out of date.
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// keepImage names the finished file by its digest. The name appears only when
// the content is on the disk.
func keepImage(file, outDir string) (Built, error) {
	f, err := os.Open(file)
	if err != nil {
		return Built{}, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return Built{}, err
	}
	if err := errors.Join(f.Chmod(0o400), f.Sync()); err != nil {
		return Built{}, err
	}
	digest := artifact.Digest(hex.EncodeToString(h.Sum(nil)))
	path := filepath.Join(outDir, string(digest)+".erofs")
	if err := os.Rename(file, path); err != nil {
		return Built{}, err
	}
	return Built{Path: path, Digest: digest, Size: size}, syncDir(outDir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
