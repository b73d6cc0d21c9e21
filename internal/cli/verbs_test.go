package cli

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// asJSON runs a line with -o json and decodes what it prints.
func asJSON[T any](t *testing.T, s *shell, args ...string) (v T) {
	t.Helper()
	out := s.must(t, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("skerry %s: %v in %q", strings.Join(args, " "), err, out)
	}
	return v
}

type thing struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Slug     string `json:"slug"`
	Email    string `json:"email"`
	Role     string `json:"role"`
	IsAdmin  bool   `json:"is_admin"`
	IsActive bool   `json:"is_active"`
	IsBYOC   bool   `json:"is_byoc"`
}

func names(list []thing) string {
	var all []string
	for _, v := range list {
		all = append(all, v.Name)
	}
	return strings.Join(all, " ")
}

// TestO3_VerbsAtARealServer goes through all that a person does without a
// sandbox: for each verb what it prints for people and for programs, what it
// changed, and the exit code of its refusal.
func TestO3_VerbsAtARealServer(t *testing.T) {
	url := newServer(t)
	root, ann, bob := newShell(t, url), newShell(t, url), newShell(t, url)
	ann.signup(t, "ann@example.org", "Ann")
	bob.signup(t, "bob@example.org", "Bob")
	root.login(t, rootEmail)
	ann.login(t, "ann@example.org")
	bob.login(t, "bob@example.org")

	t.Run("key", func(t *testing.T) { keyVerbs(t, ann) })
	t.Run("team", func(t *testing.T) { teamVerbs(t, ann, bob) })
	t.Run("admin users", func(t *testing.T) { userVerbs(t, root, bob) })
	t.Run("admin teams", func(t *testing.T) { platformVerbs(t, root, ann) })
	t.Run("audit", func(t *testing.T) { auditVerbs(t, root, ann, bob) })
	t.Run("host", func(t *testing.T) { hostVerbs(t, root, ann) })
}

func hostVerbs(t *testing.T, root, ann *shell) {
	if made := root.must(t, "host", "create", "box", "--label", "gpu=no", "--zone", "north"); !strings.Contains(made, "skerry join --server") {
		t.Errorf("host create prints %q", made)
	}
	list := asJSON[[]thing](t, root, "host", "list")
	if names(list) != "box" {
		t.Fatalf("host list: %+v", list)
	}
	root.must(t, "host", "add", "twin")
	root.must(t, "host", "add", "twin")
	root.fails(t, 1, "2 hosts", "host", "get", "twin")
	root.fails(t, 1, "no host", "host", "get", "nowhere")
	if made := root.must(t, "host", "token", "box"); !strings.Contains(made, "skerry join --server") {
		t.Errorf("host token prints %q", made)
	}
	if shown := root.must(t, "host", "get", list[0].ID); !strings.Contains(shown, "gpu=no") || !strings.Contains(shown, "north") || !strings.Contains(shown, "0 reserved of") {
		t.Errorf("host get prints %s", shown)
	}
	if shown := root.must(t, "host", "update", "box", "--name", "crate", "--label", "a=b", "--provider", ""); !strings.Contains(shown, "crate") || strings.Contains(shown, "gpu") {
		t.Errorf("host update prints %s", shown)
	}
	if shown := root.must(t, "host", "update", "crate", "--no-labels"); strings.Contains(shown, "a=b") {
		t.Errorf("host update prints %s", shown)
	}
	root.fails(t, ExitUsage, "", "host", "update", "crate", "--no-labels", "--label", "a=b")
	if shown := root.must(t, "host", "drain", "crate", "--within", "1h"); !strings.Contains(shown, "until") {
		t.Errorf("host drain prints %s", shown)
	}
	if shown := root.must(t, "host", "undrain", "crate"); strings.Contains(shown, "until") {
		t.Errorf("host undrain prints %s", shown)
	}
	if strays := asJSON[[]thing](t, root, "host", "strays", "crate"); len(strays) != 0 {
		t.Errorf("strays %+v", strays)
	}
	root.fails(t, exitNotFound, "", "host", "strays", "crate", "--destroy", "sb-01936d5a-0000-7000-8000-000000000001")
	if lost := asJSON[[]thing](t, root, "host", "delete", "crate", "--dry-run"); len(lost) != 0 {
		t.Errorf("would lose %+v", lost)
	}
	for _, verb := range []string{"get", "token", "drain", "undrain", "delete"} {
		ann.fails(t, exitNotFound, "", "host", verb, list[0].ID)
	}
	root.must(t, "host", "delete", "crate")
	root.fails(t, exitNotFound, "", "host", "delete", list[0].ID, "--force")
	ann.fails(t, exitNotAllowed, "admin", "host", "add")
}

