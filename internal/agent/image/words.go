package image

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

// megabytes and rate are sizes for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

func rate(n int64, in time.Duration) string {
	return fmt.Sprintf("%s in %.1f s (%.0f MB/s)", megabytes(n), in.Seconds(), float64(n)/1e6/max(in.Seconds(), 1e-3))
}

// fullDisk says in words when the disk is; programs say it in theirs.
func fullDisk(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || strings.Contains(strings.ToLower(err.Error()), unix.ENOSPC.Error()) {
		return errs.Exhausted("disk_full", "This host's disk is full. Make room on it, or use a smaller image.").Because(err)
	}
	return err
}
