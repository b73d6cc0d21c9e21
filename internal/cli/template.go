package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"

	"skerry.dev/skerry/sdk"
)

type templateCmd struct {
	List  templateListCmd  `cmd:"" aliases:"ls" help:"List templates."`
	Get   templateGetCmd   `cmd:"" help:"Show one."`
	Build templateBuildCmd `cmd:"" help:"Build one: from a recipe and a directory, from an image, or the platform's base."`
	Rm    templateRmCmd    `cmd:"" aliases:"delete" help:"Delete one; what was made from it lives on."`
}

type templateListCmd struct{}

func (cmd *templateListCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	list, err := collect(c.Templates(e.Context), 0)
	if err != nil {
		return err
	}
	return printList(e, g, list, "No templates. `skerry template build base` makes the first.",
		[]string{"NAME", "STATUS", "SIZE", "VCPUS", "MEMORY", "DISK", "AGE", "ID"}, func(t sdk.Template) []string {
			bytes := ""
			if t.ImageSizeBytes.Set {
				bytes = size(t.ImageSizeBytes.Value)
			}
			return []string{t.Name, string(t.Status), bytes, number(t.Vcpus), fmt.Sprintf("%d MB", t.MemoryMB), fmt.Sprintf("%d MB", t.DiskMB), age(t.CreatedAt), t.ID}
		})
}

type templateGetCmd struct {
	Template string `arg:"" help:"Its name or id."`
}

func (cmd *templateGetCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	t, err := c.Template(e.Context, cmd.Template)
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, t)
	}
	from := "its image"
	if t.StartsFromMemory.Value {
		from = "memory"
	}
	printFields(e.Stdout, [][2]string{
		{"Name", t.Name},
		{"Status", string(t.Status)},
		{"Size", size(t.ImageSizeBytes.Value)},
		{"Sandboxes", fmt.Sprintf("%s vCPUs, %d MB memory, %d MB disk", number(t.Vcpus), t.MemoryMB, t.DiskMB)},
		{"Starts from", from},
		{"Start", t.Start.Value},
		{"Ready", t.Ready.Value},
		{"Age", age(t.CreatedAt)},
		{"Build", t.BuildID.Value},
		{"Id", t.ID},
	})
	return nil
}

type templateRmCmd struct {
	Template string `arg:"" help:"Its name or id."`
}

func (cmd *templateRmCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	return c.DeleteTemplate(e.Context, cmd.Template)
}

type templateBuildCmd struct {
	Name          string  `arg:"" help:"What it is to be called; base alone is the platform's own."`
	Dir           string  `arg:"" optional:"" help:"Directory with the recipe and what COPY takes files from."`
	File          string  `short:"f" help:"The recipe (default: Skerryfile or Dockerfile in the directory)." placeholder:"FILE"`
	From          string  `help:"Template to go on from." placeholder:"NAME"`
	Image         string  `help:"Image to begin with, as debian:12." placeholder:"IMAGE"`
	Tarball       string  `help:"Image to begin with, as a file: docker save, or an OCI layout." placeholder:"FILE"`
	Username      string  `help:"Of the image's registry; the password is read from SKERRY_REGISTRY_PASSWORD, or asked from standard input." placeholder:"NAME"`
	PasswordStdin bool    `help:"Read the registry's password from standard input."`
	VCPUs         float64 `name:"vcpus" help:"Of its sandboxes." placeholder:"N"`
	Memory        int     `help:"Of its sandboxes, in MB." placeholder:"MB"`
	Disk          int     `help:"Of its sandboxes, in MB." placeholder:"MB"`
	NoCache       bool    `help:"Run every step anew."`
	Detach        bool    `short:"d" help:"Print the build's id and leave it to itself."`
}

// base: nothing else is said than the name of the platform's template.
func (cmd *templateBuildCmd) base() bool {
	return cmd.Name == "base" && cmd.Dir == "" && cmd.File == "" && cmd.From == "" && cmd.Image == "" && cmd.Tarball == ""
}

