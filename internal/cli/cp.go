package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"skerry.dev/skerry/sdk"
)

type cpCmd struct {
	Source      string `arg:"" help:"A local path, or sb-…:path."`
	Destination string `arg:"" help:"The other kind. An existing directory, or a path that ends in /, takes the source below it."`
}

func (cmd *cpCmd) Run(e *Env, g *Globals) error {
	fromID, from, fromInside := inside(cmd.Source)
	toID, to, toInside := inside(cmd.Destination)
	if fromInside == toInside {
		return &usageError{"one of the two paths must be in a sandbox, as sb-…:path, and the other one here"}
	}
	c, err := e.client(g)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	copying := &transfer{ctx: ctx, client: c, bar: newBar(e)}
	if fromInside {
		copying.id = fromID
		err = copying.download(from, to)
	} else {
		copying.id = toID
		err = copying.upload(from, to)
	}
	copying.bar.done()
	if err != nil {
		return err
	}
	for _, s := range copying.skipped {
		fmt.Fprintf(e.Stderr, "skerry: %s was left out: it is neither a file nor a directory\n", clean(s))
	}
	fmt.Fprintf(e.Stderr, "%d files, %s\n", copying.files, size(copying.bar.total))
	return nil
}

// inside tells "sb-…:path" from a local path.
func inside(arg string) (id, path string, ok bool) {
	id, path, ok = strings.Cut(arg, ":")
	if !ok || !strings.HasPrefix(id, "sb-") || strings.Contains(id, "/") {
		return "", arg, false
	}
	if path == "" {
		path = "."
	}
	return id, path, true
}

type transfer struct {
	ctx     context.Context
	client  *sdk.Client
	id      string
	bar     *bar
	files   int
	skipped []string // neither file nor directory: links and devices are not followed
}

func (t *transfer) upload(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	if to, err = t.below(to, filepath.Base(absolute)); err != nil {
		return err
	}
	if !info.IsDir() {
		return t.put(from, to)
	}
	return filepath.WalkDir(from, func(local string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, local)
		if err != nil {
			return err
		}
		remote := path.Join(to, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			_, err := t.client.Mkdir(t.ctx, t.id, remote)
			return err
		case d.Type().IsRegular():
			return t.put(local, remote)
		}
		t.skipped = append(t.skipped, local)
		return nil
	})
}

// below is where name goes when dir is a directory inside, else dir itself.
func (t *transfer) below(dir, name string) (string, error) {
	if strings.HasSuffix(dir, "/") {
		return path.Join(dir, name), nil
	}
	entry, err := t.client.Stat(t.ctx, t.id, dir)
	var refused *sdk.Error
	switch {
	case errors.As(err, &refused) && refused.Status == 404 && refused.Code != "sandbox_not_found":
		return dir, nil
	case err != nil:
		return "", err
	case entry.Type == "directory":
		return path.Join(dir, name), nil
	}
	return dir, nil
}

func (t *transfer) put(local, remote string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t.bar.next(local, info.Size())
	if _, err := t.client.Upload(t.ctx, t.id, remote, t.bar.reader(f)); err != nil {
		return err
	}
	t.files++
	return nil
}

func (t *transfer) download(from, to string) error {
	entry, err := t.client.Stat(t.ctx, t.id, from)
	if err != nil {
		return err
	}
	if info, err := os.Stat(to); strings.HasSuffix(to, "/") || err == nil && info.IsDir() {
		name, err := localName(path.Base(entry.Path))
		if err != nil {
			return err
		}
		to = filepath.Join(to, name)
	}
	if entry.Type == "directory" {
		return t.getDir(from, to, 0)
	}
	return t.get(from, to, entry.Size)
}

// maxDepth ends a walk that a sandbox makes endless.
const maxDepth = 256

func (t *transfer) getDir(from, to string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s is more than %d directories deep", from, maxDepth)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for entry, err := range t.client.List(t.ctx, t.id, from) {
		if err != nil {
			return err
		}
		name, err := localName(entry.Name)
		if err != nil {
			return err
		}
		local, remote := filepath.Join(to, name), path.Join(from, name)
		switch entry.Type {
		case "directory":
			err = t.getDir(remote, local, depth+1)
		case "file":
			err = t.get(remote, local, entry.Size)
		default:
			t.skipped = append(t.skipped, remote)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// localName refuses a name that would leave the directory it is put in: the
// names come out of a sandbox.
func localName(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"+string(filepath.Separator)) {
		return "", fmt.Errorf("the sandbox gave %q for a file name, which is none", name)
	}
	return name, nil
}

// get writes the file beside its place and moves it there when it is whole.
func (t *transfer) get(remote, local string, expected int64) (err error) {
	body, length, err := t.client.Download(t.ctx, t.id, remote)
	if err != nil {
		return err
	}
	defer body.Close()
	if length < 0 {
		length = expected
	}
	t.bar.next(remote, length)
	if err := os.MkdirAll(filepath.Dir(local), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(local), "."+shorten(filepath.Base(local), 100)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, t.bar.reader(body)); err != nil {
		return fmt.Errorf("reading %s: %w", remote, err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), local); err != nil {
		return err
	}
	t.files++
	return nil
}

func shorten(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
