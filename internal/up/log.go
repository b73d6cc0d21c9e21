package up

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// logMax is when a log becomes <name>.1 and a new one begins.
const logMax = 8 << 20

// logFile is a log of bounded size. A full disk loses lines and stops nobody.
type logFile struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write never fails: a daemon must not end because its log cannot be written.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil && l.size+int64(len(b)) > logMax {
		_ = l.file.Close()
		l.file = nil
		_ = os.Rename(l.path, l.path+".1")
	}
	if l.file == nil && l.open() != nil {
		return len(b), nil
	}
	n, _ := l.file.Write(b)
	l.size += int64(n)
	return len(b), nil
}

// tail returns the last lines.
func (l *logFile) tail(lines int) string {
	raw, err := os.ReadFile(l.path)
	if err != nil {
		return err.Error()
	}
	raw = bytes.TrimSpace(raw[max(0, len(raw)-16<<10):])
	all := strings.Split(string(raw), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}