func (cmd *templateBuildCmd) Run(e *Env, g *Globals) error {
	if cmd.base() {
		return cmd.runBase(e, g)
	}
	c, err := e.client(g)
	if err != nil {
		return err
	}
	o := sdk.BuildTemplate{
		Name: cmd.Name, FromTemplate: cmd.From, FromImage: cmd.Image, Username: cmd.Username, VCPUs: cmd.VCPUs, MemoryMB: cmd.Memory, DiskMB: cmd.Disk, NoCache: cmd.NoCache,
	}
	if cmd.Username != "" {
		if o.Password, err = cmd.password(e); err != nil {
			return err
		}
	}
	recipe, err := cmd.recipe()
	if err != nil {
		return err
	}
	o.Recipe = recipe
	if cmd.Tarball != "" {
		f, err := os.Open(cmd.Tarball)
		if err != nil {
			return err
		}
		defer f.Close()
		err = untilTaken(e, func() error {
			_, err := f.Seek(0, io.SeekStart)
			if err == nil {
				o.FromTarball, err = send(e, c, filepath.Base(cmd.Tarball), f)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if copies(recipe) {
		if cmd.Dir == "" {
			return &usageError{"the recipe has COPY: say which directory the files are in, as in `skerry template build " + cmd.Name + " .`"}
		}
		if o.Context, err = sendDir(e, c, cmd.Dir); err != nil {
			return err
		}
	}
	b, err := c.CreateTemplate(e.Context, o)
	if err != nil {
		return err
	}
	if cmd.Detach {
		if g.Output == "json" {
			return printJSON(e.Stdout, b)
		}
		fmt.Fprintln(e.Stdout, clean(b.ID))
		return nil
	}
	return watchBuild(e, g, c, b.ID, 0)
}

func (cmd *templateBuildCmd) runBase(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	t, err := c.BuildBase(e.Context, func(line string) { fmt.Fprintln(e.Stderr, clean(line)) })
	if err != nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, t)
	}
	fmt.Fprintf(e.Stdout, "%s is %s (%s, %s)\n", clean(t.Name), t.Status, size(t.ImageSizeBytes.Value), clean(t.ID))
	return nil
}

// recipe reads the file that was named, or one of the usual names; an image or
// another template needs none.
func (cmd *templateBuildCmd) recipe() (string, error) {
	if cmd.File != "" {
		raw, err := os.ReadFile(cmd.File)
		return string(raw), err
	}
	if cmd.Dir == "" {
		if cmd.From == "" && cmd.Image == "" && cmd.Tarball == "" {
			return "", &usageError{"say what to build from: a directory with a Skerryfile or Dockerfile, -f, --from, --image or --tarball"}
		}
		return "", nil
	}
	for _, name := range []string{"Skerryfile", "Dockerfile"} {
		raw, err := os.ReadFile(filepath.Join(cmd.Dir, name))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return string(raw), err
		}
	}
	return "", fmt.Errorf("there is no Skerryfile and no Dockerfile in %s: name the recipe by -f", cmd.Dir)
}

const maxPassword = 8 << 10

func (cmd *templateBuildCmd) password(e *Env) (string, error) {
	if p := e.Getenv("SKERRY_REGISTRY_PASSWORD"); p != "" && !cmd.PasswordStdin {
		return p, nil
	}
	if !cmd.PasswordStdin {
		return "", &usageError{"give the registry's password by SKERRY_REGISTRY_PASSWORD or --password-stdin"}
	}
	raw, err := io.ReadAll(io.LimitReader(e.Stdin, maxPassword))
	return strings.TrimRight(string(raw), "\r\n"), err
}

// copies reports whether a recipe takes files from a context: an instruction
// begins where none is continued.
func copies(recipe string) bool {
	instruction := ""
	for line := range strings.Lines(recipe) {
		if text := strings.TrimSpace(line); text == "" || text[0] == '#' {
			continue // also amid an instruction
		}
		line = strings.TrimRightFunc(line, unicode.IsSpace)
		part, goesOn := strings.CutSuffix(line, `\`)
		if instruction += part; goesOn {
			continue
		}
		if copying(instruction) {
			return true
		}
		instruction = ""
	}
	return copying(instruction)
}

func copying(instruction string) bool {
	words := strings.Fields(instruction)
	return len(words) > 0 && strings.EqualFold(words[0], "COPY")
}

// watchBuild shows a build as it goes on. The first interrupt asks to cancel it,
// the second leaves it.
func watchBuild(e *Env, g *Globals, c *sdk.Client, id string, after int) error {
	ctx, leave := context.WithCancel(e.Context)
	defer leave()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		defer signal.Stop(signals)
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
			if n > 0 {
				leave()
				return
			}
			fmt.Fprintln(e.Stderr, "Canceling the build; once more leaves it.")
			if _, err := c.CancelBuild(ctx, id); err != nil && ctx.Err() == nil {
				fmt.Fprintln(e.Stderr, "skerry:", clean(err.Error()))
			}
		}
	}()
	b, err := c.BuildLogs(ctx, id, after, true, func(l sdk.BuildLine) { printLine(e, g, l) })
	left := ctx.Err() != nil && e.Context.Err() == nil
	leave()
	<-asked
	if left {
		fmt.Fprintf(e.Stderr, "The build goes on: skerry build logs -f %s\n", clean(id))
		return &ExitError{Code: exitFailed}
	}
	if err != nil {
		return err
	}
	return concluded(e, g, b)
}

func printLine(e *Env, g *Globals, l sdk.BuildLine) {
	text := clean(l.Line)
	if l.Stream == "system" {
		fmt.Fprintln(e.Stderr, cmp.Or(text, ""))
		return
	}
	fmt.Fprintln(e.Stderr, "  "+text)
}

// concluded says how a build ended; one that is not ready is a failure.
func concluded(e *Env, g *Globals, b *sdk.Build) error {
	if g.Output == "json" {
		if err := printJSON(e.Stdout, b); err != nil {
			return err
		}
	} else if b.Status == "ready" {
		fmt.Fprintf(e.Stdout, "%s is ready (%s)\n", clean(b.Name), clean(b.TemplateID.Value))
	} else {
		fmt.Fprintf(e.Stderr, "skerry: the build is %s: %s\n", b.Status, clean(b.Error.Value))
	}
	if b.Status != "ready" {
		return &ExitError{Code: exitFailed}
	}
	return nil
}
