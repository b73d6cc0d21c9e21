package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Holds counts what an agent on dataDir holds for sandboxes: instances and saved
// states, complete or not. It looks at the disk alone, whether the agent runs or
// not, and changes nothing.
func Holds(dataDir string) (n int, err error) {
	for _, dir := range []string{instancesDir(dataDir), statesDir(Config{DataDir: dataDir})} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("agent: %w", err)
		}
		n += len(entries)
	}
	return n, nil
}

func instancesDir(dataDir string) string { return filepath.Join(dataDir, "instances") }
