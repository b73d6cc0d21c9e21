// Program hand is the only program of a test's image: it changes files, and says
// what it sees.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	for _, line := range os.Args[1:] {
		if err := do(strings.Fields(line)); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", line, err)
			os.Exit(1)
		}
	}
}

func number(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return int(n)
}

func do(w []string) error {
	switch w[0] {
	case "whoami":
		dir, err := os.Getwd()
		fmt.Println(os.Getuid(), os.Getgid(), dir, os.Getenv("A"))
		return err
	case "write":
		return os.WriteFile(w[1], []byte(w[2]), 0o644)
	case "mkdir":
		return os.Mkdir(w[1], 0o755)
	case "rm":
		return os.RemoveAll(w[1])
	case "ln":
		return os.Link(w[1], w[2])
	case "symlink":
		return os.Symlink(w[1], w[2])
	case "mv":
		return os.Rename(w[1], w[2])
	case "chown":
		return os.Lchown(w[3], number(w[1]), number(w[2]))
	case "chmod":
		return syscall.Chmod(w[2], uint32(number(w[1])))
	case "mkfifo":
		return syscall.Mkfifo(w[1], 0o640)
	case "xattr":
		value, err := strconv.Unquote(w[3])
		if err != nil {
			return err
		}
		return syscall.Setxattr(w[2], w[1], []byte(value), 0)
	case "truncate":
		if err := os.WriteFile(w[2], nil, 0o644); err != nil {
			return err
		}
		return os.Truncate(w[2], int64(number(w[1])))
	case "fill": // some bytes over and over
		f, err := os.Create(w[2])
		if err != nil {
			return err
		}
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(i * 7)
		}
		for range number(w[1]) {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		return f.Close()
	case "churn": // until it is killed
		for i := 0; ; i++ {
			name := fmt.Sprintf("%s/%d", w[1], i%100)
			if err := os.WriteFile(name, make([]byte, i%10_000), 0o644); err != nil {
				return err
			}
			if i%3 == 0 {
				_ = os.Remove(name)
			}
		}
	case "list":
		return list()
	}
	return fmt.Errorf("unknown word %q", w[0])
}

// list says all there is of the root, but for what is mounted there.
func list() error {
	return filepath.WalkDir("/", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch p {
		case "/":
			return nil
		case "/proc", "/sys", "/dev", "/.skerry":
			return fs.SkipDir
		case "/run/e2b":
			return fs.SkipDir
		case "/etc", "/run", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/tmp/.keep":
			return nil // ours, and where ours are
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %d:%d %d %s", info.Mode(), st.Uid, st.Gid, info.ModTime().Unix(), p)
		for _, name := range []string{"user.note", "security.capability"} {
			value := make([]byte, 100)
			if n, err := syscall.Getxattr(p, name, value); err == nil && info.Mode()&fs.ModeSymlink == 0 {
				line += fmt.Sprintf(" %s=%q", name, value[:n])
			}
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d", st.Rdev)
		case info.Mode().IsRegular():
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.Copy(h, f)
			_ = f.Close()
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links=%d %d %x", st.Nlink, info.Size(), h.Sum(nil)[:8])
		}
		fmt.Println(line)
		return nil
	})
}
