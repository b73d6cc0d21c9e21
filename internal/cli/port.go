package cli

import (
	"fmt"
	"time"

	"skerry.dev/skerry/sdk"
)

type exposeCmd struct {
	ID     string        `arg:"" help:"The sandbox."`
	Port   int           `arg:"" help:"What listens inside, on whatever address."`
	Public bool          `help:"For everybody who knows the address; else a token is needed, which is in the link."`
	Name   string        `help:"What it is for." placeholder:"NAME"`
	For    time.Duration `help:"For how long; left out: until it is taken back." placeholder:"1h"`
}

func (cmd *exposeCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	opened, err := c.OpenPort(e.Context, cmd.ID, sdk.OpenPort{Port: cmd.Port, Public: cmd.Public, Name: cmd.Name, For: cmd.For})
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, opened)
	}
	fmt.Fprintln(e.Stdout, clean(opened.URL))
	return nil
}

type unexposeCmd struct {
	ID     string   `arg:"" help:"The sandbox."`
	Access []string `arg:"" help:"The accesses to take back, as ports lists them."`
}

func (cmd *unexposeCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	for _, access := range cmd.Access {
		if err := c.ClosePort(e.Context, cmd.ID, access); err != nil {
			return err
		}
		if g.Output != "json" {
			fmt.Fprintf(e.Stdout, "%s is taken back\n", clean(access))
		}
	}
	return nil
}

type portsCmd struct {
	ID    string `arg:"" help:"The sandbox."`
	Limit int    `help:"At most so many." placeholder:"N"`
}

func (cmd *portsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.Ports(e.Context, cmd.ID), cmd.Limit)
	if err != nil {
		return err
	}
	return printList(e, g, list, "Nothing of it is reached from outside. `skerry sandbox expose` changes that.",
		[]string{"ID", "PORT", "FOR", "NAME", "ENDS", "URL"}, func(a sdk.PortAccess) []string {
			who, ends := "a token", ""
			if a.Public {
				who = "everybody"
			}
			if a.ExpiresAt.Set {
				ends = age(a.ExpiresAt.Value)
			}
			return []string{a.ID, fmt.Sprint(a.Port), who, a.Name.Value, ends, a.URL}
		})
}
