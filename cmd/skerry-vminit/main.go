// Command skerry-vminit is the first process of a microVM, in its initramfs.
package main

import (
	"fmt"
	"os"
	"time"

	"skerry.dev/skerry/internal/guest/vminit"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == vminit.WorkloadCommand {
		vminit.Workload() // does not return but by an error, which it has told
		os.Exit(127)
	}
	fmt.Fprintln(os.Stderr, "skerry: the machine cannot go on:", vminit.Run())
	// The console is slower than this process.
	<-time.After(100 * time.Millisecond)
	_ = vminit.Off()
}
