package app

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/template/build"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// openBuilds makes the room of builds. It comes after sandboxes and artifacts.
func (c *control) openBuilds(agents *hostlink.Agents) error {
	scratch, err := c.openScratch()
	if err != nil {
		return fmt.Errorf("SKERRY_SCRATCH: %w", err)
	}
	store, bytes := templatepg.NewBuilds(c.pool), int64(c.cfg.MaxContextMB)<<20
	stored := storedContexts{c.artifacts, c.local()}
	c.io = sandboxio.New(hostlink.NewTargets(c.sandboxes, c.links), c.log, sandboxio.Options{})
	c.buildFeed = build.NewFeed(store, c.log)
	c.builder = build.NewDriver(build.Ports{
		Store: store, Agents: agents, Sandboxes: c.sandboxes, Guests: guests{c.io}, Templates: c.templates, Artifacts: stored, Feed: c.buildFeed, Secret: c.cfg.secret,
	}, build.Config{Scratch: scratch, MaxContextBytes: bytes}, c.log)
	c.builds = build.NewService(store, c.templates, stored, c.buildFeed, c.builder, c.cfg.secret, build.ServiceConfig{Scratch: scratch, MaxContextBytes: bytes}, c.log)
	c.buildSweep = build.NewSweep(store, c.sandboxes, c.log)
	return nil
}

// openScratch makes a directory of this run's own, and removes those of runs that
// are no more: each holds a lock on its directory while it lives.
func (c *control) openScratch() (string, error) {
	if err := os.MkdirAll(c.cfg.Scratch, 0o700); err != nil {
		return "", err
	}
	former, err := filepath.Glob(filepath.Join(c.cfg.Scratch, "run-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range former {
		if lock, err := lockDir(dir); err == nil {
			err := os.RemoveAll(dir)
			if err := errors.Join(err, lock.Close()); err != nil {
				return "", err
			}
		}
	}
	dir, err := os.MkdirTemp(c.cfg.Scratch, "run-*")
	if err != nil {
		return "", err
	}
	c.scratch, err = lockDir(dir)
	return dir, err
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// closeScratch removes what is left in this run's directory.
func (c *control) closeScratch() {
	if c.scratch != nil {
		_ = os.RemoveAll(c.scratch.Name()) // the next run tries again
		c.scratch.Close()
	}
}

// storedContexts is the store as builds see it.
type storedContexts struct {
	*artifact.Service
	clients transfer.Clients
}

// PutContext implements build.Artifacts.
func (s storedContexts) PutContext(ctx context.Context, to content.Source, file string) error {
	_, err := transfer.Upload(ctx, s.clients, to, []transfer.File{{Name: content.ContextFile, Path: file}}, content.MediaTypeContext, transfer.Options{Parallel: 2})
	return err
}

// FetchContext implements build.Artifacts.
func (s storedContexts) FetchContext(ctx context.Context, from content.Source, digest content.Digest, file string, maxBytes int64) error {
	want := transfer.Want{MediaType: content.MediaTypeContext, Files: map[string]content.Digest{content.ContextFile: digest}}
	return transfer.Fetch(ctx, s.clients, from, want, transfer.At(content.ContextFile, file), transfer.Options{Parallel: 2, MaxBytes: maxBytes})
}

// inputPiece is how much of a command's input travels at once, in bytes.
const inputPiece = 256 << 10

// guests is the way into the sandboxes of builds.
type guests struct{ io *sandboxio.Service }

// builder acts for a team's builds; their sandboxes are seen by nobody else.
func builder(team id.Team) principal.Principal {
	by := principal.System("build")
	by.HasTeam, by.TeamID = true, team
	return by
}

// Run implements build.Guests.
func (g guests) Run(ctx context.Context, team id.Team, x id.Sandbox, c build.Command, input func(ctx context.Context, w io.Writer) error, out func(stream string, data []byte)) (int, error) {
	s, err := g.io.Open(ctx, builder(team), x)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	if _, err := s.Start(sandboxio.StartRequest{
		Command: sandboxio.Command{Cmd: c.Cmd, Args: c.Args, Env: c.Env, Cwd: c.Cwd, User: c.User}, Stdin: input != nil,
	}); err != nil {
		return 0, err
	}
	fed := make(chan error, 1)
	if input == nil {
		fed <- nil
	} else {
		fctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		defer func() { stop(); <-done }()
		go func() {
			defer close(done)
			w := bufio.NewWriterSize(inputOf{fctx, s}, inputPiece) // a call for each
			err := input(fctx, w)
			if err == nil {
				err = w.Flush()
			}
			if err == nil {
				err = s.CloseStdin(fctx)
			}
			if err != nil && fctx.Err() == nil {
				_ = s.Signal(fctx, "SIGKILL") // it would wait for the rest for ever
			}
			fed <- err
		}()
	}
	for {
		ev, err := s.Next()
		switch {
		case err != nil:
			return 0, err
		case ev.Exit != nil:
			// A command that failed has said why; that it read no more is no news.
			if ev.Exit.Code != 0 {
				select {
				case err := <-fed:
					if err != nil && ev.Exit.Code == 137 {
						return 0, err
					}
				default:
				}
				return ev.Exit.Code, nil
			}
			// One that has read what it needs may end before its input does.
			if err := <-fed; err != nil && !errs.Is(err, "exec_not_found") && !errs.Is(err, "input_closed") {
				return 0, err
			}
			return 0, nil
		case ev.From == sandboxio.Stderr:
			out(build.Stderr, ev.Data)
		case ev.Data != nil:
			out(build.Stdout, ev.Data)
		}
	}
}

// inputOf writes what a command reads.
type inputOf struct {
	ctx     context.Context
	session *sandboxio.Session
}

// Write implements io.Writer.
func (w inputOf) Write(b []byte) (int, error) {
	if err := w.session.Input(w.ctx, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Read implements build.Guests.
func (g guests) Read(ctx context.Context, team id.Team, x id.Sandbox, path string, limit int64) ([]byte, error) {
	d, err := g.io.DownloadFile(ctx, builder(team), x, sandboxio.Place{Path: path, User: "root"}, sandboxio.Conditions{})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(io.LimitReader(d, limit))
}
