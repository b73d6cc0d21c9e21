package cli

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"skerry.dev/skerry/sdk"
)

type execCmd struct {
	Interactive bool              `short:"i" help:"Pass standard input on; a pipe or file is passed on anyway."`
	TTY         bool              `short:"t" name:"tty" help:"Give the command a terminal."`
	Cwd         string            `short:"w" help:"Where to run it." placeholder:"PATH"`
	User        string            `short:"u" help:"As whom to run it." placeholder:"NAME"`
	Env         map[string]string `short:"e" mapsep:"none" help:"Environment; repeatable." placeholder:"NAME=VALUE"`
	Timeout     time.Duration     `help:"When to kill it; without it never." placeholder:"1m"`

	ID  string   `arg:"" help:"The sandbox."`
	Cmd []string `arg:"" name:"command" passthrough:"" help:"A program and its arguments after --; a single word is a line for the shell."`
}

func (cmd *execCmd) command() (sdk.Command, error) {
	words := cmd.Cmd
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(cmd.Cmd) > 0 && cmd.Cmd[0] != "--" && strings.HasPrefix(cmd.Cmd[0], "-") {
		return sdk.Command{}, &usageError{"flags of exec go before the sandbox's id: skerry sandbox exec " + cmd.Cmd[0] + " <id> -- <command>"}
	}
	if len(words) == 0 {
		return sdk.Command{}, &usageError{"there is no command: skerry sandbox exec <id> -- <command>"}
	}
	c := sdk.Command{Cmd: words[0], Env: cmd.Env, Dir: cmd.Cwd, User: cmd.User, Timeout: cmd.Timeout}
	if len(words) > 1 {
		c.Args = words[1:]
	}
	return c, nil
}

func (cmd *execCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	command, err := cmd.command()
	if err != nil {
		return err
	}
	if cmd.TTY {
		return e.terminal(c, cmd.ID, command)
	}
	if cmd.Interactive || e.stdinIsPiped() {
		command.Stdin = e.Stdin
	}
	if g.Output == "json" {
		r, err := c.Exec(e.Context, cmd.ID, command)
		if err != nil {
			return err
		}
		return errors.Join(printJSON(e.Stdout, r), ended(r.ExitCode))
	}
	command.Stdout, command.Stderr = e.Stdout, e.Stderr
	p, err := c.Start(e.Context, cmd.ID, command)
	if err != nil {
		return err
	}
	stop := forward(p)
	defer stop()
	return e.wait(cmd.ID, p)
}

// stdinIsPiped tells a pipe or a file, whose bytes are meant for the command,
// from a terminal or /dev/null.
func (e *Env) stdinIsPiped() bool {
	info, err := e.Stdin.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice == 0
}

// wait turns the end of a command into the program's.
func (e *Env) wait(sandbox string, p *sdk.Process) error {
	exit, err := p.Wait()
	if errors.Is(err, sdk.ErrDetached) {
		return fmt.Errorf("%w (command %s in %s)", err, p.ID(), sandbox)
	}
	if err != nil {
		return err
	}
	if exit.Lost > 0 {
		fmt.Fprintf(e.Stderr, "skerry: the connection was away for too long: %d bytes of output are lost\n", exit.Lost)
	}
	// An exit code speaks for itself.
	if exit.Error != "" && !strings.HasPrefix(exit.Error, "exit status ") && !strings.HasPrefix(exit.Error, "signal: ") {
		fmt.Fprintf(e.Stderr, "skerry: %s\n", clean(exit.Error))
	}
	return ended(exit.Code)
}

func ended(code int) error {
	if code == 0 {
		return nil
	}
	return &ExitError{Code: code & 0xff}
}

// forward passes signals to the command inside instead of obeying them. A
// second interrupt within two seconds is obeyed, for a command that ignores it.
func forward(p *sdk.Process) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var last time.Time
		for {
			select {
			case s := <-signals:
				if s == unix.SIGINT && time.Since(last) < 2*time.Second {
					go p.Close()
					continue
				}
				if s == unix.SIGINT {
					last = time.Now()
				}
				number, ok := s.(syscall.Signal)
				if ok && p.Signal(unix.SignalName(number)) != nil && s != unix.SIGINT {
					go p.Close()
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
	}
}

type shellCmd struct {
	Cwd  string            `short:"w" help:"Where to start." placeholder:"PATH"`
	User string            `short:"u" help:"As whom." placeholder:"NAME"`
	Env  map[string]string `short:"e" mapsep:"none" help:"Environment; repeatable." placeholder:"NAME=VALUE"`
	ID   string            `arg:"" help:"The sandbox."`
}

func (cmd *shellCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	return e.terminal(c, cmd.ID, sdk.Command{Dir: cmd.Cwd, User: cmd.User, Env: cmd.Env})
}

// terminal connects this terminal with one inside. Without one here, input and
// output are passed as they are.
func (e *Env) terminal(c *sdk.Client, id string, command sdk.Command) error {
	command.TTY = &sdk.Size{Cols: 80, Rows: 24}
	command.Stdout, command.Stderr = e.Stdout, e.Stderr
	command.Stdin = e.Stdin
	fd := int(e.Stdin.Fd())
	here := e.stdinIsTerminal()
	if here {
		if cols, rows, err := term.GetSize(fd); err == nil && cols > 0 && rows > 0 {
			command.TTY = &sdk.Size{Cols: cols, Rows: rows}
		}
		if name := e.Getenv("TERM"); name != "" && command.Env["TERM"] == "" {
			env := map[string]string{"TERM": name}
			for k, v := range command.Env {
				env[k] = v
			}
			command.Env = env
		}
	}
	p, err := c.Start(e.Context, id, command)
	if err != nil {
		return err
	}
	if !here {
		stop := forward(p)
		defer stop()
		return e.wait(id, p)
	}
	before, err := term.MakeRaw(fd)
	if err != nil {
		p.Close()
		return err
	}
	stop := e.followSize(fd, p)
	err = e.wait(id, p)
	stop()
	_ = term.Restore(fd, before)
	return err
}

// followSize tells the terminal inside when this one's size changes.
func (e *Env) followSize(fd int, p *sdk.Process) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-changed:
				if cols, rows, err := term.GetSize(fd); err == nil && cols > 0 && rows > 0 {
					_ = p.Resize(sdk.Size{Cols: cols, Rows: rows}) // lost with the connection, if at all
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(changed)
		close(done)
		wg.Wait()
	}
}
