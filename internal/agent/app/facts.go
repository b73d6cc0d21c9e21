package app

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/agent/engine"
	"skerry.dev/skerry/internal/agent/identity"
)

// Names below the data directory.
const (
	tagFile     = "tag"
	identityDir = "identity"
)

func statesDir(cfg Config) string { return filepath.Join(cfg.DataDir, "states") }

// IdentityDir is where the identity of an agent on dataDir lives.
func IdentityDir(dataDir string) string { return filepath.Join(dataDir, identityDir) }

// loadTag returns the six hex digits that mark everything this agent makes on
// the machine, and makes them on the first start. Called under the journal's
// lock.
func loadTag(dataDir string) (string, error) {
	path := filepath.Join(dataDir, tagFile)
	raw, err := os.ReadFile(path)
	if err == nil {
		tag := strings.TrimSpace(string(raw))
		if b, err := hex.DecodeString(tag); err != nil || len(b) != 3 {
			return "", fmt.Errorf("agent: %s holds %q, not six hex digits", path, tag)
		}
		return tag, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("agent: %w", err)
	}
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails
	tag := hex.EncodeToString(b[:])
	// Nothing carries the tag before it is on disk.
	return tag, identity.WriteDurably(path, []byte(tag+"\n"))
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("agent: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// probe asks every engine what it can do here.
func probe(ctx context.Context, engines map[string]engine.Engine) (versions map[string]string, facts []identity.EngineFact) {
	versions = make(map[string]string, len(engines))
	for name, e := range engines {
		c := e.Probe(ctx)
		versions[name] = c.Version
		facts = append(facts, identity.EngineFact{
			Name: name, Version: c.Version, Digest: c.Digest, Healthy: c.Healthy, Reasons: append([]string{}, c.Reasons...), CPUFeatures: c.CPUFeatures,
		})
		for _, b := range c.Builds {
			facts[len(facts)-1].Builds = append(facts[len(facts)-1].Builds, identity.BuildFact(b))
		}
	}
	slices.SortFunc(facts, func(a, b identity.EngineFact) int { return strings.Compare(a.Name, b.Name) })
	return versions, facts
}

func hostFacts(cfg Config, engines []identity.EngineFact) (identity.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return identity.Facts{}, fmt.Errorf("agent: %w", err)
	}
	ram, _, err := memory()
	if err != nil {
		return identity.Facts{}, err
	}
	total, _, err := disk(cfg.DataDir)
	if err != nil {
		return identity.Facts{}, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return identity.Facts{}, fmt.Errorf("agent: uname: %w", err)
	}
	return identity.Facts{
		Hostname: name, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), MemoryBytes: ram, DiskBytes: total,
		Kernel: unix.ByteSliceToString(uts.Release[:]), Version: cfg.Version, Address: advertised(cfg, nil), Engines: engines,
	}, nil
}

// disk returns the size of the file system below dir and what is free on it,
// in bytes.
func disk(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("agent: statfs %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil //nolint:gosec // no file system has 8 EiB
}
