// Command skerry-guest is the daemon inside every sandbox. As the first process
// it reads its start document from descriptor 0 and keeps `skerry-guest serve`
// alive, which does all the work.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"skerry.dev/skerry/internal/guest/app"
	"skerry.dev/skerry/internal/guest/extract"
	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/guest/initd"
)

func main() {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch {
	case len(os.Args) == 1:
		err = initd.Run(log)
	case len(os.Args) == 2 && os.Args[1] == "serve":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		err = app.Serve(ctx, os.Stdin, log)
		stop()
	case len(os.Args) == 2 && os.Args[1] == "version":
		fmt.Println(guestapi.ProtocolVersion)
	case len(os.Args) > 2 && os.Args[1] == extract.Command:
		var job extract.Job
		if job, err = extract.Parse(os.Args[2:]); err == nil {
			err = job.Run(bufio.NewReaderSize(os.Stdin, 1<<20))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: skerry-guest [serve | version | extract …]")
		os.Exit(2)
	}
	if err != nil {
		log.Error("ended", "error", err)
		os.Exit(1)
	}
}
