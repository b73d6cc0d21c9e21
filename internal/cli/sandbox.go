package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/sdk"
)

type sandboxCmd struct {
	Create createCmd `cmd:"" help:"Start a sandbox and print its id."`
	List   listCmd   `cmd:"" aliases:"ls" help:"List sandboxes, newest first."`
	Get    getCmd    `cmd:"" help:"Show one sandbox."`
	Exec   execCmd   `cmd:"" help:"Run a command; its exit code becomes this program's."`
	Shell  shellCmd  `cmd:"" aliases:"sh" help:"Open a terminal."`
	Cp     cpCmd     `cmd:"" help:"Copy files and directories in or out: sb-…:path names one inside."`
	Rm     rmCmd     `cmd:"" aliases:"delete" help:"End sandboxes and all that is in them."`
	Events eventsCmd `cmd:"" help:"Show what happened to a sandbox."`

	Pause   pauseCmd   `cmd:"" help:"Save everything and stop using CPU and memory."`
	Resume  resumeCmd  `cmd:"" help:"Go on where it was paused."`
	Recover recoverCmd `cmd:"" help:"Give up what its host still has, and be paused as it was saved last."`
	Fork    forkCmd    `cmd:"" help:"Make copies and print their ids."`
	Timeout timeoutCmd `cmd:"" help:"Move the deadline to so long from now."`
	Logs    logsCmd    `cmd:"" help:"Show what the console said last."`
	Metrics metricsCmd `cmd:"" help:"Show what a sandbox uses."`

	Expose   exposeCmd   `cmd:"" help:"Let a port be reached from outside and print the link to it."`
	Ports    portsCmd    `cmd:"" help:"List which ports are reached from outside, and for whom."`
	Unexpose unexposeCmd `cmd:"" help:"Take such an access back."`
}

type createCmd struct {
	Template    string            `arg:"" optional:"" help:"Name or id of a template; base when left out."`
	Snapshot    string            `help:"Start from this saved state instead." placeholder:"NAME"`
	Checkpoint  time.Duration     `help:"Save its state so often while it runs." placeholder:"10m"`
	VCPUs       float64           `name:"vcpus" help:"CPUs, such as 0.5 or 2." placeholder:"N"`
	Memory      int               `help:"Memory in MB." placeholder:"MB"`
	Disk        int               `help:"Disk in MB." placeholder:"MB"`
	Timeout     time.Duration     `help:"Until its deadline." placeholder:"5m"`
	OnTimeout   string            `help:"What happens at the deadline: pause or kill." placeholder:"ACTION"`
	IdleTimeout time.Duration     `help:"Idle time until the same happens." placeholder:"10m"`
	PausedTTL   time.Duration     `name:"paused-ttl" help:"How long it is kept once it is paused." placeholder:"720h"`
	AutoResume  bool              `help:"Traffic to its exposed ports resumes it while it is paused."`
	Env         map[string]string `short:"e" mapsep:"none" help:"Environment of its commands; repeatable." placeholder:"NAME=VALUE"`
	Metadata    map[string]string `short:"m" mapsep:"none" help:"Your own marks to find it by; repeatable." placeholder:"KEY=VALUE"`
	Engine      string            `help:"auto, gvisor or microvm." placeholder:"NAME"`
	HostLabels  map[string]string `name:"host-label" mapsep:"none" help:"Only on a host with this label; repeatable." placeholder:"NAME=VALUE"`
	NoInternet  bool              `help:"No way out at all."`
}

func (cmd *createCmd) Run(e *Env, g *Globals) error {
	if cmd.Template == "" && cmd.Snapshot == "" {
		cmd.Template = "base"
	}
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.CreateSandbox(e.Context, sdk.CreateSandbox{
		Template: cmd.Template, Snapshot: cmd.Snapshot, Checkpoint: cmd.Checkpoint, VCPUs: cmd.VCPUs, MemoryMB: cmd.Memory, DiskMB: cmd.Disk,
		Timeout: cmd.Timeout, OnTimeout: cmd.OnTimeout, IdleTimeout: cmd.IdleTimeout, PausedTTL: cmd.PausedTTL, AutoResume: cmd.AutoResume,
		Metadata: cmd.Metadata, Env: cmd.Env, Engine: cmd.Engine, HostLabels: cmd.HostLabels, NoInternet: cmd.NoInternet,
	})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, s)
	}
	fmt.Fprintln(e.Stdout, clean(s.ID))
	return nil
}

