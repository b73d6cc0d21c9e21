package microvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine/microvm/kit"
)

// Look is one thing that was looked at on a machine. Works false with no Remedy
// is what it is; with one, it can be mended.
type Look struct {
	Check   string // "qemu", "kernel", "kvm"
	Works   bool
	Message string
	Remedy  string
}

// Examine says what of microVMs works on this machine, and why not. Only booting
// a guest tells whether KVM does: that is done when all else is there, and takes
// some seconds at most.
func Examine(ctx context.Context, program, kitDir string) []Look {
	found := []Look{examineProgram(ctx, program)}
	k, err := kit.Current(kitDir)
	switch {
	case errors.Is(err, kit.ErrMissing):
		found = append(found, Look{Check: "kernel", Message: "no kernel for microVMs is installed", Remedy: "Run `skerry engine install microvm`."})
	case err != nil:
		found = append(found, Look{Check: "kernel", Message: err.Error(), Remedy: "Run `skerry engine install microvm` again."})
	default:
		found = append(found, Look{Check: "kernel", Works: true, Message: "Linux " + k.Release})
	}
	kvm := Look{Check: "kvm"}
	switch err := kvmThere(); {
	case err != nil:
		kvm.Message = err.Error()
	case !found[0].Works || !found[1].Works:
		kvm.Message, kvm.Remedy = "/dev/kvm answers; whether a guest runs on it is not known", "Mend what is above, then look again."
	default:
		took, err := Boot(ctx, program, KVM, k)
		if kvm.Works = err == nil; kvm.Works {
			kvm.Message = fmt.Sprintf("a guest booted in %.1f s", took.Seconds())
		} else {
			kvm.Message, kvm.Remedy = err.Error(), "Without KVM sandboxes use gVisor; microVMs in software are many times slower and only for who asks."
		}
	}
	return append(found, kvm)
}

func examineProgram(ctx context.Context, program string) Look {
	l := Look{Check: "qemu", Remedy: "Run `apt-get install --no-install-recommends qemu-system-x86`."}
	if runtime.GOARCH != "amd64" {
		return Look{Check: "qemu", Message: "microVMs need an x86-64 machine; this is " + runtime.GOARCH}
	}
	if unix.Access(program, unix.X_OK) != nil {
		l.Message = program + " is not there"
		return l
	}
	version, err := Version(ctx, program)
	if err != nil {
		l.Message = err.Error()
		return l
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		l.Message, l.Remedy = "QEMU "+version+", but no mkfs.ext4", "Run `apt-get install e2fsprogs`."
		return l
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		l.Message, l.Remedy = "QEMU "+version+", but no /dev/net/tun", "Run `modprobe tun`."
		return l
	}
	return Look{Check: "qemu", Works: true, Message: "QEMU " + version}
}
