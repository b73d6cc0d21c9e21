package image

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/artifact"
)

// Programs in the tree are run, so noexec is not among these; set-user-id bits
// and devices of a tree mean nothing to the host.
const mountFlags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID

// mount mounts what is missing of an image: its tree, and over it the layer
// with a build of the guest daemon.
func (c *Cache) mount(d, daemon artifact.Digest) error {
	lower, root := c.lower(d), c.root(d, daemon)
	have, err := mountsBelow(c.mountDir(d))
	if err != nil {
		return err
	}
	for _, dir := range []string{lower, root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if !slices.Contains(have, lower) {
		if err := mountErofs(c.imagePath(d), lower); err != nil {
			return err
		}
	}
	if slices.Contains(have, root) {
		return nil
	}
	options := "lowerdir=" + c.guestLayer(daemon) + ":" + lower
	if err := unix.Mount("skerry", root, "overlay", mountFlags, options); err != nil {
		return fmt.Errorf("overlay on %s: %w", root, err)
	}
	return nil
}

// mountErofs mounts an image file directly where the kernel can do that, and by
// a loop device that goes with the mount where it cannot.
func mountErofs(file, dir string) error {
	err := unix.Mount(file, dir, "erofs", mountFlags, "")
	if !errors.Is(err, unix.ENOTBLK) {
		if err != nil {
			return fmt.Errorf("erofs on %s: %w", dir, err)
		}
		return nil
	}
	return mountByLoop(file, dir)
}

// loopAttempts bounds the race for a free loop device with other programs.
const loopAttempts = 16

func mountByLoop(file, dir string) error {
	image, err := os.Open(file)
	if err != nil {
		return err
	}
	defer image.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer control.Close()
	for range loopAttempts {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("finding a loop device: %w", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		loop, err := os.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd())}
		// Autoclear frees the device with its last user, a crash of ours included.
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			loop.Close()
			continue
		}
		if err == nil {
			err = unix.Mount(name, dir, "erofs", mountFlags, "")
		}
		loop.Close()
		if err != nil {
			return fmt.Errorf("erofs on %s by %s: %w", dir, name, err)
		}
		return nil
	}
	return fmt.Errorf("no free loop device for %s", file)
}

// unmount takes down everything of an image, last mounted first. EBUSY when
// somebody still has a file open in it.
func (c *Cache) unmount(d artifact.Digest) error {
	have, err := mountsBelow(c.mountDir(d))
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(have) {
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
	// Only empty directories are left; a mount that came back is not walked into.
	entries, err := os.ReadDir(c.mountDir(d))
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(c.mountDir(d), e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(c.mountDir(d))
}

// mountsBelow lists the mount points at or below dir in the order they were
// mounted.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	var found []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay options are long
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if point == real || strings.HasPrefix(point, real+"/") {
			found = append(found, dir+strings.TrimPrefix(point, real))
		}
	}
	return found, lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
