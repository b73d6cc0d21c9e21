package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"skerry.dev/skerry/sdk"
)

type pauseCmd struct {
	ID       string `arg:"" help:"The sandbox."`
	DiskOnly bool   `help:"Keep the disk only: processes end, and a resume boots."`
	NoWait   bool   `help:"Return once it is accepted."`
}

func (cmd *pauseCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.PauseSandbox(e.Context, cmd.ID, sdk.PauseOptions{DiskOnly: cmd.DiskOnly, NoWait: cmd.NoWait})
	return printMoved(e, g, s, err)
}

type resumeCmd struct {
	ID       string        `arg:"" help:"The sandbox."`
	Timeout  time.Duration `help:"Until its deadline; as it was created with when left out." placeholder:"5m"`
	DiskOnly bool          `help:"Boot from its disk alone: what ran has ended."`
	NoWait   bool          `help:"Return once it is accepted."`
}

func (cmd *resumeCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	stop := e.watchMove(c, cmd.ID)
	s, err := c.ResumeSandbox(e.Context, cmd.ID, sdk.ResumeOptions{Timeout: cmd.Timeout, DiskOnly: cmd.DiskOnly, NoWait: cmd.NoWait})
	stop()
	return printMoved(e, g, s, err)
}

type recoverCmd struct {
	ID string `arg:"" help:"The sandbox."`
}

func (cmd *recoverCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.RecoverSandbox(e.Context, cmd.ID)
	return printMoved(e, g, s, err)
}

// moveEvery is how often it is asked how far the bytes of a sandbox are.
const moveEvery = 500 * time.Millisecond

// watchMove shows on a terminal what is being brought to a sandbox's host, until
// stop has returned.
func (e *Env) watchMove(c *sdk.Client, id string) (stop func()) {
	if !e.stderrIsTerminal() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(e.Context)
	var watch sync.WaitGroup
	watch.Go(func() {
		b := newBar(e)
		defer b.done()
		ticker := time.NewTicker(moveEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if s, err := c.Sandbox(ctx, id); err == nil && s.Progress.Set {
				p := s.Progress.Value
				b.set(string(p.What), p.DoneBytes, p.TotalBytes)
			}
		}
	})
	return func() { cancel(); watch.Wait() }
}

type timeoutCmd struct {
	ID      string        `arg:"" help:"The sandbox."`
	Timeout time.Duration `arg:"" help:"Such as 30m; from now."`
}

func (cmd *timeoutCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.SetSandboxTimeout(e.Context, cmd.ID, cmd.Timeout)
	return printMoved(e, g, s, err)
}

// printMoved says what a sandbox is now.
func printMoved(e *Env, g *Globals, s *sdk.Sandbox, err error) error {
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, s)
	}
	line := clean(s.ID) + " is " + string(s.Status)
	if s.DeadlineAt.Set {
		line += ", its deadline " + when(s.DeadlineAt)
	}
	fmt.Fprintln(e.Stderr, line)
	return nil
}

type forkCmd struct {
	ID       string            `arg:"" help:"The sandbox."`
	Count    int               `short:"n" default:"1" help:"How many copies."`
	Timeout  time.Duration     `help:"Until their deadlines; the parent's when left out." placeholder:"5m"`
	Metadata map[string]string `short:"m" mapsep:"none" help:"Marks of the copies instead of the parent's; repeatable." placeholder:"KEY=VALUE"`
}

func (cmd *forkCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	made, err := c.ForkSandbox(e.Context, cmd.ID, cmd.Count, cmd.Timeout, cmd.Metadata)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, made)
	}
	for _, s := range made {
		fmt.Fprintln(e.Stdout, clean(s.ID))
	}
	return nil
}

type logsCmd struct {
	ID string `arg:"" help:"The sandbox."`
}

// Run prints what came out of a sandbox; a terminal gets no control characters
// of it.
func (cmd *logsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	l, err := c.SandboxLogs(e.Context, cmd.ID)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, l)
	}
	if l.Truncated {
		fmt.Fprintln(e.Stderr, "(the beginning is cut)")
	}
	for line := range strings.Lines(l.Text) {
		if _, err := io.WriteString(e.Stdout, clean(strings.TrimRight(line, "\r\n"))+"\n"); err != nil {
			return err
		}
	}
	return nil
}

type metricsCmd struct {
	ID    string        `arg:"" help:"The sandbox."`
	Since time.Duration `default:"1h" help:"How far back, up to 24h."`
}

func (cmd *metricsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	m, err := c.SandboxMetrics(e.Context, cmd.ID, time.Now().Add(-cmd.Since))
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, m)
	}
	lines := m.Samples
	if m.Live.Set {
		lines = append(lines, m.Live.Value)
	}
	return printList(e, g, lines, "No figures of that time.", []string{"AT", "VCPUS", "MEMORY", "DISK", "PROCESSES"}, func(s sdk.SandboxSample) []string {
		return []string{
			s.At.Local().Format(time.DateTime), fmt.Sprintf("%.2f of %s", s.VcpusUsed, number(m.Vcpus)), size(s.MemoryBytes), size(s.DiskBytes),
			fmt.Sprint(s.Processes),
		}
	})
}

