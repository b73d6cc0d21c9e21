package manager

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"skerry.dev/skerry/internal/kernel/id"
)

// MaxLogs is how much of a console Logs returns.
const MaxLogs = 1 << 20

// consoleLogs are where engines let the shim keep what the console says, below
// the instance's directory, the older part first.
func consoleLogs() []string { return []string{"console.log.1", "console.log"} }

// Logs returns the end of what the sandbox's console has said, at most MaxLogs
// bytes, and whether that is not all. Reasons: unknown_sandbox,
// stale_incarnation, sandbox_not_running.
func (m *Manager) Logs(_ context.Context, sandbox id.Sandbox, incarnation uint64) (text []byte, truncated bool, err error) {
	rec, _, err := m.find(sandbox, incarnation)
	if err != nil {
		return nil, false, err
	}
	for _, name := range consoleLogs() {
		part, cut, err := tail(filepath.Join(m.workDir(rec), name), MaxLogs)
		if err != nil {
			return nil, false, err
		}
		text, truncated = append(text, part...), truncated || cut
	}
	if len(text) > MaxLogs {
		text, truncated = text[len(text)-MaxLogs:], true
	}
	return text, truncated, nil
}

// tail reads the end of a file, and nothing of one that is not there.
func tail(path string, most int64) (text []byte, cut bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, false, err
	}
	from := max(end-most, 0)
	text, err = io.ReadAll(io.NewSectionReader(f, from, most))
	return text, from > 0, err
}