func keyVerbs(t *testing.T, ann *shell) {
	key := strings.TrimSpace(ann.must(t, "key", "create", "ci", "--scopes", "read"))
	if !regexp.MustCompile(`^skerry_[0-9a-f]{40}$`).MatchString(key) {
		t.Errorf("key create prints %q", key)
	}
	made := asJSON[struct {
		Key    string `json:"key"`
		APIKey thing  `json:"api_key"`
	}](t, ann, "key", "create", "robot")
	list := asJSON[[]thing](t, ann, "key", "list")
	if names(list) != "robot ci" {
		t.Errorf("key list: %+v", list)
	}
	if table := ann.must(t, "key", "ls"); !strings.Contains(table, "LAST USED") || strings.Contains(table, key) {
		t.Errorf("key list prints %s", table)
	}
	machine := newShell(t, ann.url)
	machine.must(t, "sandbox", "list", "--api-key", made.Key)
	ann.must(t, "key", "rm", made.APIKey.ID)
	machine.fails(t, exitNotAllowed, "", "sandbox", "list", "--api-key", made.Key)
	machine.fails(t, exitNotAllowed, "scope", "sandbox", "create", "--api-key", key)
	ann.fails(t, exitNotFound, "", "key", "rm", made.APIKey.ID)
}

func teamVerbs(t *testing.T, ann, bob *shell) {
	crew := asJSON[thing](t, ann, "team", "create", "Crew")
	if list := asJSON[[]thing](t, ann, "team", "list"); names(list) != "Ann’s Team Crew" {
		t.Errorf("team list: %q", names(list))
	}
	if table := ann.must(t, "team", "ls"); !strings.Contains(table, crew.Slug) {
		t.Errorf("team list prints %s", table)
	}
	ann.must(t, "team", "switch", "Crew")
	if limits := ann.must(t, "team", "limits"); !strings.Contains(limits, "sandboxes") {
		t.Errorf("team limits prints %s", limits)
	}
	asJSON[map[string]any](t, ann, "team", "limits")
	if shown := ann.must(t, "team", "show"); !strings.Contains(shown, crew.ID) || !strings.Contains(shown, "ann@example.org") {
		t.Errorf("the active team is %s", shown)
	}
	// What the login does later is done in that team too.
	ann.stale(t)
	if shown := ann.must(t, "team", "show"); !strings.Contains(shown, crew.ID) {
		t.Errorf("after a refresh the active team is %s", shown)
	}
	ann.must(t, "team", "rename", "The crew")
	ann.must(t, "team", "add", "bob@example.org")
	ann.fails(t, exitConflict, "", "team", "add", "bob@example.org")
	ann.must(t, "team", "role", "bob@example.org", "admin")
	if list := ann.must(t, "team", "members"); !regexp.MustCompile(`bob@example\.org +admin`).MatchString(list) {
		t.Errorf("team members prints %s", list)
	}
	if list := asJSON[[]thing](t, ann, "team", "members"); len(list) != 2 {
		t.Errorf("team members: %+v", list)
	}
	bob.fails(t, exitNotAllowed, "", "team", "delete", crew.ID, "--yes")
	ann.must(t, "team", "transfer", "bob@example.org")
	ann.must(t, "team", "leave", crew.ID)
	link := strings.TrimSpace(bob.must(t, "team", "invite", "--team", "The crew"))
	if list := asJSON[[]thing](t, bob, "team", "invitations", "--team", crew.ID); len(list) != 1 {
		t.Errorf("team invitations: %+v", list)
	}
	ann.must(t, "team", "accept", link)
	ann.fails(t, exitNotFound, "", "team", "accept", link)
	open := asJSON[struct {
		Invitation thing `json:"invitation"`
	}](t, bob, "team", "invite", "--team", crew.ID)
	bob.must(t, "team", "uninvite", open.Invitation.ID, "--team", crew.ID)
	bob.must(t, "team", "remove", "ann@example.org", "--team", crew.ID)
	bob.fails(t, exitFailed, "--yes", "team", "delete", crew.ID)
	bob.must(t, "team", "delete", crew.ID, "--yes")
	bob.fails(t, exitNotFound, "", "team", "show", "--team", crew.ID)
	ann.fails(t, exitFailed, "team switch", "team", "show")
	ann.must(t, "team", "switch", "Ann’s Team")
}

