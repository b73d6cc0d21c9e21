package cli

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/dockerignore"
	"skerry.dev/skerry/sdk"
)

// send uploads an archive, shown as it goes, and returns its id.
func send(e *Env, c *sdk.Client, name string, archive io.Reader) (string, error) {
	b := newBar(e)
	b.next(name, -1)
	defer b.done()
	made, err := c.UploadBuildContext(e.Context, b.reader(archive))
	if err != nil {
		return "", err
	}
	return made.ID, nil
}

// Bounds of waiting for a server that takes no more archives for now.
const (
	sendTries = 30
	sendPause = 2 * time.Second // where the server names none
)

// untilTaken sends again what a server has no place for at the moment.
func untilTaken(e *Env, send func() error) error {
	for try := 1; ; try++ {
		err := send()
		var refused *sdk.Error
		if try == sendTries || !errors.As(err, &refused) || refused.Code != "server_busy" {
			return err
		}
		select {
		case <-e.Context.Done():
			return err
		case <-time.After(cmp.Or(refused.RetryAfter, sendPause)):
		}
	}
}

// sendDir packs a directory on its way.
func sendDir(e *Env, c *sdk.Client, dir string) (id string, err error) {
	err = untilTaken(e, func() error {
		id, err = sendPacked(e, c, dir)
		return err
	})
	return id, err
}

var errUploadEnded = errors.New("the upload has ended")

func sendPacked(e *Env, c *sdk.Client, dir string) (string, error) {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packDir(w, dir)
		packed <- err
		w.CloseWithError(err)
	}()
	id, err := send(e, c, "context", r)
	r.CloseWithError(errUploadEnded)
	// What went wrong here says more than what the server made of it, unless it is
	// just that the server would not read on.
	if perr := <-packed; perr != nil && err != nil && !errors.Is(perr, errUploadEnded) {
		return "", perr
	}
	return id, err
}

// packDir writes a directory as a gzipped tar, without what its .dockerignore
// leaves out. Symbolic links stay links, owners stay behind.
func packDir(to io.Writer, dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, dockerignore.FileName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ignore, err := dockerignore.Parse(text)
	if err != nil {
		return err
	}
	zip, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return err
	}
	w := tar.NewWriter(zip)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, at)
		if err != nil || rel == "." {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case d.IsDir() && ignore.Prunes(name):
			return fs.SkipDir
		case ignore.Excludes(name):
			return nil
		}
		return pack(w, root, name, d)
	}); err != nil {
		return err
	}
	return errors.Join(w.Close(), zip.Close())
}

func pack(w *tar.Writer, root *os.Root, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return nil // a socket or a device is no file
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = root.Readlink(filepath.FromSlash(name)); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
	h.Format = tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(w, f, h.Size); err != nil {
		return fmt.Errorf("%s: %w (it must not change while it is packed)", name, err)
	}
	return nil
}
