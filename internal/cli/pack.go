package cli

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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

// sendDir packs a directory on its way.
func sendDir(e *Env, c *sdk.Client, dir string) (string, error) {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packDir(w, dir)
		packed <- err
		w.CloseWithError(err)
	}()
	id, err := send(e, c, "context", r)
	r.CloseWithError(errors.New("the upload has ended"))
	// What went wrong here says more than what the server made of it.
	if perr := <-packed; perr != nil && err != nil {
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
