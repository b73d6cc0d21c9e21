package passwd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLookupWithSupplementaryGroups(t *testing.T) {
	p := write(t, "passwd", "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n")
	g := write(t, "group", "root:x:0:\nuser:x:1000:user\nsudo:x:27:other,user\nadm:x:4:other\n")
	u, err := New(p, g).Lookup("user")
	if err != nil {
		t.Fatal(err)
	}
	want := User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user", Shell: "/bin/bash", Groups: []uint32{27}}
	if d := cmp.Diff(want, u); d != "" {
		t.Error(d)
	}
}

func TestUnknownUserSaysTheProtocolsWords(t *testing.T) {
	_, err := New(write(t, "passwd", ""), "/nonexistent").Lookup("mallory")
	var unknown *UnknownUserError
	if !errors.As(err, &unknown) || err.Error() != "invalid username: 'mallory'" {
		t.Errorf("got %v", err)
	}
}

func TestHostileLinesAreSkipped(t *testing.T) {
	p := write(t, "passwd", strings.Join([]string{
		"minus:x:4294967295:0::/:/bin/sh", // (uid_t)-1 would keep the daemon's own id
		"big:x:4294967296:0::/:/bin/sh",
		"neg:x:-1:0::/:/bin/sh",
		"plus:x:+0:0::/:/bin/sh",
		"short:x:1:1",
		":x:0:0::/:/bin/sh",
		"rel:x:5:5::../../etc:/bin/sh",
	}, "\n"))
	d := New(p, "/nonexistent")
	for _, name := range []string{"minus", "big", "neg", "plus", "short", ""} {
		if u, err := d.Lookup(name); err == nil {
			t.Errorf("%q accepted as %+v", name, u)
		}
	}
	if u, err := d.Lookup("rel"); err != nil || u.Home != "/" {
		t.Errorf("relative home: %+v, %v", u, err)
	}
}

func TestChangedFileIsReadAgainAndAPipeDoesNotHang(t *testing.T) {
	p := write(t, "passwd", "a:x:1:1::/a:/bin/sh\n")
	d := New(p, "/nonexistent")
	if _, err := d.Lookup("a"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte("bb:x:1:1::/b:/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup("bb"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(p, 0o644); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := d.Lookup("bb"); done <- err }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a pipe was accepted as the account file")
		}
	case <-time.After(30 * time.Second):
		t.Error("look-up hangs on a pipe")
	}
}

func FuzzParsePasswd(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/bash\n")
	f.Add("a:b:c:d:e:f:g\n::::::\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, u := range parsePasswd(text) {
			if u.UID == 1<<32-1 || u.GID == 1<<32-1 || !filepath.IsAbs(u.Home) || strings.ContainsAny(u.Name, ":\n/ ") || u.Name == "" {
				t.Errorf("accepted %+v", u)
			}
		}
		parseGroup(text)
	})
}
