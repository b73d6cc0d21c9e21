package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Names in the library's directory: one directory a build, called by its digest.
const (
	programName = "runsc"
	aboutName   = "build.json"
	newSuffix   = ".new"
	goneSuffix  = ".gone"
)

// keepUnused is how long a build stays that nothing needs: the state or the
// instance it was fetched for may still be on its way.
const keepUnused = 24 * time.Hour

// build is a runsc in the library, what it says of itself and of the processor.
type build struct {
	engine.Build

	path     string
	features []string
}

// about is what lies beside a program. The time it was last written to is when
// the build was last wanted.
type about struct {
	Version string `json:"version"`
	Digest  string `json:"digest"`
	// Source is the file it was copied from, as it was then: as long as that is
	// the same it need not be read again.
	Source string `json:"source,omitempty"`
}

// library keeps the builds. What carries its proper name is complete; that its
// bytes are right is found out before they are first run.
type library struct {
	dir    string
	source string // the program this release ships
	ask    func(ctx context.Context, program, arg string) (string, error)
	logger *slog.Logger

	mu      sync.Mutex
	opened  bool
	current *build            // once it is kept
	checked map[string]*build // by digest
	pins    map[string]int    // by digest: about to be noted by an instance
}

func newLibrary(dir, source string, ask func(context.Context, string, string) (string, error), logger *slog.Logger) *library {
	return &library{dir: dir, source: source, ask: ask, logger: logger, checked: map[string]*build{}, pins: map[string]int{}}
}

// programOf is where a build's program is, if it is kept.
func (l *library) programOf(digest string) string { return filepath.Join(l.dir, digest, programName) }

// shipped is the build of this release. It is that of the program as it was when
// it was first asked for: a program that is replaced counts from the next start,
// since it is also what this host told of itself.
func (l *library) shipped(ctx context.Context) (build, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shippedLocked(ctx)
}

func (l *library) shippedLocked(ctx context.Context) (build, error) {
	if l.current != nil {
		return *l.current, nil
	}
	b, err := l.keepLocked(ctx, l.source, engine.Build{})
	if err != nil {
		return build{}, err
	}
	l.current = &b
	return b, nil
}

// keep makes the program at path one of the builds, if it is the one wanted as
// far as that is said.
func (l *library) keep(ctx context.Context, path string, want engine.Build) (build, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.keepLocked(ctx, path, want)
}

func (l *library) keepLocked(ctx context.Context, path string, want engine.Build) (build, error) {
	if err := l.open(); err != nil {
		return build{}, err
	}
	source, err := identityOf(path)
	if err != nil {
		return build{}, fmt.Errorf("gvisor: %w", err)
	}
	digest := l.copiedFrom(source)
	if digest == "" {
		if digest, err = digestOf(ctx, path); err != nil {
			return build{}, fmt.Errorf("gvisor: %w", err)
		}
	}
	if want.Digest != "" && digest != want.Digest {
		return build{}, errs.Invalid("content_mismatch", "The engine's program is not the one its digest names.").With("digest", digest)
	}
	b, err := l.byDigest(ctx, digest)
	if errors.Is(err, engine.ErrNoBuild) {
		if err := l.install(ctx, path, about{Digest: digest, Source: source}); err != nil {
			return build{}, err
		}
		b, err = l.byDigest(ctx, digest)
	}
	if err != nil {
		return build{}, err
	}
	if want.Version != "" && b.Version != want.Version {
		return build{}, errs.Invalid("content_mismatch", "The engine's program says that it is another version than the one wanted.").
			With("version", b.Version).With("wanted", want.Version)
	}
	return b, l.touch(digest)
}

// open removes what an earlier process left half done.
func (l *library) open() error {
	if l.opened {
		return nil
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	for _, suffix := range []string{newSuffix, goneSuffix} {
		left, _ := filepath.Glob(filepath.Join(l.dir, "*"+suffix))
		for _, path := range left {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("gvisor: %w", err)
			}
		}
	}
	l.opened = true
	return nil
}

// install copies a program. It runs the copy, so that what has a name has also
// said which build it is.
func (l *library) install(ctx context.Context, path string, a about) (err error) {
	final := filepath.Join(l.dir, a.Digest)
	draft := final + newSuffix
	if err := errors.Join(os.RemoveAll(draft), os.RemoveAll(final), os.Mkdir(draft, 0o700)); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(draft)
		}
	}()
	program := filepath.Join(draft, programName)
	if err := copyProgram(path, program); err != nil {
		return fmt.Errorf("gvisor: keeping the engine's program: %w", err)
	}
	// It may just have been replaced, or written to.
	if got, err := digestOf(ctx, program); err != nil || got != a.Digest {
		return errors.Join(err, fmt.Errorf("gvisor: %s changed while it was copied", path))
	}
	if a.Version, err = l.versionOf(ctx, program); err != nil {
		return err
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return os.WriteFile(filepath.Join(draft, aboutName), b, 0o600) },
		func() error { return syncPath(filepath.Join(draft, aboutName)) },
		func() error { return syncPath(draft) },
		func() error { return os.Rename(draft, final) },
		func() error { return syncPath(l.dir) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("gvisor: %w", err)
		}
	}
	return nil
}

