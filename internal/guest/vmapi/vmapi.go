// Package vmapi are the words between a host and the first process of its
// virtual machine, which runs before and beside whatever the image holds: one
// JSON object a line, over a virtio port of this name. The host asks, the guest
// answers under the same number; each is asked one thing at a time.
package vmapi

// Port is the name of the virtio port.
const Port = "skerry"

// Serials of the disks: the root's layers, top first, and the one to write to.
const (
	RootSerial = "root" // and its number, from 0
	DiskSerial = "disk"
)

// MaxRequest and MaxResponse bound a line.
const (
	MaxRequest  = 256 << 10
	MaxResponse = 4 << 10
)

// EndBytes is what follows the file system on the disk to write to: room for
// the End of the workload, which has to be found by a host that was away.
const EndBytes = 4096

// Ready is printed to the console when the kernel and its modules are up. With
// Probe on the kernel's command line the machine then turns itself off.
const (
	Ready = "skerry: ready"
	Probe = "skerry.probe"
)

// Operations.
const (
	// OpHello asks for nothing but an answer.
	OpHello = "hello"
	// OpStart sets the machine up and starts the workload. Once only.
	OpStart = "start"
	// OpStill stops the workload's processes, so that what is kept of the machine
	// wakes up in peace. With Flush the disk is whole without the memory, too.
	OpStill = "still"
	// OpGo sets the clock, mixes entropy, takes the address and lets the workload
	// go on. On a machine that was not still it does no harm.
	OpGo = "go"
	// OpUsage tells how much of the disk is used.
	OpUsage = "usage"
)

// Request is what the host asks.
type Request struct {
	ID      uint64 `json:"id"`
	Op      string `json:"op"`
	Now     int64  `json:"now,omitempty"`     // wall clock, ns since 1970; in Start and Go
	Entropy []byte `json:"entropy,omitempty"` // fresh; in Start and Go
	Flush   bool   `json:"flush,omitempty"`
	// Copied is set in the first Go of a machine that was restored: what was
	// connected is so no more.
	Copied bool   `json:"copied,omitempty"`
	Net    *Net   `json:"net,omitempty"` // in Start, and in Go of a copy
	Start  *Start `json:"start,omitempty"`
}

// Net is the machine's place in its slot.
type Net struct {
	Addr       string `json:"addr"`
	PrefixLen  int    `json:"prefix_len"`
	Gateway    string `json:"gateway"`
	GatewayMAC []byte `json:"gateway_mac"`
}

// Start is what the workload is made from.
type Start struct {
	Roots        int      `json:"roots"`      // layers of the root tree
	DiskBytes    int64    `json:"disk_bytes"` // of the file system
	ShmBytes     int64    `json:"shm_bytes"`
	MaxProcesses int      `json:"max_processes"`
	Hostname     string   `json:"hostname"`
	Args         []string `json:"args"`
	Env          []string `json:"env"`
	Stdin        []byte   `json:"stdin"`
}

// Response answers the request of the same number.
type Response struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"`
	// Used are the bytes of the disk; of Usage.
	Used int64 `json:"used,omitempty"`
	// Release of the kernel; of Hello.
	Release string `json:"release,omitempty"`
}

// End is how the workload ended.
type End struct {
	Skerry      int  `json:"skerry"` // 1
	Code        int  `json:"code"`   // exit code, 128+n after signal n
	OutOfMemory bool `json:"out_of_memory,omitempty"`
}
