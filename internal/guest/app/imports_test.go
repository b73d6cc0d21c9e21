package app_test

import (
	"os/exec"
	"strings"
	"testing"
)

// allowed is everything the daemon may consist of beside the standard library.
// It runs inside every sandbox: each line here is code somebody hostile can
// reach, so a new one needs a reason.
var allowed = map[string]string{
	"connectrpc.com/connect":             "the RPC protocol",
	"google.golang.org/protobuf":         "its messages",
	"golang.org/x/sys":                   "system calls the standard library lacks",
	"github.com/creack/pty":              "terminals",
	"github.com/fsnotify/fsnotify":       "watching directories",
	"github.com/google/uuid":             "ids",
	"skerry.dev/skerry/internal/guest":   "the daemon itself",
	"skerry.dev/skerry/internal/kernel":  "shared words",
	"skerry.dev/skerry/gen/guestrpc":     "the generated protocol",
	"skerry.dev/skerry/cmd/skerry-guest": "the program",
}

func TestTheDaemonImportsOnlyWhatIsAllowed(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "skerry.dev/skerry/cmd/skerry-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 10 {
		t.Fatalf("only %d packages listed: the test sees nothing", len(packages))
	}
	for _, p := range packages {
		ok := false
		for prefix := range allowed {
			ok = ok || p == prefix || strings.HasPrefix(p, prefix+"/")
		}
		if !ok {
			t.Errorf("%s is not on the list", p)
		}
	}
}

func TestTheSharedWordsNeedOnlyTheStandardLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "skerry.dev/skerry/internal/guest/guestapi").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != "skerry.dev/skerry/internal/guest/guestapi" {
		t.Errorf("guestapi needs %s", got)
	}
}
