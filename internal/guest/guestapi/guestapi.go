// Package guestapi holds the words the guest daemon shares with those who talk
// to it: the documents it is given, the headers it reads and the JSON it
// answers. Standard library only, so that every wing may import it. Everything
// that comes back from a guest is hostile input to the reader.
//
// The two ends are of different releases. A daemon is as old as the sandbox that it
// is in, or as the memory that this was started from, which brings its daemon along
// to whatever host it comes to; so a daemon may be older than its agent by years, and
// newer while an installation is upgraded. No version is exchanged. Instead the words
// only grow:
//
//   - What is there keeps its name, its type and its meaning for good: fields,
//     headers, paths, kinds of events, statuses, the port, and that the program is
//     started as PID 1 without arguments and with a Boot on descriptor 0.
//   - Whatever is added can be left out. Its zero value is what was before it came,
//     and both ends pass over fields and kinds that they do not know.
//   - An agent does without a path that answers 404, and without what a field that a
//     daemon does not know would have brought: nothing on which the isolation, a
//     pause, a resume or a fork depends may come as a new word.
//
// The oldest daemons in use are those that know NewInitSecret and LifecycleID; there
// is no saved memory with an older one that could go on.
package guestapi

import "time"

const (
	// DefaultPort is where the daemon listens inside the sandbox.
	DefaultPort = 49983
	// ProtocolVersion is the daemon version that clients gate features on. It
	// names the protocol we speak, not our own release.
	ProtocolVersion = "0.6.13"
	// DefaultUser is the acting user when nobody names one.
	DefaultUser = "user"
)

// Headers the daemon reads.
const (
	// HeaderInit carries the init secret on the internal paths.
	HeaderInit = "X-Skerry-Init"
	// HeaderAccessToken carries the sandbox's access token everywhere else.
	HeaderAccessToken = "X-Access-Token"
	// HeaderKeepalive is the longest silence on a stream, in seconds.
	HeaderKeepalive = "Keepalive-Ping-Interval"
	// HeaderMetadataPrefix starts a header of file metadata on an upload.
	HeaderMetadataPrefix = "X-Metadata-"
)

// Paths beside the RPC services. PathInit, PathEvents and PathTunnel demand
// HeaderInit and must never be reachable from outside the host.
const (
	PathHealth  = "/health"
	PathMetrics = "/metrics"
	PathEnvs    = "/envs"
	PathFiles   = "/files"
	PathCompose = "/files/compose"
	// PathInit configures the daemon (POST Init, 204). Until the first one all
	// but PathHealth and PathInit answer 503.
	PathInit = "/init"
	// PathEvents streams Event as newline-delimited JSON for as long as the
	// caller stays; `?after=SEQ` skips what the caller has already seen. An
	// empty line is a keepalive.
	PathEvents = "/events"
	// PathTunnel turns the HTTP/1.1 connection into raw bytes to
	// 127.0.0.1:N inside the sandbox: `GET /tunnel?port=N` with
	// `Connection: Upgrade` and `Upgrade: TunnelProtocol`, answered by 101, or by
	// 502 when nothing listens.
	PathTunnel = "/tunnel"
	// TunnelProtocol is the value of the Upgrade header on PathTunnel.
	TunnelProtocol = "skerry-tunnel"
)

// Boot is the one document PID 1 reads from its descriptor 0 until end of file.
type Boot struct {
	// InitSecret proves the caller of the internal paths. Required.
	InitSecret string `json:"init_secret"`
	// Port to listen on; 0 is DefaultPort.
	Port int `json:"port,omitempty"`
	// Hostname written to /etc/hostname and /etc/hosts; empty leaves both.
	Hostname string `json:"hostname,omitempty"`
	// Nameserver is the address written to /etc/resolv.conf; empty leaves it.
	Nameserver string `json:"nameserver,omitempty"`
	// MemoryReservePercent is how much of the memory must stay available before
	// the largest process is ended; 0 is 8, negative turns the guard off.
	MemoryReservePercent int `json:"memory_reserve_percent,omitempty"`
	// MaxProcesses until an Init says otherwise; 0 is no limit.
	MaxProcesses int `json:"max_processes,omitempty"`
}

