package up

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// startTime reads when a process started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field may hold spaces and brackets; what follows its last
	// bracket begins with the third.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
