package cli

import (
	"fmt"
	"strings"
	"time"

	"skerry.dev/skerry/sdk"
)

type keyCmd struct {
	Create keyCreateCmd `cmd:"" help:"Make a key and print it, this once."`
	List   keyListCmd   `cmd:"" aliases:"ls" help:"List keys, without their secrets."`
	Rm     keyRmCmd     `cmd:"" aliases:"delete" help:"Revoke a key."`
}

type keyCreateCmd struct {
	Name    string        `arg:"" help:"What it is for."`
	Scopes  []string      `help:"Of sandboxes, snapshots, templates, read; without it all." placeholder:"SCOPE"`
	Expires time.Duration `help:"It ends by itself after this time, such as 720h." placeholder:"TIME"`
}

func (cmd *keyCreateCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	var until time.Time
	if cmd.Expires != 0 {
		until = time.Now().Add(cmd.Expires)
	}
	k, err := c.CreateAPIKeyUntil(e.Context, cmd.Name, until, cmd.Scopes...)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, k)
	}
	fmt.Fprintln(e.Stdout, clean(k.Key))
	return nil
}

type keyListCmd struct{}

func (cmd *keyListCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	list, err := collect(c.APIKeys(e.Context), 0)
	if err != nil {
		return err
	}
	return printList(e, g, list, "No keys.", []string{"NAME", "KEY", "SCOPES", "CREATED BY", "AGE", "LAST USED", "EXPIRES", "ID"}, func(k sdk.APIKey) []string {
		used := "never"
		if k.LastUsedAt.Set {
			used = age(k.LastUsedAt.Value) + " ago"
		}
		return []string{k.Name, k.Prefix + "…", strings.Join(k.Scopes, ","), k.CreatedBy, age(k.CreatedAt), used, when(k.ExpiresAt), k.ID}
	})
}

type keyRmCmd struct {
	ID string `arg:"" help:"The key's id."`
}

func (cmd *keyRmCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	return c.DeleteAPIKey(e.Context, cmd.ID)
}
