package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Holds counts what an agent on dataDir holds for sandboxes: instances and saved
// states, complete or not. Instances that wait for a sandbox are nobody's. It looks
// at the disk alone, whether the agent runs or not, and changes nothing.
func Holds(dataDir string) (n int, err error) {
	for _, dir := range []string{instancesDir(dataDir), statesDir(Config{DataDir: dataDir})} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("agent: %w", err)
		}
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(warmDir(dataDir), e.Name())); errors.Is(err, fs.ErrNotExist) {
				n++
			}
		}
	}
	return n, nil
}

func warmDir(dataDir string) string { return filepath.Join(dataDir, "warm") }

func instancesDir(dataDir string) string { return filepath.Join(dataDir, "instances") }
