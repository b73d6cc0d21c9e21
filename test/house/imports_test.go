package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "skerry.dev/skerry/"

// pkg is one package of ours as `go list` tells it, its name without the
// module's.
type pkg struct {
	ImportPath string
	Standard   bool
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Dir,GoFiles,Imports,Deps"}, args...)...)
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// A forbidden edge, with the reason why. Patterns match import paths; those of
// our own packages without the module's name.
type edge struct {
	from, to *regexp.Regexp
	except   *regexp.Regexp // of the importing package
	save     *regexp.Regexp // of the imported ones
	deep     bool           // not through others either
	reason   string
}

func forbidden() []edge {
	re := regexp.MustCompile
	// A room is a directory right below internal/control. Its adapters lie
	// inside it; app wires, and web, hostlink and edge carry bytes.
	const rooms = `^internal/control/[a-z]+$`
	notRooms := re(`^internal/control/(app|web|hostlink|edge)$`)
	return []edge{
		{from: re(`^internal/kernel/`), to: re(`^[^/]*\.[^/]*/|^(internal|gen|sdk|api|db)/`), deep: true, reason: "the kernel stands on the standard library and google/uuid alone"},

		{from: re(rooms), except: notRooms, to: re(`^internal/control/[a-z]+/`), deep: true, reason: "a room declares the ports it needs; its adapters know the room, not the other way round"},
		{from: re(rooms), except: notRooms, to: re(`^gen/`), deep: true, reason: "a room speaks its own words; the wire's are translated in its adapters"},
		{from: re(rooms), except: notRooms, to: re(`^github\.com/jackc/pgx|^internal/pg$|^database/sql$`), deep: true, reason: "a room does not know how its store stores"},
		{from: re(rooms), except: notRooms, to: re(`^net/http$`), reason: "a room does not know who asks, or how"},
		{from: re(rooms), except: notRooms, to: re(`^internal/control/(app|web|hostlink|edge)$`), deep: true, reason: "rooms are below what carries and wires them"},
		{from: re(`^internal/control/scheduler$`), to: re(`^(context|net|os|time/tzdata|database/sql)$`), reason: "the scheduler is a pure function of what it is given"},

		{from: re(`^internal/(agent|guest)(/|$)`), to: re(`^internal/control(/|$)`), deep: true, reason: "what agent and guest share with the control plane is gen and kernel"},
		{from: re(`^internal/(agent|guest)(/|$)`), to: re(`^internal/pg(/|$)|^github\.com/jackc/pgx|^db/`), deep: true, reason: "hosts and guests hold no database credentials"},
		{from: re(`^internal/control(/|$)`), to: re(`^internal/(agent|guest)(/|$)`), save: re(`^internal/guest/guestapi$`), deep: true, reason: "the control plane reaches a host through gen/agentrpc and a guest through its host; the guest's words are for all"},
		{from: re(`^internal/guest(/|$)`), to: re(`^internal/agent(/|$)`), deep: true, reason: "the guest daemon knows nothing of the machine outside"},
		{from: re(`^internal/agent/engine$`), to: re(`^internal/agent/`), deep: true, reason: "the contract knows none of its implementations or users"},
		{from: re(`^internal/agent/(engine/.*|network|image|journal|state|shim|guestlink|identity)$`), to: re(`^internal/agent/(manager|rpcserver|app)$`), deep: true, reason: "what the manager uses does not use the manager"},

		{from: re(`^(sdk|internal/cli)$`), to: re(`^internal/(control|agent|guest|pg|up|artifact)(/|$)`), deep: true, reason: "a client knows the public contract and nothing else"},
		{from: re(`^internal/up$`), to: re(`^internal/(control|agent|guest)(/|$)`), deep: true, reason: "the supervisor starts programs; what it needs of the wings it is handed"},
		{from: re(`^internal/`), to: re(`^(cmd/|internal/(up|cli)$)`), deep: true, reason: "nothing inside depends on the programs around it"},
		{from: re(`^gen/`), to: re(`^internal/`), deep: true, reason: "generated code knows only its own library"},
		{from: re(`.`), to: re(`^github\.com/stretchr/testify|^log$|^io/ioutil$`), reason: "testing with go-cmp, logging with slog"},
	}
}

// short takes the module's name off our own packages; the standard library's
// internal ones get another, so as not to look like ours.
func short(path string) string {
	if own, ok := strings.CutPrefix(path, module); ok {
		return own
	}
	if strings.HasPrefix(path, "internal/") {
		return "std/" + path
	}
	return path
}

func TestImportsGoOneWay(t *testing.T) {
	edges := forbidden()
	used := make([]bool, len(edges))
	for _, p := range list(t, "./...") {
		from := short(p.ImportPath)
		for i, e := range edges {
			if !e.from.MatchString(from) || e.except != nil && e.except.MatchString(from) {
				continue
			}
			used[i] = true
			imports := p.Imports
			if e.deep {
				imports = p.Deps
			}
			for _, to := range imports {
				to = short(to)
				if !e.to.MatchString(to) || e.save != nil && e.save.MatchString(to) || sameKernel(from, to) {
					continue
				}
				through := ""
				if !slices.Contains(p.Imports, to) && !slices.Contains(p.Imports, module+to) {
					through = " (through others)"
				}
				t.Errorf("%s imports %s%s: %s", from, to, through, e.reason)
			}
		}
	}
	for i, e := range edges {
		if !used[i] {
			t.Errorf("no package matches %s any more: the rule %q guards nothing", e.from, e.reason)
		}
	}
}

func sameKernel(from, to string) bool {
	return strings.HasPrefix(from, "internal/kernel/") && (strings.HasPrefix(to, "internal/kernel/") || to == "github.com/google/uuid" || strings.HasPrefix(to, "vendor/golang.org/"))
}
