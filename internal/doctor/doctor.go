// Package doctor looks at a machine before Skerry runs on it, or when it does
// not, and says what is missing and how to mend it. It changes nothing that
// stays. What it needs of the wings it is handed.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// State is what a finding means.
type State string

// The states. With a Fail something does not work; with a Warn something will
// not one day, or works worse than it could.
const (
	OK   State = "ok"
	Warn State = "warn"
	Fail State = "fail"
)

// Finding is the outcome of one check.
type Finding struct {
	Check   string `json:"check"`
	State   State  `json:"state"`
	Message string `json:"message"`
	// Remedy says what to do; empty when State is OK.
	Remedy string `json:"remedy,omitempty"`
}

// Config says what to look at. Checks whose field is zero are left out, but for
// those of the machine itself.
type Config struct {
	// DataDir is where everything will lie; it need not exist.
	DataDir string
	// Programs are those shipped with this one, by name.
	Programs map[string]string
	// Listen are the addresses the agent and the server want, by the setting that
	// changes them.
	Listen map[string]string
	// Server asks the control plane for its time.
	Server func(context.Context) (time.Time, error)
	// Database connects to PostgreSQL and says what it is.
	Database func(context.Context) (string, error)
	// Start starts a sandbox and ends it again, and says how that went.
	Start func(context.Context) (string, error)
	// StartWithin bounds Start; 0 is a minute.
	StartWithin time.Duration

	Machine Machine
}

// Report is all findings.
type Report struct {
	OK       bool      `json:"ok"` // nothing fails
	Findings []Finding `json:"findings"`
}

type check struct {
	name string
	look func(context.Context) Finding
}

func ok(format string, args ...any) Finding {
	return Finding{State: OK, Message: fmt.Sprintf(format, args...)}
}

func (f Finding) mend(s State, remedy string) Finding {
	f.State, f.Remedy = s, remedy
	return f
}

func warn(message, remedy string) Finding {
	return Finding{State: Warn, Message: message, Remedy: remedy}
}

func fail(message, remedy string) Finding {
	return Finding{State: Fail, Message: message, Remedy: remedy}
}

// Run makes every check and hands each finding to said, in order, as it comes.
func Run(ctx context.Context, c Config, said func(Finding)) Report {
	c.Machine = c.Machine.withDefaults()
	r := Report{OK: true}
	note := func(f Finding) {
		r.OK = r.OK && f.State != Fail
		r.Findings = append(r.Findings, f)
		if said != nil {
			said(f)
		}
	}
	for _, check := range c.checks() {
		f := check.look(ctx)
		f.Check = check.name
		note(f)
	}
	if c.Start != nil {
		f := c.start(ctx, r.OK)
		f.Check = "sandbox"
		note(f)
	}
	return r
}

func (c Config) checks() []check {
	m := c.Machine
	all := []check{
		{"root", m.rights},
		{"kernel", m.kernel},
		{"cgroups", m.cgroups},
		{"tools", m.tools},
		{"kvm", m.kvm},
		{"memory", m.memory},
		{"disk", func(context.Context) Finding { return m.disk(c.DataDir) }},
		{"clock", m.clock},
	}
	for _, name := range sorted(c.Programs) {
		all = append(all, check{name, func(context.Context) Finding { return program(name, c.Programs[name]) }})
	}
	for _, setting := range sorted(c.Listen) {
		all = append(all, check{"port", func(ctx context.Context) Finding { return m.port(ctx, setting, c.Listen[setting]) }})
	}
	if c.Server != nil {
		all = append(all, check{"server", c.server})
	}
	if c.Database != nil {
		all = append(all, check{"database", c.database})
	}
	return all
}

// clockTolerance is what certificates forgive.
const clockTolerance = 5 * time.Minute

func (c Config) server(ctx context.Context) Finding {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	theirs, err := c.Server(ctx)
	if err != nil {
		return fail(fmt.Sprintf("the server does not answer as it should: %v", err),
			"Check the address and that nothing between here and there closes the port; take both, address and SHA-256, from a fresh install command.")
	}
	ours := c.Machine.Now()
	if skew := ours.Sub(theirs); skew.Abs() > clockTolerance {
		return fail(fmt.Sprintf("this machine's clock is %s off the server's", skew.Round(time.Second)),
			"Set the clock and keep it set: timedatectl set-ntp true (package systemd-timesyncd or chrony).")
	}
	return ok("answers, and its clock agrees")
}

func (c Config) database(ctx context.Context) Finding {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	what, err := c.Database(ctx)
	if err != nil {
		return fail(fmt.Sprintf("PostgreSQL does not answer: %v", err), "Check DATABASE_URL, that the server runs and that it lets this machine and role in (pg_hba.conf).")
	}
	return ok("%s", what)
}

func (c Config) start(ctx context.Context, sound bool) Finding {
	if !sound {
		return warn("no sandbox was started, since something it needs is missing", "Mend what is said above and run this again.")
	}
	within := c.StartWithin
	if within <= 0 {
		within = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	what, err := c.Start(ctx)
	if err != nil {
		return fail(fmt.Sprintf("a sandbox could not be started: %v", err),
			"If this is a virtual machine or container itself, it must be allowed namespaces, mounts and cgroups. The kernel's log (dmesg) may say more.")
	}
	return ok("%s", what)
}

// Print writes a finding for people.
func Print(w io.Writer, f Finding) {
	mark := map[State]string{OK: "✓", Warn: "!", Fail: "✗"}[f.State]
	fmt.Fprintf(w, "  %s %-12s %s\n", mark, f.Check, oneLine(f.Message))
	if f.Remedy != "" {
		fmt.Fprintf(w, "    %-12s → %s\n", "", f.Remedy)
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
