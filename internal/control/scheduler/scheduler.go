// Package scheduler decides on which host a sandbox starts. It is pure: a
// request and what is known of the hosts go in, a decision with the reason for
// each refused host comes out. Whoever calls it holds the hosts' rows locked,
// so that two decisions cannot be made from the same room.
package scheduler

import (
	"slices"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// EngineAuto lets the scheduler choose what isolates.
const EngineAuto = "auto"

// Request is what a sandbox needs.
type Request struct {
	// CPUMillis are thousandths of a CPU.
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	// Engine is a name or EngineAuto.
	Engine string
	// Arch is what the image is made for; empty for any.
	Arch string
	// Labels are what a host must carry, each with exactly this value.
	Labels map[string]string
	// Image is what it starts from, preferably where that is already.
	Image string
	// Hosts are the only ones that come into question; nil for any. Avoid are
	// those that do not.
	Hosts []id.Host
	Avoid []id.Host
	// Holders have what it starts from, and come first; of them Home before all.
	Holders []id.Host
	Home    id.Host
	// EngineVersion and CPUFeatures are what a saved state can be started under:
	// exactly this version, at least these features. Empty demands nothing.
	EngineVersion string
	CPUFeatures   []string
	// EngineArches are the machines that can fetch that version of the engine.
	EngineArches []string
	// Count is how many of it are placed on one host together; 0 is one.
	Count int64
	// Template, Internet and State, what it starts from, are what an instance must
	// have in common with it that is kept ready.
	Template id.Template
	Internet bool
	State    id.Snapshot
}

// all is how many times what one needs the host must have.
func (r Request) all() int64 { return max(r.Count, 1) }

// Engine is what a host offers for isolation.
type Engine struct {
	Name    string
	Version string
	Healthy bool
	// Reasons say why it is not healthy.
	Reasons []string
	// CPUFeatures are those of the machine that saved memory may depend on; empty
	// where the host does not tell.
	CPUFeatures []string
	// Digest is of the program, hex; Builds are others of it that the host keeps.
	Digest string
	Builds []EngineBuild
}

// EngineBuild is one build of an engine's program.
type EngineBuild struct {
	Version string
	Digest  string // SHA-256 of the program, hex
}

// Runs reports whether what was saved under a version can be started; none is
// any.
func (e Engine) Runs(version string) bool {
	return version == "" || version == e.Version || slices.ContainsFunc(e.Builds, func(b EngineBuild) bool { return b.Version == version })
}

// HostView is what is known of one candidate: its capacity and what the rows
// already reserve of it.
type HostView struct {
	ID      id.Host
	Name    string
	Engines []Engine
	Arch    string
	Labels  map[string]string
	// Images are those that sandboxes were started from here lately.
	Images []string

	CPUCount    int64
	MemoryBytes int64
	DiskBytes   int64

	ReservedCPUMillis int64
	ReservedMemoryMB  int64
	ReservedDiskMB    int64

	// Warm is what is kept ready here, and WarmCPUMillis and WarmMemoryMB what is
	// promised to that. It makes a host fuller than others, and never full: what
	// nobody uses gives way.
	Warm                        []Warm
	WarmCPUMillis, WarmMemoryMB int64

	// LastPlacedAt is when the last sandbox was put here; zero for never.
	LastPlacedAt time.Time
}

// Refusal says why a host was not taken.
type Refusal struct {
	HostID id.Host `json:"host_id"`
	Host   string  `json:"host"`
	// Reason is a stable word: not_there (what it starts from), set_aside (what it
	// holds of the sandbox), arch, labels, no_engine, engine_version, cpu_features,
	// cpu, memory, disk.
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Decision is where the sandbox goes.
type Decision struct {
	HostID        id.Host
	Engine        string
	EngineVersion string
	// Placed is false when no host fits.
	Placed bool
	// Refusals has one for each host that does not fit.
	Refusals []Refusal
}

// Overcommit is how many times a host's capacity may be promised. Disk never is.
type Overcommit struct {
	CPU    float64
	Memory float64
}

// DefaultOvercommit suits sandboxes that mostly wait.
func DefaultOvercommit() Overcommit { return Overcommit{CPU: 32, Memory: 4} }

// Scheduler picks a host. It must not keep state between calls: several servers
// decide at once, each from the same rows.
type Scheduler interface {
	Pick(req Request, hosts []HostView) Decision
}

// missing are the features wanted that a host does not have. One that has the
// state and does not tell its features is taken to have them: it made the state.
func missing(want, has []string, holder bool) []string {
	if len(has) == 0 && holder {
		return nil
	}
	var out []string
	for _, f := range want {
		if !slices.Contains(has, f) {
			out = append(out, f)
		}
	}
	return out
}

// choose finds the engine wanted. Auto takes gvisor where it is healthy, else
// the first healthy one the host lists; a microvm is never chosen unasked.
func choose(want string, offered []Engine) (Engine, string) {
	if want == "" || want == EngineAuto {
		var first *Engine
		for i, e := range offered {
			if !e.Healthy || e.Name == "microvm" {
				continue
			}
			if e.Name == "gvisor" {
				return e, ""
			}
			if first == nil {
				first = &offered[i]
			}
		}
		if first != nil {
			return *first, ""
		}
		return Engine{}, "no healthy engine" + reasons(offered)
	}
	for _, e := range offered {
		if e.Name != want {
			continue
		}
		if !e.Healthy {
			return Engine{}, "engine " + want + " is not healthy" + reasons([]Engine{e})
		}
		return e, ""
	}
	return Engine{}, "does not offer engine " + want
}

func reasons(engines []Engine) string {
	for _, e := range engines {
		if len(e.Reasons) > 0 {
			return ": " + e.Reasons[0]
		}
	}
	return ""
}
