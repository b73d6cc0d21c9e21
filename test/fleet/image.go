package fleet

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	content "skerry.dev/skerry/internal/artifact"
	artifactfs "skerry.dev/skerry/internal/artifact/fs"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/artifact/artifactpg"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
)

// programs are what sandboxes of a fleet find beside a shell.
var programs = []string{
	"bash", "sh", "cat", "cut", "dd", "env", "false", "head", "id", "ls", "mkdir", "mkfifo", "mv", "rm", "seq", "setsid", "sha256sum", "sleep", "sync",
	"touch", "true", "uname",
}

// publishBase makes the template "base" of a few programs of this machine: a
// whole Debian takes a minute to build and shows nothing more of a fleet.
func publishBase(ctx context.Context, pool *pgxpool.Pool, storeDir, work string) error {
	root := filepath.Join(work, "root")
	if err := Plant(root); err != nil {
		return err
	}
	file := filepath.Join(work, "base.erofs")
	if out, err := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", file, root).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	store, err := artifactfs.New(storeDir)
	if err != nil {
		return err
	}
	signer, err := transfer.NewSigner([]byte(rand.Text()+rand.Text()), clock.System{})
	if err != nil {
		return err
	}
	rows := templatepg.New(pool)
	image := artifact.New{ID: id.NewArtifact(), Team: id.PlatformTeamID, Kind: artifact.KindImage}
	if err := rows.BeginImage(ctx, image); err != nil {
		return err
	}
	handler := transfer.NewHandler(store, signer, artifactpg.New(pool), transfer.HandlerOptions{Logger: slog.New(slog.DiscardHandler)})
	server := httptest.NewServer(handler)
	defer server.Close()
	to := content.Source{URL: signer.WriteURL(server.URL, image.ID, id.Host{}, time.Hour)}
	up, err := transfer.Upload(ctx, transfer.Clients{Control: server.Client()}, to,
		[]transfer.File{{Name: content.ImageFile, Path: file}}, content.MediaTypeErofs, transfer.Options{})
	if err != nil {
		return err
	}
	t := template.Template{
		ID: id.NewTemplate(), TeamID: id.PlatformTeamID, Name: template.BaseName, Artifact: image.ID,
		ImageDigest: up.Files[content.ImageFile], ImageSizeBytes: up.SizeBytes, ManifestDigest: up.Manifest,
	}
	entry := audit.By(principal.System("fleet")).TemplateBuilt(t.TeamID, t.ID, t.Name, true)
	_, err = rows.Publish(ctx, t, entry)
	return err
}

var libraries = regexp.MustCompile(`(?m)(/\S+) \(0x`)

// Plant makes a root tree of a few programs of this machine and the libraries they
// need.
func Plant(root string) error {
	for _, dir := range []string{"bin", "dev", "etc", "home/user", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/bash\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n", "etc/hosts": "127.0.0.1 localhost\n", "etc/hostname": "sandbox\n", "etc/resolv.conf": "", "tmp/.keep": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, dir), 0o777|os.ModeSticky); err != nil {
			return err
		}
	}
	if err := os.Chown(filepath.Join(root, "home/user"), 1000, 1000); err != nil {
		return err
	}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := plantFile(path, filepath.Join(root, "bin", name)); err != nil {
			return err
		}
		needs, err := exec.Command("ldd", path).Output()
		if err != nil {
			return fmt.Errorf("ldd %s: %w", path, err)
		}
		for _, match := range libraries.FindAllSubmatch(needs, -1) {
			if err := plantFile(string(match[1]), filepath.Join(root, string(match[1]))); err != nil {
				return err
			}
		}
	}
	return nil
}

func plantFile(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}
