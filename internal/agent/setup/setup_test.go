package setup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/agent/setup"
)

func TestSaveKeepsWhatItDoesNotSay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "agent.env")
	save := func(settings ...setup.Setting) string {
		t.Helper()
		if err := setup.Save(path, settings...); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	got := save(setup.Setting{Name: "A", Value: "1"}, setup.Setting{Name: "B", Value: "https://x:1"})
	if diff := cmp.Diff("A=1\nB=https://x:1\n", got); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(path, []byte("# ours\nA=1\n\nMINE=x y\n B=2\nA=3"), 0o644); err != nil {
		t.Fatal(err)
	}
	got = save(setup.Setting{Name: "A", Value: "9"}, setup.Setting{Name: "C", Value: ""})
	if diff := cmp.Diff("# ours\nA=9\n\nMINE=x y\n B=2\nC=\n", got); diff != "" {
		t.Error(diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, value := range []string{"a b", "a\nB=2", `"`, "$(x)", "'"} {
		if setup.Save(path, setup.Setting{Name: "A", Value: value}) == nil {
			t.Errorf("%q is written", value)
		}
	}
	if again, _ := os.ReadFile(path); string(again) != got {
		t.Error("a refused value changed the file")
	}
}

func TestAddressForIsOnTheWay(t *testing.T) {
	got, err := setup.AddressFor(t.Context(), "https://127.0.0.1:7071")
	if err != nil || got != "127.0.0.1" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := setup.AddressFor(t.Context(), "nowhere"); err == nil {
		t.Error("no URL has an address")
	}
}