func pausedText(s *sdk.Sandbox) string {
	if !s.PausedAt.Set {
		return ""
	}
	return when(s.PausedAt) + ": " + s.PausedReason.Value
}

func savedText(s *sdk.Sandbox) string {
	if !s.SavedAt.Set {
		return ""
	}
	text := when(s.SavedAt) + ", " + size(s.SavedBytes.Value)
	switch {
	case s.Stored.Value:
		text += ", in the store"
	case s.OnlyOnHost.Set:
		text += ", only on " + s.OnlyOnHost.Value
	}
	return text
}

// placeText is where a saved state is.
func placeText(s sdk.Snapshot) string {
	hosts := fmt.Sprintf("%d hosts", len(s.Hosts))
	if len(s.Hosts) == 1 {
		hosts = "1 host"
	}
	switch {
	case s.Stored:
		return "store, " + hosts
	case s.Upload.Set && s.Upload.Value.Error.Set:
		return hosts + ", upload failed"
	case s.Upload.Set && s.Upload.Value.DoneBytes > 0:
		return fmt.Sprintf("%s, upload %d %%", hosts, min(100, s.Upload.Value.DoneBytes*100/max(s.Upload.Value.TotalBytes, 1)))
	}
	return hosts
}

type snapshotCmd struct {
	Create snapshotCreateCmd `cmd:"" help:"Save a sandbox under a name; it goes on running."`
	List   snapshotListCmd   `cmd:"" aliases:"ls" help:"List saved states, newest first."`
	Get    snapshotGetCmd    `cmd:"" help:"Show one saved state, and where it is."`
	Rm     snapshotRmCmd     `cmd:"" aliases:"delete" help:"Delete snapshots; sandboxes made from them live on."`
}

type snapshotCreateCmd struct {
	ID        string `arg:"" help:"The sandbox."`
	Name      string `arg:"" help:"The name."`
	DiskOnly  bool   `help:"Keep the disk only."`
	Overwrite bool   `help:"Replace one of this name once the new one is complete."`
}

func (cmd *snapshotCreateCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.CreateSnapshot(e.Context, sdk.CreateSnapshot{Sandbox: cmd.ID, Name: cmd.Name, DiskOnly: cmd.DiskOnly, Overwrite: cmd.Overwrite})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, s)
	}
	fmt.Fprintln(e.Stdout, clean(s.ID))
	return nil
}

type snapshotListCmd struct {
	Type  string `help:"snapshot, pause, checkpoint, fork or all." default:"snapshot" enum:"snapshot,pause,checkpoint,fork,all"`
	Limit int    `help:"At most so many." placeholder:"N"`
}

func (cmd *snapshotListCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.Snapshots(e.Context, cmd.Type), cmd.Limit)
	if err != nil {
		return err
	}
	return printList(e, g, list, "No snapshots. `skerry snapshot create` makes one.",
		[]string{"ID", "NAME", "TYPE", "STATUS", "SIZE", "WHERE", "SANDBOX", "AGE"}, func(s sdk.Snapshot) []string {
			return []string{s.ID, s.Name.Value, string(s.Type), string(s.Status), size(s.SizeBytes), placeText(s), s.SandboxID, age(s.CreatedAt)}
		})
}

type snapshotGetCmd struct {
	Name string `arg:"" help:"Its name or id."`
}

func (cmd *snapshotGetCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.Snapshot(e.Context, cmd.Name)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, s)
	}
	memory := "disk only"
	if s.Memory {
		memory = "memory and disk"
	}
	stored := ""
	if s.Stored {
		stored = size(s.StoredBytes.Value) + " compressed"
	}
	printFields(e.Stdout, [][2]string{
		{"id", s.ID},
		{"name", s.Name.Value},
		{"type", string(s.Type)},
		{"status", string(s.Status)},
		{"error", s.Error.Value},
		{"sandbox", s.SandboxID},
		{"template", s.Template},
		{"engine", strings.TrimSpace(s.Engine + " " + s.EngineVersion.Value)},
		{"holds", memory},
		{"size", size(s.SizeBytes)},
		{"where", placeText(*s)},
		{"stored", stored},
		{"upload error", s.Upload.Value.Error.Value},
		{"hosts", strings.Join(s.Hosts, ", ")},
		{"created", s.CreatedAt.Local().Format(time.DateTime) + " by " + s.CreatedBy},
	})
	return nil
}

type snapshotRmCmd struct {
	Names []string `arg:"" name:"name" help:"Names or ids."`
}

// Run deletes all it was given and reports the first failure after trying each.
func (cmd *snapshotRmCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	var first error
	for _, name := range cmd.Names {
		switch err := c.DeleteSnapshot(e.Context, name); {
		case err == nil:
			fmt.Fprintln(e.Stderr, clean(name)+" is deleted")
		case first == nil:
			first = err
		default:
			Report(e.Stderr, err)
		}
	}
	return first
}
