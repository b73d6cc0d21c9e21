package initd

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/guest/rawfile"
)

// WriteIdentity writes the host name and the resolver below root ("/" outside
// tests). Without the name in /etc/hosts, sudo and git ask a name server for it
// and hang for seconds. Empty values leave what is there, and so does everything
// else that users wrote to /etc/hosts, or to an /etc/resolv.conf that already
// names the resolver. Repeating it is harmless.
func WriteIdentity(root, hostname, nameserver string) error {
	var errs []error
	if hostname != "" {
		if !validHostname(hostname) {
			return fmt.Errorf("host name %q is not valid", hostname)
		}
		path := filepath.Join(root, "etc/hosts")
		errs = append(errs, rawfile.Replace(filepath.Join(root, "etc/hostname"), hostname+"\n"), rawfile.Replace(path, hostsWith(small(path), hostname)))
	}
	if nameserver != "" {
		addr, err := netip.ParseAddr(nameserver)
		if err != nil {
			return fmt.Errorf("name server: %w", err)
		}
		path := filepath.Join(root, "etc/resolv.conf")
		if line := "nameserver " + addr.String(); !onlyNameserver(small(path), line) {
			errs = append(errs, rawfile.Replace(path, line+"\n"))
		}
	}
	return errors.Join(errs...)
}

// ownName is the address under which the sandbox finds its own name.
const ownName = "127.0.1.1"

// hostsWith is an /etc/hosts that gives ownName the host name and is else as it
// was, or the usual one.
func hostsWith(old, hostname string) string {
	own := ownName + " " + hostname
	if !strings.Contains(old, "localhost") {
		return "127.0.0.1 localhost\n" + own + "\n::1 localhost ip6-localhost ip6-loopback\n"
	}
	var b strings.Builder
	written := false
	for line := range strings.Lines(old) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == ownName {
			if !written {
				b.WriteString(own + "\n")
			}
			written = true
			continue
		}
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	if !written {
		b.WriteString(own + "\n")
	}
	return b.String()
}

func onlyNameserver(old, want string) bool {
	found := false
	for line := range strings.Lines(old) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "nameserver" {
			continue
		}
		if strings.Join(fields, " ") != want {
			return false
		}
		found = true
	}
	return found
}

// small reads a file below /etc for being written again. Root inside may have
// put anything there; what is not an ordinary small file counts as empty.
func small(path string) string {
	b, err := rawfile.Read(path, 256<<10)
	if err != nil {
		return ""
	}
	return string(b)
}

// SetHostname sets the kernel's host name; a guest that may not is told its
// name by the files alone.
func SetHostname(name string) error {
	if name == "" || !validHostname(name) {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("setting the host name: %w", err)
	}
	return nil
}

// clockTolerance is how wrong the clock may be before it is set.
const clockTolerance = 250 * time.Millisecond

// SetClock sets the wall clock when it is wrong. Kernels that keep the time
// themselves refuse, and are right already.
func SetClock(now time.Time) error {
	if now.IsZero() || time.Since(now).Abs() < clockTolerance {
		return nil
	}
	ts, err := unix.TimeToTimespec(now)
	if err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

// InstallCA adds PEM certificates to the trust store below root: as a file of
// their own for the next rebuild of the bundle, and to the bundle as it is.
func InstallCA(root, pem string) error {
	if pem == "" {
		return nil
	}
	own := filepath.Join(root, "usr/local/share/ca-certificates/skerry.crt")
	if err := os.MkdirAll(filepath.Dir(own), 0o755); err != nil {
		return err
	}
	if err := rawfile.Replace(own, pem); err != nil {
		return err
	}
	bundle := filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")
	old, err := os.ReadFile(bundle)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if bytes.Contains(old, []byte(strings.TrimSpace(pem))) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(bundle), 0o755); err != nil {
		return err
	}
	return rawfile.Replace(bundle, strings.TrimRight(string(old), "\n")+"\n"+strings.TrimSpace(pem)+"\n")
}

func validHostname(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || (i > 0 && (c == '-' || c == '.'))
		if !ok {
			return false
		}
	}
	return s != ""
}
