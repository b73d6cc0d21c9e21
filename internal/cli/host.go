package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"skerry.dev/skerry/gen/restapi"
	"skerry.dev/skerry/sdk"
)

type hostCmd struct {
	List    hostListCmd    `cmd:"" aliases:"ls" help:"List hosts."`
	Get     hostGetCmd     `cmd:"" help:"Show one host."`
	Create  hostCreateCmd  `cmd:"" aliases:"add" help:"Announce a host and print how its agent joins."`
	Token   hostTokenCmd   `cmd:"" help:"Print how a host joins again that has lost its credentials; what was printed before is void."`
	Update  hostUpdateCmd  `cmd:"" help:"Rename a host, or change its labels and where it is."`
	Drain   hostDrainCmd   `cmd:"" help:"Place nothing new on a host and pause what runs there."`
	Undrain hostUndrainCmd `cmd:"" help:"Let a host take sandboxes again."`
	Strays  hostStraysCmd  `cmd:"" help:"Show what a host holds that is not known to be there."`
	Delete  hostDeleteCmd  `cmd:"" aliases:"rm" help:"Take a host away for good."`
}

// onHost logs in and works on the one host that word names.
func onHost(e *Env, g *Globals, word string, work func(c *sdk.Client, id string) error) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	id, err := findHost(e, c, word)
	if err != nil {
		return err
	}
	return work(c, id)
}

// findHost finds a host by id or name.
func findHost(e *Env, c *sdk.Client, word string) (string, error) {
	if strings.HasPrefix(word, "host-") {
		return word, nil
	}
	var named []string
	for h, err := range c.Hosts(e.Context) {
		if err != nil {
			return "", err
		}
		if h.Name == word {
			named = append(named, h.ID)
		}
	}
	switch len(named) {
	case 1:
		return named[0], nil
	case 0:
		return "", fmt.Errorf("there is no host %q: `skerry host list` shows those you may see", word)
	}
	return "", fmt.Errorf("%d hosts are called %q: say which by its id", len(named), word)
}

type hostListCmd struct{}

func (cmd *hostListCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	list, err := collect(c.Hosts(e.Context), 0)
	if err != nil {
		return err
	}
	return printList(e, g, list, "No hosts. `skerry host create` announces one.",
		[]string{"NAME", "TYPE", "STATUS", "ENGINES", "CPUS", "MEMORY", "SANDBOXES", "ID"}, func(h sdk.Host) []string {
			return []string{h.Name, string(h.Type), standing(h), engines(h), fmt.Sprint(h.CPUCount), size(h.MemoryBytes), fmt.Sprint(h.Sandboxes.Value), h.ID}
		})
}

// standing is a host's status with what there is to say about it.
func standing(h sdk.Host) string {
	switch {
	case h.StatusReason.Value != "":
		return string(h.Status) + ": " + h.StatusReason.Value
	case h.Drained:
		return string(h.Status) + ": drained"
	}
	return string(h.Status)
}

func engines(h sdk.Host) string {
	var names []string
	for _, n := range h.Engines {
		if n.Healthy {
			names = append(names, n.Name)
		}
	}
	return strings.Join(names, ",")
}

type hostGetCmd struct {
	Host string `arg:"" help:"Its id or name."`
}

func (cmd *hostGetCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		h, err := c.Host(e.Context, id)
		if err != nil {
			return err
		}
		return printHost(e, g, h)
	})
}

func printHost(e *Env, g *Globals, h *sdk.Host) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, h)
	}
	drain := ""
	if h.DrainRequestedAt.Set {
		if drain = "since " + when(h.DrainRequestedAt); h.DrainDeadline.Set {
			drain += ", until " + when(h.DrainDeadline)
		}
		if h.DrainError.Value != "" {
			drain += "; a pause failed: " + h.DrainError.Value
		}
		if n := h.OnlyHere.Value; n > 0 {
			drain += fmt.Sprintf("; %d saved states are only there yet", n)
		}
	}
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(h.Labels)) {
		labels = append(labels, name+"="+h.Labels[name])
	}
	printFields(e.Stdout, [][2]string{
		{"id", h.ID},
		{"name", h.Name},
		{"type", string(h.Type)},
		{"status", standing(*h)},
		{"team", h.TeamName.Value},
		{"where", strings.Trim(h.Provider+" "+h.AvailabilityZone, " ")},
		{"labels", strings.Join(labels, ", ")},
		{"address", h.Address.Value},
		{"engines", engines(*h)},
		{"sandboxes", fmt.Sprint(h.Sandboxes.Value)},
		{"cpu", share(h.Reserved.CPUMillis, h.Capacity.CPUMillis, func(n int64) string { return number(float64(n) / 1000) })},
		{"memory", share(h.Reserved.MemoryMB, h.Capacity.MemoryMB, megabytes)},
		{"disk", share(h.Reserved.DiskMB, h.Capacity.DiskMB, megabytes)},
		{"drained", drain},
		{"heartbeat", when(h.LastHeartbeatAt)},
		{"agent", h.AgentVersion.Value},
	})
	return nil
}

