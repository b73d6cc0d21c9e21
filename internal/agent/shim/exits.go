package shim

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// exitLog is the record of ended processes: JSON lines, synced before anybody
// is told, the newest max of them kept. An agent that was away reads here what
// it missed.
type exitLog struct {
	path string
	max  int

	mu      sync.Mutex
	file    *os.File
	records []Exit
	lines   int // in the file, the dropped ones included
	seq     int64
}

func openExitLog(path string, max int) (*exitLog, error) {
	l := &exitLog{path: path, max: max}
	if err := l.load(); err != nil {
		return nil, err
	}
	// Always start from a whole file: a torn last line goes away here.
	if err := l.rewrite(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *exitLog) load() error {
	f, err := os.Open(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("shim: exit log: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e Exit
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue // torn by a crash in mid-write
		}
		l.records = append(l.records, e)
		l.seq = max(l.seq, e.Seq)
		if len(l.records) > 2*l.max {
			l.records = append(l.records[:0], l.records[len(l.records)-l.max:]...)
		}
	}
	return lines.Err()
}

// rewrite replaces the file by one with the newest records only.
func (l *exitLog) rewrite() error {
	if len(l.records) > l.max {
		l.records = append([]Exit(nil), l.records[len(l.records)-l.max:]...)
	}
	tmp, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("shim: exit log: %w", err)
	}
	w := bufio.NewWriter(tmp)
	enc := json.NewEncoder(w)
	for _, e := range l.records {
		err = errors.Join(err, enc.Encode(e))
	}
	if err = errors.Join(err, w.Flush(), tmp.Sync()); err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		_ = tmp.Close()
		return fmt.Errorf("shim: exit log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.lines = tmp, len(l.records)
	return nil
}

// add numbers the record, makes it durable and returns it. The record counts
// even when the disk refuses it: then only a restart of the shim forgets it.
func (l *exitLog) add(e Exit) (Exit, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	e.Seq, e.At = l.seq, time.Now().UTC()
	l.records = append(l.records, e)
	line, err := json.Marshal(e)
	if err != nil {
		return e, err
	}
	if _, err = l.file.Write(append(line, '\n')); err == nil {
		err = fdatasync(l.file)
	}
	l.lines++
	if l.lines >= 2*l.max {
		err = errors.Join(err, l.rewrite())
	}
	return e, err
}

func (l *exitLog) since(seq int64) []Exit {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Exit
	for _, e := range l.records {
		if e.Seq > seq {
			out = append(out, e)
		}
	}
	return out[max(0, len(out)-l.max):]
}

// find returns the newest record of exactly this process.
func (l *exitLog) find(p Process) (Exit, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.records) - 1; i >= 0; i-- {
		if l.records[i].Process == p {
			return l.records[i], true
		}
	}
	return Exit{}, false
}

func (l *exitLog) last() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

func (l *exitLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
