package cli

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/kernel/id"
)

// exported is a trail as a server writes it, and the key that signed it.
func exported(t *testing.T) (file string, key string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	team := id.NewTeam()
	w, err := audittrail.NewWriter(&out, team, audittrail.Point{})
	if err != nil {
		t.Fatal(err)
	}
	var end audittrail.Point
	for i := range int64(5) {
		r := audittrail.Record{ID: id.NewAuditEntry(), TeamID: team, Seq: i + 1, ActorName: "Ada", Metadata: []byte("{}"), At: time.Unix(i, 0)}
		r.Hash = r.After(end.Hash)
		end = audittrail.Point{Seq: r.Seq, Hash: r.Hash}
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(end, time.Now(), "k1", func(m []byte) []byte { return ed25519.Sign(private, m) }); err != nil {
		t.Fatal(err)
	}
	return out.String(), base64.StdEncoding.EncodeToString(public)
}

func TestL2_VerifyCommandNamesWhatIsWrong(t *testing.T) {
	file, key := exported(t)
	other := base64.StdEncoding.EncodeToString(make([]byte, 32))
	lines := strings.SplitAfter(file, "\n")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/audit-logs/keys" || r.Header.Get("X-API-Key") != "" {
			t.Errorf("asks for %s with %v", r.URL, r.Header)
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"items":[{"kid":"k0","public_key":%q},{"kid":"k1","public_key":%q}]}`, other, key)
	}))
	defer server.Close()
	for name, tt := range map[string]struct {
		file string
		cmd  auditVerifyCmd
		code int
		says string // on either output
	}{
		"whole":         {file, auditVerifyCmd{Key: key}, 0, "is whole: 5 entries, 1 to 5"},
		"by the server": {file, auditVerifyCmd{KeysFrom: server.URL}, 0, "Signed by key k1"},
		"without a key": {file, auditVerifyCmd{}, 0, "signature was not checked"},
		"changed":       {strings.Replace(file, "Ada", "Eve", 1), auditVerifyCmd{Key: key}, 1, "line 2, entry 1 (log-"},
		"removed":       {lines[0] + lines[1] + strings.Join(lines[3:], ""), auditVerifyCmd{}, 1, "removed: Entries 2 to 2 are missing"},
		"reordered":     {lines[0] + lines[1] + lines[3] + lines[2] + strings.Join(lines[4:], ""), auditVerifyCmd{}, 1, "reordered"},
		"cut off":       {strings.Join(lines[:4], ""), auditVerifyCmd{}, 1, "entry 3 (log-"},
		"foreign":       {file, auditVerifyCmd{Key: other}, 1, "foreign signature"},
		"no key":        {file, auditVerifyCmd{Key: "x"}, ExitUsage, "32 bytes in base64"},
	} {
		t.Run(name, func(t *testing.T) {
			e, stderr := testEnv(t)
			var stdout bytes.Buffer
			e.Stdout = &stdout
			tt.cmd.File = filepath.Join(t.TempDir(), "audit.ndjson")
			write(t, tt.cmd.File, tt.file)
			code := Report(e.Stderr, tt.cmd.Run(e, &Globals{Output: "table"}))
			if said := stdout.String() + stderr.String(); code != tt.code || !strings.Contains(said, tt.says) {
				t.Errorf("exit code %d: %s", code, said)
			}
		})
	}
	e, _ := testEnv(t)
	if err := (&auditVerifyCmd{File: filepath.Join(t.TempDir(), "none")}).Run(e, &Globals{}); err == nil {
		t.Error("a file that is not there passes")
	}
}

func TestL5_ExportCommandWritesAllOrNothing(t *testing.T) {
	file, key := exported(t)
	cut := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/auth/login":
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{
				"token": "t", "expires_at": "2030-01-01T00:00:00.000000Z", "team": nil,
				"user": map[string]any{"id": "usr-1", "email": "a@x", "name": "Ada", "is_admin": false, "created_at": "2026-01-01T00:00:00.000000Z"},
			})
		case "/v1/auth/logout":
			w.WriteHeader(http.StatusNoContent)
		case "/v1/audit-logs/export":
			_, _ = io.WriteString(w, file[:len(file)/2])
			if cut {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, file[len(file)/2:])
		default:
			t.Errorf("asks for %s", r.URL)
		}
	}))
	defer server.Close()
	e, _ := testEnv(t)
	e.Getenv = func(name string) string {
		return map[string]string{"SKERRY_EMAIL": "a@x", "SKERRY_PASSWORD": "p"}[name]
	}
	dir := t.TempDir()
	g := &Globals{URL: server.URL}
	target := filepath.Join(dir, "audit.ndjson")
	if err := (&auditExportCmd{File: target}).Run(e, g); err != nil {
		t.Fatal(err)
	}
	if err := (&auditVerifyCmd{File: target, Key: key}).Run(e, g); err != nil {
		t.Error(err)
	}
	cut = true
	if err := (&auditExportCmd{File: filepath.Join(dir, "cut.ndjson")}).Run(e, g); err == nil {
		t.Error("an export that was cut is kept")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}