type listCmd struct {
	Status   []string          `help:"Only these, comma separated; without it all that have not ended." placeholder:"STATUS"`
	Template string            `help:"Only of this template." placeholder:"NAME"`
	Metadata map[string]string `short:"m" mapsep:"none" help:"Only with these marks." placeholder:"KEY=VALUE"`
	Limit    int               `help:"At most so many." placeholder:"N"`
	Quiet    bool              `short:"q" help:"Ids only."`
}

func (cmd *listCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.Sandboxes(e.Context, sdk.SandboxFilter{Status: cmd.Status, Template: cmd.Template, Metadata: cmd.Metadata}), cmd.Limit)
	if err != nil {
		return err
	}
	if cmd.Quiet && g.Output != "json" {
		for _, s := range list {
			fmt.Fprintln(e.Stdout, clean(s.ID))
		}
		return nil
	}
	return printList(e, g, list, "No sandboxes. `skerry sandbox create` makes one.",
		[]string{"ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "AGE", "DEADLINE"}, func(s sdk.Sandbox) []string {
			deadline := ""
			if s.DeadlineAt.Set {
				deadline = fmt.Sprintf("%s %s", s.OnTimeout, age(s.DeadlineAt.Value))
			}
			return []string{s.ID, string(s.Status), s.Template, number(s.Vcpus), fmt.Sprintf("%d MB", s.MemoryMB), age(s.CreatedAt), deadline}
		})
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

type getCmd struct {
	ID string `arg:"" help:"The sandbox."`
}

func (cmd *getCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	s, err := c.Sandbox(e.Context, cmd.ID)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, s)
	}
	internet := "the public internet"
	if !s.Internet {
		internet = "none"
	}
	fields := [][2]string{
		{"id", s.ID},
		{"status", string(s.Status)},
		{"end reason", s.EndReason.Value},
		{"error", s.Error.Value},
		{"template", s.Template},
		{"engine", s.Engine},
		{"vcpus", number(s.Vcpus)},
		{"memory", fmt.Sprintf("%d MB", s.MemoryMB)},
		{"disk", fmt.Sprintf("%d MB", s.DiskMB)},
		{"network", internet},
		{"created", s.CreatedAt.Local().Format(time.DateTime) + " by " + s.CreatedBy},
		{"started", when(s.StartedAt)},
		{"deadline", when(s.DeadlineAt)},
		{"paused", pausedText(s)},
		{"expires", when(s.ExpiresAt)},
		{"saved", savedText(s)},
		{"recoverable", s.RecoverableFrom.Value.SnapshotID},
		{"ended", when(s.EndedAt)},
		{"actions", strings.Join(s.Actions, ", ")},
	}
	keys := make([]string, 0, len(s.Metadata))
	for k := range s.Metadata {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fields = append(fields, [2]string{"metadata", k + "=" + s.Metadata[k]})
	}
	printFields(e.Stdout, fields)
	return nil
}

type rmCmd struct {
	IDs []string `arg:"" name:"id" help:"The sandboxes."`
}

// Run ends all it was given and reports the first failure after trying each.
func (cmd *rmCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	var first error
	for _, id := range cmd.IDs {
		if err := c.DeleteSandbox(e.Context, id); err != nil {
			if first != nil {
				Report(e.Stderr, err)
				continue
			}
			first = err
			continue
		}
		fmt.Fprintln(e.Stderr, clean(id)+" is ended")
	}
	return first
}

type eventsCmd struct {
	ID    string `arg:"" help:"The sandbox."`
	Limit int    `help:"At most so many." default:"50" placeholder:"N"`
}

func (cmd *eventsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.SandboxEvents(e.Context, cmd.ID), cmd.Limit)
	if err != nil {
		return err
	}
	return printList(e, g, list, "Nothing happened yet.", []string{"AT", "EVENT", "DATA"}, func(v sdk.SandboxEvent) []string {
		data, err := json.Marshal(v.Data)
		if err != nil || len(v.Data) == 0 {
			data = nil
		}
		return []string{v.At.Local().Format("2006-01-02 15:04:05.000"), v.Kind, string(data)}
	})
}
