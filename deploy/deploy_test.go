// Package deploy_test builds the Debian package and takes it apart: what is in
// it, whether systemd understands its units, and whether it can be installed,
// upgraded and removed.
package deploy_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/testkit"
)

// run returns what a command prints.
func run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// built is the package of this checkout, made once.
func built(t *testing.T) string {
	t.Helper()
	testkit.Runsc(t)
	for _, tool := range []string{"dpkg-deb", "git"} {
		if _, err := exec.LookPath(tool); err != nil {
			testkit.Missing(t, tool, "not installed")
		}
	}
	return strings.TrimSpace(run(t, "..", "tools/deb.sh", t.TempDir()))
}

func TestO2_ThePackageHoldsWhatAHostNeeds(t *testing.T) {
	deb := built(t)
	got := map[string]string{} // path → mode and owner
	for line := range strings.Lines(run(t, "", "dpkg-deb", "-c", deb)) {
		fields := strings.Fields(line)
		if name := strings.TrimPrefix(fields[5], "."); !strings.HasSuffix(name, "/") {
			got[strings.Join(append([]string{name}, fields[6:]...), " ")] = fields[0] + " " + fields[1]
		}
	}
	const program, file = "-rwxr-xr-x root/root", "-rw-r--r-- root/root"
	want := map[string]string{
		"/usr/lib/skerry/skerry": program, "/usr/lib/skerry/skerry-guest": program, "/usr/lib/skerry/runsc": program,
		"/usr/bin/skerry -> /usr/lib/skerry/skerry": "l--------- root/root",
		"/lib/systemd/system/skerry.slice":          file, "/lib/systemd/system/skerry-agent.service": file, "/lib/systemd/system/skerry-server.service": file,
		"/usr/share/doc/skerry/examples/agent.env": file, "/usr/share/doc/skerry/examples/server.env": file,
		"/usr/share/doc/skerry/settings.md": file, "/usr/share/doc/skerry/hosts.md": file, "/usr/share/doc/skerry/copyright": file,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for field, want := range map[string]string{"Package": `^skerry$`, "Version": `^[0-9]`, "Depends": `nftables`, "Architecture": `^(amd64|arm64)$`} {
		if got := strings.TrimSpace(run(t, "", "dpkg-deb", "-f", deb, field)); !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s is %q", field, got)
		}
	}
	again := built(t)
	for filepath.Base(again) != filepath.Base(deb) { // of another commit
		deb, again = again, built(t)
	}
	if a, b := run(t, "", "sha256sum", deb), run(t, "", "sha256sum", again); a[:64] != b[:64] {
		t.Error("built twice, it is another package")
	}
}

// units are the files systemd reads.
func units(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("systemd/*")
	if err != nil || len(paths) != 3 {
		t.Fatalf("%v, %v", paths, err)
	}
	all := map[string]string{}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = string(raw)
	}
	return all
}

func TestH15_TheAgentsUnitLeavesSandboxesAlone(t *testing.T) {
	agent := units(t)["skerry-agent.service"]
	for _, line := range []string{
		"KillMode=process", "Slice=skerry.slice", "Restart=always", "RestartPreventExitStatus=0 78", "OOMPolicy=continue", "TasksMax=infinity",
	} {
		if !slices.Contains(strings.Split(agent, "\n"), line) {
			t.Errorf("the agent's unit lacks %s", line)
		}
	}
	// Each of these is a mount namespace of its own, which the next start does not
	// share.
	if own := regexp.MustCompile(`(?m)^(Private(Tmp|Devices|Mounts)|Protect\w+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths|RootDirectory|TemporaryFileSystem|BindPaths|BindReadOnlyPaths|DynamicUser)=.*`).
		FindString(agent); own != "" {
		t.Errorf("the agent's unit has %s: mounts of sandboxes would be lost with a restart", own)
	}
}

func TestO2_SystemdUnderstandsTheUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		testkit.Missing(t, "systemd-analyze", "not installed")
	}
	self, err := os.Executable() // a program that is there
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var paths []string
	for name, text := range units(t) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "/usr/bin/skerry ", self+" ")), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	verify := func(paths ...string) string {
		cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, paths...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		var ours []string // not what it says of the machine's own
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, dir) || strings.Contains(line, "skerry") || strings.Contains(line, "exit status") {
				ours = append(ours, line)
			}
		}
		return strings.Join(ours, "")
	}
	if said := verify(paths...); said != "" {
		t.Error(said)
	}
	wrong := filepath.Join(dir, "skerry-wrong.service")
	if err := os.WriteFile(wrong, []byte("[Service]\nExecStart="+self+" x\nKillMod=process\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if verify(wrong) == "" {
		t.Error("a wrong unit passes")
	}
}

// install is a trial on a copy of this machine's files that is thrown away.
const install = `
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --bind /proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
mkdir -p "$1/root/run" "$1/root/mnt"
mount -t tmpfs none "$1/root/run"
cp "$2" "$1/root/mnt/skerry.deb"
inside() { PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive chroot "$1/root" /bin/sh -ec "$2" 2>&1; }
root=$1
echo "== installed"
inside "$root" 'rm -rf /etc/skerry; dpkg -i /mnt/skerry.deb >/dev/null; skerry version; runsc=$(readlink -f "$(command -v skerry)"); ls "${runsc%/*}" | tr "\n" " "; getent passwd skerry | cut -d: -f1,7; stat -c %a /etc/skerry'
echo "== settings"
inside "$root" 'skerry doctor --quick --data /var/lib/skerry --host-listen 127.0.0.1:0 -o json | grep -c /usr/lib/skerry/'
echo "== upgraded"
inside "$root" 'echo A=1 >/etc/skerry/agent.env; mkdir -p /var/lib/skerry/agent; echo tag >/var/lib/skerry/agent/tag; dpkg -i /mnt/skerry.deb >/dev/null; cat /etc/skerry/agent.env'
echo "== removed"
inside "$root" 'dpkg -r skerry | grep "skerry down --purge" || echo no word; command -v skerry || echo no program; cat /etc/skerry/agent.env /var/lib/skerry/agent/tag'
echo "== purged"
inside "$root" 'dpkg -P skerry >/dev/null; test ! -e /etc/skerry && echo no settings; cat /var/lib/skerry/agent/tag; ls /usr/lib/skerry 2>/dev/null || echo no programs'
`

func TestO2_ThePackageIsInstalledUpgradedAndRemoved(t *testing.T) {
	testkit.Root(t)
	for _, tool := range []string{"dpkg", "unshare", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			testkit.Missing(t, tool, "not installed")
		}
	}
	deb := built(t)
	out := run(t, "", "unshare", "--mount", "--propagation", "private", "bash", "-c", install, "install", t.TempDir(), deb)
	got := map[string]string{}
	for part := range strings.SplitSeq(out, "== ") {
		name, text, _ := strings.Cut(part, "\n")
		got[name] = text
	}
	for part, want := range map[string]string{
		"installed": `(?s)skerry .*runsc skerry skerry-guest skerry:/usr/sbin/nologin\n755\n`,
		"settings":  `^2\n$`,
		"upgraded":  `(?m)^A=1\n`,
		"removed":   `(?s)skerry down --purge.*no program\nA=1\ntag\n`,
		"purged":    `(?s)no settings\ntag\nno programs\n`,
	} {
		if !regexp.MustCompile(want).MatchString(got[part]) {
			t.Errorf("%s: %q does not match %s", part, got[part], want)
		}
	}
}
