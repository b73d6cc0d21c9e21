package main

import (
	"os"
	"testing"
)

func TestH14_DotenvIsReadAndTheEnvironmentWins(t *testing.T) {
	t.Chdir(t.TempDir())
	const fromFile, fromBoth = "SKERRY_TEST_FROM_FILE", "SKERRY_TEST_FROM_BOTH"
	unset := func() {
		t.Helper()
		t.Setenv(fromFile, "") // puts back what was there
		if err := os.Unsetenv(fromFile); err != nil {
			t.Fatal(err)
		}
	}
	unset()
	t.Setenv(fromBoth, "environment")
	for _, program := range []string{"server", "agent", "up"} {
		if err := dotenv([]string{program}); err != nil {
			t.Errorf("%s without a file: %v", program, err)
		}
	}
	if err := os.WriteFile(".env", []byte(fromFile+"=file\n"+fromBoth+"=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"server", "agent", "up"} {
		unset()
		if err := dotenv([]string{program, "--help"}); err != nil {
			t.Errorf("%s: %v", program, err)
		}
		if got := os.Getenv(fromFile); got != "file" {
			t.Errorf("%s reads %q, want the file's", program, got)
		}
		if got := os.Getenv(fromBoth); got != "environment" {
			t.Errorf("%s: %q beat the environment", program, got)
		}
	}
	unset()
	if err := dotenv([]string{"sandbox", "list"}); err != nil || os.Getenv(fromFile) != "" {
		t.Errorf("a client took %q from a file that lies about (%v)", os.Getenv(fromFile), err)
	}
	if err := os.Remove(".env"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(".env", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := dotenv([]string{"server"}); err == nil {
		t.Error("a file that cannot be read is passed over")
	}
}
