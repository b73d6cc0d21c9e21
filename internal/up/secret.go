package up

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// SecretFile is where an up keeps SKERRY_SECRET.
func SecretFile(data string) string { return filepath.Join(data, "secret") }

// AdoptSecret makes a secret the one of a data directory, for an up to come.
// Another one that is there already is never replaced.
func AdoptSecret(data, secret string) error {
	file := SecretFile(data)
	raw, err := os.ReadFile(file)
	switch {
	case err == nil && strings.TrimSpace(string(raw)) == secret:
		return nil
	case err == nil:
		return fmt.Errorf("%s holds another secret, under which what is in %s is sealed: give another data directory", file, data)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	return writeFile(file, []byte(secret+"\n"))
}

// PrivateDatabase is where an up keeps its PostgreSQL.
func PrivateDatabase(data string) string { return filepath.Join(data, "postgres") }
