package fleet

import (
	"io"
	"os"
	"os/exec"
	"syscall"
)

// sweep removes what a fleet without a master left: when standard input ends,
// every process that names its directory, its links, its control groups, its
// files. After a purge there is nothing of it.
const sweep = `trap '' INT TERM HUP
exec 2>/dev/null
cat >/dev/null
[ -d "$FLEET" ] || exit 0
i=0
while [ $i -lt 100 ]; do
	found=
	for p in /proc/[0-9]*; do
		if tr '\0' ' ' <"$p/cmdline" | grep -qF "$FLEET"; then
			kill -9 "${p#/proc/}"
			found=1
		fi
	done
	[ -n "$found" ] || break
	i=$((i+1))
	sleep 0.1
done
for link in /sys/class/net/"$BRIDGE"*; do
	ip link del "${link##*/}"
done
for file in "$FLEET"/h*/agent/tag; do
	tag=$(cat "$file") && [ -n "$tag" ] || continue
	for group in /sys/fs/cgroup/skerry-"$tag" /sys/fs/cgroup/*/skerry-"$tag"; do
		[ -d "$group" ] && find "$group" -depth -type d -exec rmdir {} \;
	done
done
rm -rf "$FLEET"`

// guard is a shell that outlives this process by a moment, however it ends.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func newGuard(dir, bridge string) (*guard, error) {
	g := &guard{cmd: exec.Command("/bin/sh", "-c", sweep)}
	g.cmd.Dir = "/"
	g.cmd.Env = append(os.Environ(), "FLEET="+dir, "BRIDGE="+bridge, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if g.pipe, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return g, g.cmd.Start()
}

// close lets it look once, and waits for it.
func (g *guard) close() error {
	_ = g.pipe.Close()
	return g.cmd.Wait()
}
