package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one archive in the one-line form.
type aptSource struct{ signedBy, uri, suite string }

// debianSources returns, in apt's one-line form, those sources of the machine
// that carry the main component of the suite, its updates or its security
// fixes; empty when the machine has none for the suite itself. aptDir is
// /etc/apt but in tests.
func debianSources(aptDir, suite string) (string, error) {
	var found []aptSource
	files := []string{filepath.Join(aptDir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(aptDir, "sources.list.d", pattern))
		if err != nil {
			return "", err
		}
		files = append(files, more...)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if strings.HasSuffix(name, ".sources") {
			found = append(found, parseDeb822(string(b))...)
		} else {
			found = append(found, parseOneLine(string(b))...)
		}
	}
	wanted := []string{suite, suite + "-updates", suite + "-security"}
	slices.SortFunc(found, func(a, b aptSource) int {
		return slices.Index(wanted, a.suite) - slices.Index(wanted, b.suite)
	})
	var out strings.Builder
	seen := map[string]bool{}
	base := false
	for _, s := range found {
		line := fmt.Sprintf("deb %s %s main\n", s.uri, s.suite)
		if s.signedBy != "" {
			line = fmt.Sprintf("deb [signed-by=%s] %s %s main\n", s.signedBy, s.uri, s.suite)
		}
		if !slices.Contains(wanted, s.suite) || seen[line] {
			continue
		}
		seen[line] = true
		base = base || s.suite == suite
		out.WriteString(line)
	}
	if !base {
		return "", nil
	}
	return out.String(), nil
}

// parseOneLine reads "deb [options] uri suite component…" lines.
func parseOneLine(text string) []aptSource {
	var out []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s aptSource
		if options, after, ok := strings.Cut(rest, "]"); ok && strings.HasPrefix(rest, "[") {
			rest = after
			for _, o := range strings.Fields(options[1:]) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 || !slices.Contains(f[2:], "main") {
			continue
		}
		s.uri, s.suite = f[0], f[1]
		out = append(out, s)
	}
	return out
}

// parseDeb822 reads stanzas of a .sources file. A key written out inside a
// stanza instead of named by its path is left to the installer's own keyring.
func parseDeb822(text string) []aptSource {
	var out []aptSource
	fields := map[string]string{}
	flush := func() {
		if fields["enabled"] != "no" && slices.Contains(strings.Fields(fields["types"]), "deb") && slices.Contains(strings.Fields(fields["components"]), "main") {
			signed := fields["signed-by"]
			if !strings.HasPrefix(signed, "/") || strings.ContainsAny(signed, " \t") {
				signed = ""
			}
			for _, uri := range strings.Fields(fields["uris"]) {
				for _, suite := range strings.Fields(fields["suites"]) {
					out = append(out, aptSource{signedBy: signed, uri: uri, suite: suite})
				}
			}
		}
		clear(fields)
	}
	key := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			fields[key] += " " + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			key = strings.ToLower(name)
			fields[key] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}

// aptProxies returns the machine's own apt proxy settings, ready to be given to
// the installer; they do not stay in the image.
func aptProxies(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%F \"%v\";%n", "Acquire")
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("apt-config: %w", err)
	}
	var proxies []string
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(name, "Acquire::http::Proxy") || strings.HasPrefix(name, "Acquire::https::Proxy") {
			proxies = append(proxies, lines.Text())
		}
	}
	return proxies, nil
}
