package app

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Of a machine with less memory than that left, nothing is kept for sandboxes
// that may come.
const (
	shortMemoryShare = 20 // of the whole
	shortMemoryBytes = 256 << 20
)

// memoryShort reads the machine's figures. When they cannot be read it is short of
// nothing we know of.
func memoryShort() bool {
	total, available, err := memory()
	return err == nil && available < max(total/shortMemoryShare, shortMemoryBytes)
}

func memory() (total, available int64, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("agent: %w", err)
	}
	defer f.Close()
	total, available = -1, -1
	lines := bufio.NewScanner(f)
	for (total < 0 || available < 0) && lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		var to *int64
		switch fields[0] {
		case "MemTotal:":
			to = &total
		case "MemAvailable:":
			to = &available
		default:
			continue
		}
		kb, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("agent: %s %w", fields[0], err)
		}
		*to = kb << 10
	}
	if total < 0 || available < 0 {
		return 0, 0, fmt.Errorf("agent: /proc/meminfo does not say how much memory there is: %w", lines.Err())
	}
	return total, available, nil
}

// guestBuild names the guest daemon by its content.
func guestBuild(cfg Config, opts Options) (string, error) {
	if opts.Engines != nil || cfg.GuestBinary == "" {
		return "", nil
	}
	f, err := os.Open(cfg.GuestBinary)
	if err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
