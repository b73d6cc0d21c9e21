// Package vminit is the first process of a virtual machine. It lives in the
// machine's initramfs, loads the kernel's modules, and waits for its host on a
// virtio port (package vmapi). Asked to start, it puts the image's layers and
// the disk together, and starts the workload in a PID namespace of its own: the
// image's first process is its PID 1, sees nothing of this one, and cannot end
// it. When the workload ends, it writes how to the end of the disk and turns
// the machine off.
//
// What the host reads from here is hostile to it: a workload with all rights in
// its kernel may have taken this process over.
package vminit
