package doctor_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/doctor"
)

// sound is a machine with nothing to complain about, made of files.
func sound(t *testing.T) doctor.Config {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/sys/kernel/osrelease":        "6.1.0-test\n",
		"proc/filesystems":                 "nodev\tproc\n\text4\n",
		"proc/meminfo":                     "MemTotal: 16000000 kB\nMemAvailable:   8000000 kB\n",
		"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
		"proc/self/ns/net":                 "", "proc/self/ns/mnt": "", "proc/self/ns/pid": "", "proc/self/ns/ipc": "",
		"proc/self/ns/uts": "", "proc/self/ns/user": "",
		"lib/modules/6.1.0-test/kernel/fs/erofs/erofs.ko.xz":       "",
		"lib/modules/6.1.0-test/kernel/fs/overlayfs/overlay.ko.xz": "",
	} {
		write(t, filepath.Join(root, name), text, 0o644)
	}
	runsc := filepath.Join(root, "runsc")
	write(t, runsc, "#!/bin/sh\n", 0o755)
	return doctor.Config{
		DataDir: filepath.Join(root, "var/lib/skerry"), Programs: map[string]string{"runsc": runsc},
		Listen:   map[string]string{"SKERRY_HOST_LISTEN": "127.0.0.1:0"},
		Server:   func(context.Context) (time.Time, error) { return time.Now(), nil },
		Database: func(context.Context) (string, error) { return "PostgreSQL 15", nil },
		Start:    func(context.Context) (string, error) { return "started", nil },
		Machine: doctor.Machine{
			Root: root, EUID: func() int { return 0 },
			LookPath:     func(name string) (string, error) { return "/usr/bin/" + name, nil },
			Synchronized: func() (bool, error) { return true, nil },
			Statfs: func(_ string, st *unix.Statfs_t) error {
				*st = unix.Statfs_t{Bsize: 4096, Bavail: 25 << 20, Files: 1 << 20, Ffree: 1 << 20}
				return nil
			},
		},
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestO4_ASoundMachineHasNoFindings(t *testing.T) {
	r := doctor.Run(t.Context(), sound(t), func(f doctor.Finding) {
		if f.State != doctor.OK || f.Remedy != "" || f.Message == "" {
			t.Errorf("%+v", f)
		}
	})
	if !r.OK || len(r.Findings) < 12 {
		t.Errorf("%+v", r)
	}
}

// TestO4_EachPlantedFaultIsNamedWithItsRemedy breaks one thing at a time: that
// check says so and how to mend it, the others stay as they were, and no sandbox
// is started on a machine that lacks what it needs.
func TestO4_EachPlantedFaultIsNamedWithItsRemedy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	disk := func(change func(*unix.Statfs_t)) func(*testing.T, *doctor.Config) {
		return func(_ *testing.T, c *doctor.Config) {
			was := c.Machine.Statfs
			c.Machine.Statfs = func(path string, st *unix.Statfs_t) error {
				err := was(path, st)
				change(st)
				return err
			}
		}
	}
	file := func(name, text string) func(*testing.T, *doctor.Config) {
		return func(t *testing.T, c *doctor.Config) { write(t, filepath.Join(c.Machine.Root, name), text, 0o644) }
	}
	gone := func(name string) func(*testing.T, *doctor.Config) {
		return func(t *testing.T, c *doctor.Config) {
			if err := os.RemoveAll(filepath.Join(c.Machine.Root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	without := func(tool string) func(*testing.T, *doctor.Config) {
		return func(_ *testing.T, c *doctor.Config) {
			c.Machine.LookPath = func(name string) (string, error) {
				if name == tool {
					return "", os.ErrNotExist
				}
				return name, nil
			}
		}
	}
	for name, c := range map[string]struct {
		plant        func(*testing.T, *doctor.Config)
		check        string
		state        doctor.State
		says, remedy string
	}{
		"not root":         {func(_ *testing.T, c *doctor.Config) { c.Machine.EUID = func() int { return 1000 } }, "root", doctor.Fail, "root", "sudo"},
		"no erofs":         {gone("lib/modules/6.1.0-test/kernel/fs/erofs"), "kernel", doctor.Fail, "erofs", "kernel"},
		"no namespace":     {gone("proc/self/ns/user"), "kernel", doctor.Fail, "user namespaces", "kernel"},
		"no memory cgroup": {file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids"), "cgroups", doctor.Fail, "memory", "cgroup_enable=memory"},
		"no cgroups":       {gone("sys"), "cgroups", doctor.Fail, "no cgroups", "mount -t cgroup2"},
		"no nft":           {without("nft"), "tools", doctor.Fail, "nft", "apt-get install nftables"},
		"no mkfs.erofs":    {without("mkfs.erofs"), "tools", doctor.Warn, "mkfs.erofs", "apt-get install erofs-utils"},
		"a strange kvm":    {file("dev/kvm", "x"), "kvm", doctor.Warn, "/dev/kvm", "gVisor needs no KVM"},
		"little memory":    {file("proc/meminfo", "MemAvailable: 100000 kB"), "memory", doctor.Fail, "97 MB", "Free memory"},
		"not much memory":  {file("proc/meminfo", "MemAvailable: 1500000 kB"), "memory", doctor.Warn, "1464 MB", "few sandboxes"},
		"a full disk":      {disk(func(st *unix.Statfs_t) { st.Bavail = 1000 }), "disk", doctor.Fail, "3 MB free", "SKERRY_DATA"},
		"a disk to fill":   {disk(func(st *unix.Statfs_t) { st.Bavail = 1 << 20 }), "disk", doctor.Warn, "4096 MB free", "plan for more"},
		"no inodes":        {disk(func(st *unix.Statfs_t) { st.Ffree = 10 }), "disk", doctor.Fail, "10 inodes", "inodes"},
		"a read-only disk": {disk(func(st *unix.Statfs_t) { st.Flags = unix.ST_RDONLY }), "disk", doctor.Fail, "read-only", "writable"},
		"a loose clock": {func(_ *testing.T, c *doctor.Config) {
			c.Machine.Synchronized = func() (bool, error) { return false, nil }
		}, "clock", doctor.Warn, "clock", "timedatectl set-ntp true"},
		"a wrong clock": {func(_ *testing.T, c *doctor.Config) {
			c.Machine.Now = func() time.Time { return time.Now().Add(time.Hour) }
		}, "server", doctor.Fail, "clock is 1h0m0s off", "timedatectl"},
		"no runsc":          {func(_ *testing.T, c *doctor.Config) { c.Programs["runsc"] = "/nonexistent/runsc" }, "runsc", doctor.Fail, "/nonexistent/runsc", "SKERRY_RUNSC"},
		"a port taken":      {func(_ *testing.T, c *doctor.Config) { c.Listen["SKERRY_HOST_LISTEN"] = taken.Addr().String() }, "port", doctor.Fail, taken.Addr().String() + " is taken", "SKERRY_HOST_LISTEN"},
		"a strange address": {func(_ *testing.T, c *doctor.Config) { c.Listen["SKERRY_HOST_LISTEN"] = "192.0.2.1:1" }, "port", doctor.Fail, "192.0.2.1:1", "an address of this machine"},
		"no server": {func(_ *testing.T, c *doctor.Config) {
			c.Server = func(context.Context) (time.Time, error) { return time.Time{}, io.EOF }
		}, "server", doctor.Fail, "EOF", "install command"},
		"no database": {func(_ *testing.T, c *doctor.Config) {
			c.Database = func(context.Context) (string, error) { return "", io.EOF }
		}, "database", doctor.Fail, "EOF", "DATABASE_URL"},
		"nothing that runs": {func(_ *testing.T, c *doctor.Config) {
			c.Start = func(context.Context) (string, error) { return "", errors.New("runsc: no") }
		}, "sandbox", doctor.Fail, "runsc: no", "dmesg"},
		"something too slow": {func(_ *testing.T, c *doctor.Config) {
			c.StartWithin, c.Start = time.Millisecond, func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }
		}, "sandbox", doctor.Fail, "deadline", "dmesg"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sound(t)
			c.plant(t, &cfg)
			r := doctor.Run(t.Context(), cfg, nil)
			if r.OK != (c.state != doctor.Fail) {
				t.Errorf("the report says %v", r.OK)
			}
			for _, f := range r.Findings {
				switch {
				case f.Check == c.check:
					if f.State != c.state || !strings.Contains(f.Message, c.says) || !strings.Contains(f.Remedy, c.remedy) {
						t.Errorf("%+v", f)
					}
				case f.Check == "sandbox" && c.state == doctor.Fail:
					if f.State != doctor.Warn {
						t.Errorf("a sandbox was started all the same: %+v", f)
					}
				case f.State != doctor.OK:
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

// TestO4_APortIsKnownByItsHolder: on the machine itself, the program that has
// the port is named.
func TestO4_APortIsKnownByItsHolder(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	r := doctor.Run(t.Context(), doctor.Config{DataDir: t.TempDir(), Listen: map[string]string{"X": taken.Addr().String()}}, nil)
	for _, f := range r.Findings {
		if f.Check == "port" && (f.State != doctor.Fail || !strings.Contains(f.Message, strings.TrimSpace(string(comm)))) {
			t.Errorf("%+v", f)
		}
	}
}