func share(reserved, capacity int64, show func(int64) string) string {
	return show(reserved) + " reserved of " + show(capacity)
}

func megabytes(n int64) string { return fmt.Sprintf("%d MB", n) }

type hostCreateCmd struct {
	Name     string            `arg:"" optional:"" help:"Its name; without one, the machine's own."`
	BYOC     bool              `name:"byoc" help:"For this team alone."`
	Provider string            `help:"Whose machine it is." placeholder:"NAME"`
	Zone     string            `help:"Where it is." placeholder:"NAME"`
	Labels   map[string]string `name:"label" help:"What sandboxes may ask for." placeholder:"NAME=VALUE"`
}

func (cmd *hostCreateCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	request := sdk.HostRequest{Type: restapi.CreateHostRequestTypeRegular}
	if cmd.BYOC {
		request.Type = restapi.CreateHostRequestTypeByoc
	}
	for to, from := range map[*restapi.OptString]string{
		&request.Name: cmd.Name, &request.Provider: cmd.Provider, &request.AvailabilityZone: cmd.Zone,
	} {
		if from != "" {
			to.SetTo(from)
		}
	}
	if len(cmd.Labels) > 0 {
		request.Labels.SetTo(cmd.Labels)
	}
	h, err := c.AnnounceHost(e.Context, request)
	if err != nil {
		return err
	}
	return printJoin(e, g, h)
}

func printJoin(e *Env, g *Globals, h *sdk.CreatedHost) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, h)
	}
	fmt.Fprintf(e.Stderr, "%s waits for its agent. Run this there within %s (the token works once):\n", clean(h.Host.ID), strings.TrimPrefix(age(h.ExpiresAt), "in "))
	fmt.Fprintln(e.Stdout, clean(h.InstallCommand))
	return nil
}

type hostTokenCmd struct {
	Host string `arg:"" help:"Its id or name."`
}

func (cmd *hostTokenCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		h, err := c.CreateHostToken(e.Context, id)
		if err != nil {
			return err
		}
		return printJoin(e, g, h)
	})
}

type hostUpdateCmd struct {
	Host     string            `arg:"" help:"Its id or name."`
	Name     *string           `help:"Its new name." placeholder:"NAME"`
	Provider *string           `help:"Whose machine it is." placeholder:"NAME"`
	Zone     *string           `help:"Where it is." placeholder:"NAME"`
	Labels   map[string]string `name:"label" help:"All of its labels from now on." placeholder:"NAME=VALUE"`
	NoLabels bool              `help:"Take all labels away."`
}

func (cmd *hostUpdateCmd) Run(e *Env, g *Globals) error {
	change := sdk.HostChange{}
	for to, from := range map[*restapi.OptString]*string{&change.Name: cmd.Name, &change.Provider: cmd.Provider, &change.AvailabilityZone: cmd.Zone} {
		if from != nil {
			to.SetTo(*from)
		}
	}
	switch {
	case cmd.NoLabels && len(cmd.Labels) > 0:
		return &usageError{"--label and --no-labels say different things"}
	case cmd.NoLabels:
		change.Labels.SetTo(restapi.UpdateHostRequestLabels{})
	case len(cmd.Labels) > 0:
		change.Labels.SetTo(cmd.Labels)
	}
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		h, err := c.UpdateHost(e.Context, id, change)
		if err != nil {
			return err
		}
		return printHost(e, g, h)
	})
}

type hostDrainCmd struct {
	Host   string        `arg:"" help:"Its id or name."`
	Within time.Duration `help:"What still runs after this time runs on, such as 30m; without it no limit." placeholder:"TIME"`
}

func (cmd *hostDrainCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		h, err := c.DrainHost(e.Context, id, cmd.Within)
		if err != nil {
			return err
		}
		return printHost(e, g, h)
	})
}

type hostUndrainCmd struct {
	Host string `arg:"" help:"Its id or name."`
}

func (cmd *hostUndrainCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		h, err := c.UndrainHost(e.Context, id)
		if err != nil {
			return err
		}
		return printHost(e, g, h)
	})
}

type hostDeleteCmd struct {
	Host   string `arg:"" help:"Its id or name."`
	Force  bool   `help:"Whatever is lost with it."`
	DryRun bool   `short:"n" help:"Only show what would be lost."`
}

func (cmd *hostDeleteCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		if !cmd.DryRun {
			return c.DeleteHost(e.Context, id, cmd.Force)
		}
		lost, err := collect(c.LostWithHost(e.Context, id), 0)
		if err != nil {
			return err
		}
		return printList(e, g, lost, "Nothing would be lost.", []string{"KIND", "NAME", "STATUS", "TEAM", "AGE", "ID"}, func(l sdk.HostLoss) []string {
			return []string{string(l.Kind), l.Name, l.Status, l.TeamName.Value, age(l.CreatedAt), l.ID}
		})
	})
}