// byDigest finds a build and, once per process, its program as it should be.
// ErrNoBuild when it is not kept or damaged: such a one is never run.
func (l *library) byDigest(ctx context.Context, digest string) (build, error) {
	if b := l.checked[digest]; b != nil {
		if _, err := os.Stat(b.path); err == nil {
			return *b, nil
		}
		delete(l.checked, digest) // somebody removed it
	}
	a, err := l.about(digest)
	if err != nil {
		return build{}, fmt.Errorf("%w (%s: %w)", engine.ErrNoBuild, digest, err)
	}
	path := l.programOf(digest)
	switch got, err := digestOf(ctx, path); {
	case ctx.Err() != nil:
		return build{}, ctx.Err()
	case err != nil:
		return build{}, fmt.Errorf("%w (%s: %w)", engine.ErrNoBuild, a.Version, err)
	case got != digest:
		l.logger.Error("a kept program of the engine is damaged", "version", a.Version, "digest", digest, "found", got)
		return build{}, fmt.Errorf("%w (%s: its program is damaged)", engine.ErrNoBuild, a.Version)
	}
	// The list gVisor itself compares; what the kernel calls features has its
	// own inventions among them.
	said, err := l.ask(ctx, path, "cpu-features")
	if err != nil {
		return build{}, err
	}
	b := build{
		Build: engine.Build{Version: a.Version, Digest: digest}, path: path,
		features: strings.FieldsFunc(said, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }),
	}
	slices.Sort(b.features)
	l.checked[digest] = &b
	return b, nil
}

func (l *library) about(digest string) (a about, err error) {
	raw, err := os.ReadFile(filepath.Join(l.dir, digest, aboutName))
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err == nil && (a.Digest != digest || a.Version == "") {
		err = errors.New("it is described as another build")
	}
	return a, err
}

func (l *library) versionOf(ctx context.Context, program string) (string, error) {
	said, err := l.ask(ctx, program, "--version")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(said, "\n")
	version, ok := strings.CutPrefix(first, "runsc version ")
	if !ok {
		return "", fmt.Errorf("gvisor: runsc --version says %q", first)
	}
	return version, nil
}

// take finds a build by its version, or the shipped one where that is empty, and
// keeps it from being removed until leave.
func (l *library) take(ctx context.Context, version string) (b build, leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err = l.shippedLocked(ctx)
	if version != "" && (err != nil || b.Version != version) {
		b, err = l.byVersion(ctx, version)
	}
	if err != nil {
		return build{}, nil, err
	}
	l.pins[b.Digest]++
	return b, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.pins[b.Digest]--; l.pins[b.Digest] == 0 {
			delete(l.pins, b.Digest)
		}
	}, nil
}

func (l *library) byVersion(ctx context.Context, version string) (build, error) {
	all, err := l.list()
	if err != nil {
		return build{}, err
	}
	ours := "unknown"
	if l.current != nil {
		ours = l.current.Version
	}
	err = fmt.Errorf("%w (%s; the current one is %s)", engine.ErrNoBuild, version, ours)
	for _, a := range all {
		if a.Version != version {
			continue
		}
		var b build
		if b, err = l.byDigest(ctx, a.Digest); err == nil {
			return b, l.touch(b.Digest)
		}
	}
	return build{}, err
}

// list is what is kept, by digest.
func (l *library) list() ([]about, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	var out []about
	for _, entry := range entries {
		if a, err := l.about(entry.Name()); err == nil {
			out = append(out, a)
		}
	}
	return out, nil
}

// sweep removes what nobody needs. Nothing comes to be needed meanwhile: who
// takes a build waits.
func (l *library) sweep(digests func() (map[string]bool, error), versions func() map[string]bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	all, err := l.list()
	if err != nil || len(all) < 2 || l.current == nil {
		return err
	}
	// Instances first: one that is paused meanwhile is a state by then.
	inUse, err := digests()
	if err != nil {
		return err
	}
	saved := versions()
	var failed []error
	for _, a := range all {
		dir := filepath.Join(l.dir, a.Digest)
		wanted, err := os.Stat(filepath.Join(dir, aboutName))
		if err != nil || a.Digest == l.current.Digest || l.pins[a.Digest] > 0 || inUse[a.Digest] || saved[a.Version] ||
			time.Since(wanted.ModTime()) < keepUnused {
			continue
		}
		delete(l.checked, a.Digest)
		l.logger.Info("an engine's build that nothing needs is removed", "version", a.Version, "digest", a.Digest)
		failed = append(failed, os.Rename(dir, dir+goneSuffix), os.RemoveAll(dir+goneSuffix))
	}
	return errors.Join(failed...)
}

// touch notes that a build was wanted.
func (l *library) touch(digest string) error {
	now := time.Now()
	if err := os.Chtimes(filepath.Join(l.dir, digest, aboutName), now, now); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	return nil
}

// copiedFrom is the digest of the build that was copied from a file that is still
// the same.
func (l *library) copiedFrom(source string) string {
	all, _ := l.list() // without it the file is read
	for _, a := range all {
		if a.Source == source {
			return a.Digest
		}
	}
	return ""
}

// identityOf is what changes whenever somebody writes to a file or replaces it.
func identityOf(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Sprint(st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()), nil
}

func digestOf(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		_, _ = h.Write(buf[:n]) // never fails
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return "", err
		}
	}
}

// copyProgram copies and flushes. The sentry runs it as nobody.
func copyProgram(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o555), out.Sync(), out.Close())
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
