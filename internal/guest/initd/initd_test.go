package initd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIdentityIsWrittenAndRepeatable(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run/somewhere/else", filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := WriteIdentity(root, "seal-1", "10.0.0.1"); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"etc/hostname":    "seal-1\n",
		"etc/hosts":       "127.0.0.1 localhost\n127.0.1.1 seal-1\n::1 localhost ip6-localhost ip6-loopback\n",
		"etc/resolv.conf": "nameserver 10.0.0.1\n",
	} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, bad := range []string{"a b", "-x", "a\nb", strings.Repeat("x", 65)} {
		if WriteIdentity(root, bad, "") == nil {
			t.Errorf("host name %q accepted", bad)
		}
	}
	if WriteIdentity(root, "", "10.0.0.1\noptions x") == nil {
		t.Error("a name server with a line break accepted")
	}
}

func TestIdentityKeepsWhatUsersWrote(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(etc, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	write("hosts", "127.0.0.1 localhost\n127.0.1.1 seal-1 alias\n10.1.1.1 mine")
	write("resolv.conf", "options ndots:2\nnameserver 10.0.0.1\n")
	if err := WriteIdentity(root, "seal-2", "10.0.0.1"); err != nil {
		t.Fatal(err)
	}
	check("hosts", "127.0.0.1 localhost\n127.0.1.1 seal-2\n10.1.1.1 mine\n")
	check("resolv.conf", "options ndots:2\nnameserver 10.0.0.1\n")
	if err := WriteIdentity(root, "seal-2", "10.0.0.9"); err != nil {
		t.Fatal(err)
	}
	check("resolv.conf", "nameserver 10.0.0.9\n")
	write("hosts", "127.0.0.1 localhost\n")
	if err := WriteIdentity(root, "seal-3", ""); err != nil {
		t.Fatal(err)
	}
	check("hosts", "127.0.0.1 localhost\n127.0.1.1 seal-3\n")

	// What stands there may be hostile: a link to what only the daemon reads, a
	// pipe nobody writes to, far too much.
	usual := "127.0.0.1 localhost\n127.0.1.1 seal-4\n::1 localhost ip6-localhost ip6-loopback\n"
	hosts := filepath.Join(etc, "hosts")
	write("secret", "127.0.0.1 localhost\nsecret\n")
	for name, put := range map[string]func() error{
		"link": func() error { return os.Symlink("secret", hosts) },
		"pipe": func() error { return unix.Mkfifo(hosts, 0o644) },
		"huge": func() error {
			return os.WriteFile(hosts, []byte(strings.Repeat("127.0.0.1 localhost\n", 50_000)), 0o644)
		},
	} {
		if err := os.Remove(hosts); err != nil {
			t.Fatal(err)
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if err := WriteIdentity(root, "seal-4", ""); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		check("hosts", usual)
	}
}

func TestCertificatesAreAddedOnce(t *testing.T) {
	root := t.TempDir()
	bundle := filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")
	if err := os.MkdirAll(filepath.Dir(bundle), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bundle, []byte("OLD\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := InstallCA(root, "-----BEGIN-----\nNEW\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := os.ReadFile(bundle); string(got) != "OLD\n-----BEGIN-----\nNEW\n" {
		t.Errorf("%q", got)
	}
}

func TestADocumentWithoutSecretOrWithBadJSONIsRefusedWithoutQuotingIt(t *testing.T) {
	if _, err := ReadBoot(strings.NewReader(`{"port":1}`)); err == nil {
		t.Error("accepted without a secret")
	}
	_, err := ReadBoot(strings.NewReader(`{"init_secret":"hush"`))
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v", err)
	}
	if b, err := ReadBoot(strings.NewReader(`{"init_secret":"x"}`)); err != nil || Port(b) != 49983 {
		t.Errorf("%+v, %v", b, err)
	}
}

// A later agent may say more than this daemon knows.
func TestP7_TheStartDocumentMayHaveMore(t *testing.T) {
	boot, err := ReadBoot(strings.NewReader(`{"init_secret":"s","hostname":"box","later":{"than":["this"]}}`))
	if err != nil || boot.InitSecret != "s" || boot.Hostname != "box" {
		t.Errorf("%+v, %v", boot, err)
	}
}
