package testkit

import (
	"os"
	"path/filepath"
	"testing"
)

// S3Gateway returns the path of versitygw, a real S3 server: SKERRY_VERSITYGW, or
// the one that tools/tool.sh built in the checkout. Without one the test needs
// "s3".
func S3Gateway(t testing.TB) string {
	t.Helper()
	path := os.Getenv("SKERRY_VERSITYGW")
	if path == "" {
		path = filepath.Join(checkout(t), ".cache", "bin", "versitygw")
	}
	if _, err := os.Stat(path); err != nil {
		Missing(t, "s3", "no versitygw: run tools/tool.sh versitygw github.com/versity/versitygw/cmd/versitygw, or set SKERRY_VERSITYGW")
	}
	return path
}