func userVerbs(t *testing.T, root, bob *shell) {
	if list := asJSON[[]thing](t, root, "admin", "users"); names(list) != "Bob Ann Admin" {
		t.Errorf("admin users: %q", names(list))
	}
	if table := root.must(t, "admin", "users", "BOB@"); !strings.Contains(table, "LAST LOGIN") || strings.Contains(table, rootEmail) {
		t.Errorf("admin users prints %s", table)
	}
	bob.fails(t, exitNotAllowed, "admin", "admin", "users")
	root.fails(t, exitFailed, "no user", "admin", "promote", "nobody@example.org")
	if u := asJSON[thing](t, root, "admin", "promote", "bob@example.org"); !u.IsAdmin {
		t.Errorf("promoted: %+v", u)
	}
	bob.must(t, "admin", "users")
	root.must(t, "admin", "demote", "bob@example.org")
	bob.fails(t, exitNotAllowed, "admin", "admin", "users")
	root.fails(t, exitConflict, "last", "admin", "demote", rootEmail)
	root.must(t, "admin", "disable", "bob@example.org")
	bob.fails(t, exitNotAllowed, "", "team", "list")
	if u := asJSON[thing](t, root, "admin", "enable", "bob@example.org"); !u.IsActive {
		t.Errorf("enabled: %+v", u)
	}
	if link := root.must(t, "admin", "reset-link", "bob@example.org"); !strings.HasPrefix(link, root.url+"/") || strings.Count(link, "\n") != 1 {
		t.Errorf("admin reset-link prints %q", link)
	}
	if link := asJSON[struct{ URL string }](t, root, "admin", "reset-link", "bob@example.org"); link.URL == "" {
		t.Error("admin reset-link has no URL in JSON")
	}
	bob.login(t, "bob@example.org")
}

func platformVerbs(t *testing.T, root, ann *shell) {
	var mine struct{ Team thing }
	if ann.call(t, http.MethodGet, "/v1/me", nil, &mine); mine.Team.ID == "" {
		t.Fatal("Ann has no team")
	}
	if list := asJSON[[]thing](t, root, "admin", "teams", "Ann"); names(list) != "Ann’s Team" {
		t.Errorf("admin teams: %q", names(list))
	}
	ann.fails(t, exitNotAllowed, "admin", "admin", "teams")
	if team := asJSON[thing](t, root, "admin", "byoc", mine.Team.ID, "on"); !team.IsBYOC {
		t.Errorf("admin byoc: %+v", team)
	}
	root.must(t, "admin", "set-limits", "Ann’s Team", "--sandboxes", "3", "--defaults")
	type limits struct {
		Sandboxes struct{ Limit, Used int }
	}
	if l := asJSON[limits](t, root, "admin", "limits", mine.Team.Slug); l.Sandboxes.Limit != 3 {
		t.Errorf("admin limits: %+v", l)
	}
	if l := asJSON[limits](t, ann, "team", "limits"); l.Sandboxes.Limit != 3 {
		t.Errorf("team limits: %+v", l)
	}
	root.fails(t, exitFailed, "no team", "admin", "limits", "Nobody’s Team")
}

func auditVerbs(t *testing.T, root, ann, bob *shell) {
	type entry struct {
		Action   string
		Resource string `json:"resource_type"`
	}
	if list := asJSON[[]entry](t, ann, "audit", "list", "--resource", "api_key"); len(list) != 3 || list[0] != (entry{"revoke", "api_key"}) {
		t.Errorf("audit list: %+v", list)
	}
	if table := ann.must(t, "audit", "list"); !strings.Contains(table, "api_key create") {
		t.Errorf("audit list prints %s", table)
	}
	ann.fails(t, exitNotAllowed, "admin", "audit", "list", "--all-teams")
	if list := asJSON[[]entry](t, root, "audit", "list", "--all-teams", "--action", "leave"); len(list) != 1 {
		t.Errorf("audit list --all-teams: %+v", list)
	}
	file := filepath.Join(t.TempDir(), "trail.ndjson")
	ann.must(t, "audit", "export", file)
	if said := bob.must(t, "audit", "verify", file, "--keys-from", ann.url); !strings.Contains(said, "is whole") || !strings.Contains(said, "Signed by") {
		t.Errorf("audit verify prints %s", said)
	}
	if report := asJSON[map[string]any](t, bob, "audit", "verify", file, "--keys-from", ann.url); report["signature_checked"] != true {
		t.Errorf("audit verify: %v", report)
	}
}
