package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/term"

	"skerry.dev/skerry/internal/backup"
	"skerry.dev/skerry/internal/cli"
	controlapp "skerry.dev/skerry/internal/control/app"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/pg"
	"skerry.dev/skerry/internal/up"
)

// place is an installation, as the server's settings name it; left out, the one
// that `skerry up` runs on this machine.
type place struct {
	DatabaseURL string `help:"The server's PostgreSQL (default: the one of skerry up)." env:"DATABASE_URL" placeholder:"URL"`
	Secret      string `help:"The server's secret (default: the one of skerry up)." env:"SKERRY_SECRET" placeholder:"SECRET"`
	Store       string `help:"Where saved states and images are kept (default: store in the data directory)." env:"SKERRY_STORE,SKERRY_STORE_DIR" placeholder:"WHERE"`
	S3AccessKey string `name:"s3-access-key" help:"Of a bucket." env:"SKERRY_S3_ACCESS_KEY" placeholder:"KEY"`
	S3SecretKey string `name:"s3-secret-key" help:"Of a bucket." env:"SKERRY_S3_SECRET_KEY" placeholder:"SECRET"`
}

// open finds the installation. A private PostgreSQL is started if it does not
// run, and goes on running.
func (x place) open(ctx context.Context, data string) (backup.Installation, error) {
	to := backup.Installation{DatabaseURL: x.DatabaseURL, Secret: strings.TrimSpace(x.Secret)}
	var err error
	if to.Store, err = controlapp.OpenStore(controlapp.Config{Store: x.Store, S3AccessKey: x.S3AccessKey, S3SecretKey: x.S3SecretKey}.Defaults(data)); err != nil {
		return to, err
	}
	if to.DatabaseURL == "" {
		to.DatabaseURL, err = (&pg.Cluster{Dir: up.PrivateDatabase(data)}).Start(ctx)
	}
	return to, err
}

type backupCmd struct {
	Dir     string `arg:"" help:"A directory to make; it must not exist."`
	Objects bool   `help:"Copy the bytes of the store, too. Without it the store must be kept by other means."`
	place
}

func (cmd *backupCmd) Run(e *cli.Env, p *program) error {
	data, dir, err := directories(p, cmd.Dir)
	if err != nil {
		return err
	}
	if err := cmd.there(data); err != nil {
		return err
	}
	if cmd.Secret == "" && cmd.DatabaseURL == "" {
		raw, err := os.ReadFile(up.SecretFile(data))
		if err != nil {
			return err
		}
		cmd.Secret = string(raw)
	}
	if cmd.Secret == "" {
		return errors.New("the secret is missing: set SKERRY_SECRET")
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	from, err := cmd.open(ctx, data)
	if err != nil {
		return err
	}
	about, err := backup.Write(ctx, from, dir, backup.Options{Objects: cmd.Objects, Program: release(), Progress: counted(e)})
	if err != nil {
		return err
	}
	kept := "listed"
	if about.WithObjects {
		kept = "copied"
	}
	fmt.Fprintf(e.Stdout, "%s: the database, the secret, and %d objects of %d bytes, %s.\n", dir, about.Objects, about.Bytes, kept)
	if about.Missing > 0 {
		return fmt.Errorf("the backup is whole, but %d objects that the database names are not in the store: what consists of them is lost", about.Missing)
	}
	return nil
}

type restoreCmd struct {
	Dir string `arg:"" help:"What skerry backup made."`
	place
}

func (cmd *restoreCmd) Run(e *cli.Env, p *program) error {
	data, dir, err := directories(p, cmd.Dir)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if cmd.DatabaseURL == "" {
		secret, err := backup.Secret(dir)
		if err != nil {
			return err
		}
		if err := up.AdoptSecret(data, secret); err != nil {
			return err
		}
	}
	to, err := cmd.open(ctx, data)
	if err != nil {
		return err
	}
	got, err := backup.Restore(ctx, dir, to, backup.Options{Progress: counted(e)})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "The database is as it was at %s. Of %d objects %d were brought to the store.\n",
		got.MadeAt.Format("2006-01-02 15:04:05 MST"), got.Objects, got.Brought)
	if cmd.DatabaseURL != "" {
		fmt.Fprintf(e.Stdout, "Start the servers with the secret in %s.\n", filepath.Join(dir, "secret"))
	}
	if got.StillMissing > 0 {
		return fmt.Errorf("the database is restored, but %d objects that it names are not in the store: what consists of them is refused by name", got.StillMissing)
	}
	return nil
}

type storeCmd struct {
	Check storeCheckCmd `cmd:"" help:"Compare the store with the database, while everything runs: what is missing, and what nobody knows."`
}

type storeCheckCmd struct {
	place
	Contents bool `help:"Read every object and compare it with its hash, too."`
	Mend     bool `help:"Have what is missing or damaged brought again by hosts that still have it."`
}

func (cmd *storeCheckCmd) Run(e *cli.Env, p *program) error {
	data, err := p.dataDir()
	if err != nil {
		return err
	}
	if err := cmd.there(data); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(e.Context, os.Interrupt, syscall.SIGTERM)
	defer stop()
	at, err := cmd.open(ctx, data)
	if err != nil {
		return err
	}
	got, err := controlapp.CheckStore(ctx, at.DatabaseURL, at.Store, artifact.Depth{Contents: cmd.Contents, Mend: cmd.Mend}, func(f artifact.Fault) {
		what := "unknown"
		switch {
		case f.Missing:
			what = "missing"
		case f.Damaged:
			what = "damaged"
		}
		fmt.Fprintf(e.Stdout, "%s %s\n", what, f.Key)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.Stdout, "%d objects of %d bytes; %d are missing, %d damaged, %d nobody knows.\n", got.Objects, got.Bytes, got.Missing, got.Damaged, got.Unknown)
	switch {
	case got.Missing+got.Damaged == 0:
		return nil
	case cmd.Mend:
		return errors.New("what hosts still have of the missing and damaged objects is brought again; check once more in a while")
	}
	return errors.New("what consists of the missing and damaged objects cannot be read; --mend has it brought again by hosts that still have it")
}

// there says whether this machine has what the settings leave out.
func (x place) there(data string) error {
	if x.DatabaseURL != "" {
		return nil
	}
	if _, err := os.Stat(up.PrivateDatabase(data)); err != nil {
		return fmt.Errorf("there is nothing of `skerry up` in %s: set DATABASE_URL, or --data", data)
	}
	return nil
}

func directories(p *program, dir string) (data, abs string, err error) {
	if data, err = p.dataDir(); err != nil {
		return "", "", err
	}
	abs, err = filepath.Abs(dir)
	return data, abs, err
}

// counted shows, on a terminal, how many objects were looked at.
func counted(e *cli.Env) func(int64) {
	f, ok := e.Stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return func(done int64) { fmt.Fprintf(f, "\r\x1b[K%d objects\r", done) }
}