// Init is the body of POST PathInit, sent at create, at each resume and after
// each change. It replaces the whole configuration.
type Init struct {
	// AccessToken from now on demanded of every caller; empty demands none.
	AccessToken string `json:"accessToken,omitempty"`
	// EnvVars of every process started from now on.
	EnvVars map[string]string `json:"envVars,omitempty"`
	// Timestamp orders calls and sets the clock: a call older than the last one
	// applied is ignored (and answered 204 as well). Zero is always applied.
	Timestamp time.Time `json:"timestamp,omitzero"`
	// DefaultUser acts when a caller names none; empty is DefaultUser.
	DefaultUser string `json:"defaultUser,omitempty"`
	// DefaultWorkdir is where relative working directories of commands start;
	// empty is the acting user's home.
	DefaultWorkdir string `json:"defaultWorkdir,omitempty"`
	// CABundle is PEM, appended to the sandbox's trust store.
	CABundle     string        `json:"caBundle,omitempty"`
	VolumeMounts []VolumeMount `json:"volumeMounts,omitempty"`
	HyperloopIP  string        `json:"hyperloopIP,omitempty"`
	// LifecycleID changes whenever the sandbox was restored or forked. On a
	// change the daemon begins anew: connections made before are closed, events
	// and measurements of before are forgotten, activity counts from now.
	// Commands, their output and their results stay.
	LifecycleID string `json:"lifecycleID,omitempty"`

	// NewInitSecret, ours: from this call's answer on the only one accepted, on
	// every internal path and also after a restart of the daemon. A copy starts
	// with its source's, which others know. Such a call is applied whatever its
	// Timestamp; when its answer was lost, repeat it with the new secret.
	NewInitSecret string `json:"newInitSecret,omitempty"`

	// Hostname, ours: the new name after a fork; empty leaves it.
	Hostname string `json:"hostname,omitempty"`
	// Nameserver, ours: the new resolver after a move; empty leaves it.
	Nameserver string `json:"nameserver,omitempty"`
	// MaxProcesses, ours: how many processes the sandbox may have; 0 is no limit.
	MaxProcesses int `json:"maxProcesses,omitempty"`
}

// VolumeMount is accepted and refused with 501 when it is not empty: volumes
// are mounted from outside.
type VolumeMount struct {
	NFSTarget string `json:"nfs_target"`
	Path      string `json:"path"`
}

// Metrics answers GET PathMetrics. Sizes are bytes unless the name says MiB.
type Metrics struct {
	TS         int64   `json:"ts"` // unix seconds
	CPUCount   int     `json:"cpu_count"`
	CPUUsedPct float64 `json:"cpu_used_pct"` // of all CPUs together, 0 to 100
	MemTotal   uint64  `json:"mem_total"`
	MemUsed    uint64  `json:"mem_used"`
	MemCache   uint64  `json:"mem_cache"`
	MemTotalMB uint64  `json:"mem_total_mib"`
	MemUsedMB  uint64  `json:"mem_used_mib"`
	DiskUsed   uint64  `json:"disk_used"`
	DiskTotal  uint64  `json:"disk_total"`
	// Processes, ours: how many exist in the sandbox.
	Processes int `json:"processes"`
	// IdleMS, ours: milliseconds since somebody last used the sandbox, 0 while
	// somebody does: while a command the daemon started is running, a stream, a
	// terminal or a tunnel is open or a call is in progress. What is left behind
	// by a command that has ended does not count, nor do refused calls, nor
	// PathHealth, PathMetrics, PathInit and PathEvents. Counts from a restore at
	// the earliest, once Init has told of it.
	IdleMS int64 `json:"idle_ms"`
}

// Kinds of Event.
const (
	EventOOMKill      = "oom_kill"       // the guard ended PID, of Cmd, with RSSBytes; or Killed of many small ones
	EventDiskFull     = "disk_full"      // FreeBytes are left on /; once an episode
	EventProcessLimit = "process_limit"  // Processes exist, more than Limit; Killed were ended
	EventRestart      = "daemon_restart" // the serving daemon died and was started again
)

// Event is one line of PathEvents.
type Event struct {
	// Seq grows with each event, also over a restart of the daemon.
	Seq       int64     `json:"seq"`
	Time      time.Time `json:"time"`
	Kind      string    `json:"kind"`
	PID       int       `json:"pid,omitempty"`
	Cmd       string    `json:"cmd,omitempty"`
	RSSBytes  uint64    `json:"rss_bytes,omitempty"`
	FreeBytes uint64    `json:"free_bytes,omitempty"`
	Processes int       `json:"processes,omitempty"`
	Limit     int       `json:"limit,omitempty"`
	Killed    int       `json:"killed,omitempty"`
}
