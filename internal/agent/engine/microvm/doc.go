// Package microvm is the engine that isolates with hardware, or with software
// that pretends to be it: a QEMU machine per instance, with a stock kernel, our
// own first process (guest/vminit) and the template's layers.
//
// # Processes
//
//	skerry shim ── spawns ─▶ launcher (Launch; root; ends at once)
//	     └ below it, from then on: qemu, a user of its own for each machine, no
//	       capabilities, seccomp, empty namespaces of network, mounts, pids, IPC
//	       and host name, the cgroup /skerry-vm-<tag>/<id>
//	           └ inside: vminit (pid 1 of the kernel) ─▶ the workload (pid 1 of a
//	             namespace; what the image and the agent know as PID 1)
//
// The launcher opens everything the machine uses with the rights it has, enters
// cgroup and slot, and hands descriptors on: the machine's program may open no
// file of ours. The agent may come and go; the shim knows how a machine ended.
//
// # Files
//
//	KitDir/current           kernel and initramfs, see package kit
//	StateDir/instances/<id>  the record, the newer one of it and the handle
//	StateDir/layers          images of layers that are directories: the daemon's
//	BootsDir                 see below
//	WorkDir/start            arguments, environment and input of PID 1; removed when
//	                         it has them
//	WorkDir/disk             ext4 of the instance's size, sparse, then one block in
//	                         which vminit leaves how the workload ended
//	WorkDir/qmp, guest       sockets: QEMU's monitor, and vminit's port
//	WorkDir/console, console.log, pid
//
// Memory is a memfd that QEMU alone holds: nothing of it stays behind. Nothing here
// is synced, since no machine outlives its host; a checkpoint's files are synced
// by the caller.
//
// # The guest's root and network
//
// The root is an overlay of the template's EROFS files, read-only disks, with the
// disk on top. The network slot is left as it was made but for one route: what
// arrives for the slot's address is forwarded to a tap in the same namespace. The
// guest has the slot's address; the tap's hardware address, and the guest's, are
// the same in all slots, since a copy remembers them.
//
// # A checkpoint
//
// vminit stops the workload (cgroup freezer), and for a disk alone the file system;
// QEMU stops the machine; then three files are written: devices (QEMU's), memory
// and disk (extents of what is not zero). A copy gets memory and disk back, loads
// the devices, and runs; vminit sets clock, randomness and address, ends the
// source's connections, and only then lets the workload go on. The same happens,
// but for address and connections, whenever a machine goes on.
//
// A checkpoint fits the same build of QEMU, the same machine type and layout
// (Version), the same accelerator and the same layers; one of the disk alone fits
// any. Memory and processors of a
// copy are the source's, whatever it was given; its share of the host is its own.
//
// # Begun ahead
//
// A machine that has booted and waits for its host is the same for all workloads
// (see boots.go): the first of a size is kept below BootsDir, for as long as the
// host is up, and the others begin from it instead of booting.
//
// # Tests
//
// The tests run in software (TCG), as root, where QEMU is installed. On a host with
// KVM: SKERRY_TEST_ACCEL=kvm go test ./internal/agent/engine/microvm/... , at full
// counts with SKERRY_TEST_LONG=1.
//
// # Crashes, and who mends what they leave
//
//	before the record           nothing exists
//	Launched and not Ready      a machine nobody was told of: Start, Restore and
//	                            Recover end it, and the instance is prepared again
//	Ready                       it runs, found by pid and start time
//	Saving                      a checkpoint was being written of one that goes on:
//	                            Recover lets it go on
//	Still and not Saving        frozen, or its checkpoint not yet safe: Thaw or Stop
//	during Destroy              the record is removed last, and leads to the rest
//
// A cut-off request to vminit ends at the next line; answers carry their request's
// number.
package microvm
