package initd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
