package cli

import (
	"fmt"
	"io"

	"skerry.dev/skerry/sdk"
)

type buildCmd struct {
	List   buildListCmd   `cmd:"" aliases:"ls" help:"List builds, newest first."`
	Get    buildGetCmd    `cmd:"" help:"Show one."`
	Logs   buildLogsCmd   `cmd:"" help:"What one says."`
	Cancel buildCancelCmd `cmd:"" help:"End one; nothing of it is left."`
}

type buildListCmd struct {
	Name  string `help:"Only of templates of this name." placeholder:"NAME"`
	Limit int    `default:"50" help:"At most so many; 0: all." placeholder:"N"`
}

func (cmd *buildListCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.Builds(e.Context, cmd.Name), cmd.Limit)
	if err != nil {
		return err
	}
	return printList(e, g, list, "No builds. `skerry template build NAME DIR` makes one.", []string{"ID", "NAME", "STATUS", "STEP", "AGE", "BY", "ERROR"}, func(b sdk.Build) []string {
		return []string{b.ID, b.Name, string(b.Status), fmt.Sprintf("%d/%d", b.Step, b.Steps), age(b.CreatedAt), b.CreatedBy, b.Error.Value}
	})
}

type buildID struct {
	ID string `arg:"" help:"The build."`
}

type buildGetCmd struct{ buildID }

func (cmd *buildGetCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	b, err := c.Build(e.Context, cmd.ID)
	return printBuild(e, g, b, err)
}

type buildCancelCmd struct{ buildID }

func (cmd *buildCancelCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	b, err := c.CancelBuild(e.Context, cmd.ID)
	return printBuild(e, g, b, err)
}

func printBuild(e *Env, g *Globals, b *sdk.Build, err error) error {
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, b)
	}
	printFields(e.Stdout, [][2]string{
		{"Id", b.ID},
		{"Name", b.Name},
		{"Status", string(b.Status)},
		{"Step", fmt.Sprintf("%d of %d", b.Step, b.Steps)},
		{"Error", b.Error.Value},
		{"Template", b.TemplateID.Value},
		{"By", b.CreatedBy},
		{"Age", age(b.CreatedAt)},
		{"Started", when(b.StartedAt)},
		{"Ended", when(b.FinishedAt)},
	})
	return nil
}

type buildLogsCmd struct {
	buildID
	Follow bool `short:"f" help:"Go on until the build has ended; its failure is this command's."`
}

func (cmd *buildLogsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	b, err := c.BuildLogs(e.Context, cmd.ID, 0, cmd.Follow, func(l sdk.BuildLine) {
		if g.Output == "json" {
			_ = printJSON(e.Stdout, l) // what is read afterwards fails, too
			return
		}
		_, _ = io.WriteString(e.Stdout, clean(l.Line)+"\n")
	})
	if err != nil || b == nil {
		return err
	}
	if b.Status != "ready" {
		fmt.Fprintf(e.Stderr, "skerry: the build is %s: %s\n", b.Status, clean(b.Error.Value))
		return &ExitError{Code: exitFailed}
	}
	return nil
}
