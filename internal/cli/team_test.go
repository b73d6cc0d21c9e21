package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
)

const (
	aTeam   = `{"id":"team-1","name":"One","slug":"a1b2c3-d1e2f3","role":"owner","is_byoc":true}`
	aMember = `{"user_id":"usr-2","name":"Bob","email":"bob@example.org","role":"member","joined_at":"2026-01-02T03:04:05.000000Z"}`
	aKey    = `{"id":"key-1","name":"ci","prefix":"skerry_a1b2c3","scopes":["read"],"created_by":"Bob","created_at":"2026-01-02T03:04:05.000000Z"}`
	aLimit  = `{"limit":5,"used":2}`
	invited = `{"id":"inv-1","email":"","role":"member","created_by":"Ann","created_at":"2026-01-02T03:04:05.000000Z","expires_at":"2099-01-02T03:04:05.000000Z"}`
	aFacts  = `{"id":"team-1","name":"One","slug":"a1b2c3-d1e2f3","is_byoc":true,"owner":"ann@example.org","members":2,"sandboxes":3,"created_at":"2026-01-02T03:04:05.000000Z"}`
)

// teamServer answers as a server with one team of two does, and notes what it
// was asked beside logging in and out.
func teamServer(t *testing.T) (url string, asked *[]string) {
	t.Helper()
	limits := fmt.Sprintf(`{"sandboxes":%[1]s,"vcpus":{"limit":2.5,"used":1},"memory_mb":%[1]s,"disk_mb":%[1]s,"stored_mb":%[1]s,"api_keys":%[1]s,"hosts":%[1]s,"templates":%[1]s}`, aLimit)
	user := `{"id":"usr-1","email":"ann@example.org","name":"Ann","is_admin":false}`
	answers := map[string]string{
		"GET /v1/me":                                `{"user":` + user + `,"team":` + aTeam + `}`,
		"GET /v1/teams":                             `{"items":[` + aTeam + `]}`,
		"POST /v1/teams":                            "201 " + aTeam,
		"GET /v1/teams/team-1":                      `{"team":` + aTeam + `,"members":[` + aMember + `]}`,
		"PATCH /v1/teams/team-1":                    aTeam,
		"DELETE /v1/teams/team-1":                   "204 ",
		"POST /v1/teams/team-1/transfer":            aTeam,
		"POST /v1/teams/team-1/leave":               "204 ",
		"GET /v1/teams/team-1/members":              `{"items":[` + aMember + `]}`,
		"POST /v1/teams/team-1/members":             "201 " + aMember,
		"PATCH /v1/teams/team-1/members/usr-2":      aMember,
		"DELETE /v1/teams/team-1/members/usr-2":     `{"api_keys":[` + aKey + `],"revoked":false}`,
		"GET /v1/teams/team-1/invitations":          `{"items":[` + invited + `]}`,
		"POST /v1/teams/team-1/invitations":         `201 {"invitation":` + invited + `,"url":"https://x/signup#invitation=sinv_1"}`,
		"DELETE /v1/teams/team-1/invitations/inv-1": "204 ",
		"POST /v1/invitations/accept":               aTeam,
		"GET /v1/limits":                            limits,
		"GET /v1/admin/teams/team-1/limits":         limits,
		"PUT /v1/admin/teams/team-1/limits":         limits,
		"GET /v1/admin/teams":                       `{"items":[` + aFacts + `]}`,
		"PUT /v1/admin/teams/team-1/byoc":           aFacts,
		"POST /v1/api-keys":                         `201 {"key":"skerry_x","api_key":` + aKey + `}`,
	}
	asked = new([]string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/v1/auth/login":
			fmt.Fprintf(w, `{"token":"t","expires_at":"2099-01-02T03:04:05.000000Z","user":%s,"team":%s}`, user, aTeam)
			return
		case "/v1/auth/logout":
			w.WriteHeader(http.StatusNoContent)
			return
		}
		body, _ := io.ReadAll(r.Body)
		*asked = append(*asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		answer, ok := answers[r.Method+" "+r.URL.Path]
		status := http.StatusOK
		if !ok || r.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		if after, is := strings.CutPrefix(answer, "201 "); is {
			answer, status = after, http.StatusCreated
		} else if answer == "204 " {
			answer, status = "", http.StatusNoContent
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

// run is what a shell does.
func run(t *testing.T, url string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	e, errs := testEnv(t)
	var out bytes.Buffer
	e.Stdout = &out
	e.Getenv = func(name string) string {
		return map[string]string{"SKERRY_EMAIL": "ann@example.org", "SKERRY_PASSWORD": "a long password"}[name]
	}
	var program struct {
		Globals
		Commands
		Admin AdminCommands `cmd:""`
	}
	parser, err := kong.New(&program, kong.Exit(func(int) { t.Error("the parser exits") }))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(append(args, "--url", url))
	if err != nil {
		return "", "", err
	}
	err = parsed.Run(e, &program.Globals)
	return out.String(), errs.String(), err
}

func TestO3_TeamCommands(t *testing.T) {
	const active, list, all = "GET /v1/me", "GET /v1/teams", "GET /v1/admin/teams?search=One"
	for line, want := range map[string]struct {
		asks []string
		says string
	}{
		"team list":                           {[]string{list}, "a1b2c3-d1e2f3"},
		"team create Two":                     {[]string{`POST /v1/teams {"name":"Two"}`}, "owner"},
		"team show":                           {[]string{active, "GET /v1/teams/team-1"}, "bob@example.org"},
		"team show --team One":                {[]string{list, "GET /v1/teams/team-1"}, "bob@example.org"},
		"team rename New":                     {[]string{active, `PATCH /v1/teams/team-1 {"name":"New"}`}, "One"},
		"team delete a1b2c3-d1e2f3 --yes":     {[]string{list, "DELETE /v1/teams/team-1"}, ""},
		"team transfer BOB@example.org":       {[]string{active, "GET /v1/teams/team-1/members", `POST /v1/teams/team-1/transfer {"user_id":"usr-2"}`}, "One"},
		"team leave team-1":                   {[]string{"POST /v1/teams/team-1/leave"}, ""},
		"team members":                        {[]string{active, "GET /v1/teams/team-1/members"}, "usr-2"},
		"team add bob@example.org":            {[]string{active, `POST /v1/teams/team-1/members {"email":"bob@example.org","role":"member"}`}, "usr-2"},
		"team role usr-2 admin":               {[]string{active, `PATCH /v1/teams/team-1/members/usr-2 {"role":"admin"}`}, "usr-2"},
		"team remove usr-2 --revoke-keys":     {[]string{active, "DELETE /v1/teams/team-1/members/usr-2?revoke_keys=true"}, "key-1"},
		"team invite --role admin":            {[]string{active, `POST /v1/teams/team-1/invitations {"role":"admin","expires_in_sec":604800}`}, "https://x/signup#invitation=sinv_1"},
		"team invitations":                    {[]string{active, "GET /v1/teams/team-1/invitations"}, "whoever has the link"},
		"team uninvite inv-1 --team One":      {[]string{list, "DELETE /v1/teams/team-1/invitations/inv-1"}, ""},
		"team accept https://x/#invitation=y": {[]string{`POST /v1/invitations/accept {"token":"y"}`}, "One"},
		"admin limits team-1":                 {[]string{"GET /v1/admin/teams/team-1/limits"}, "2.5"},
		"admin limits One":                    {[]string{all, "GET /v1/admin/teams/team-1/limits"}, "2.5"},
		"admin limits On":                     {[]string{"GET /v1/admin/teams?search=On"}, "error: there is no team"},
		"admin set-limits team-1 --defaults --sandboxes 0 --vcpus 2.5": {[]string{`PUT /v1/admin/teams/team-1/limits {"sandboxes":0,"vcpus":2.5}`}, "2.5"},
		"admin set-limits team-1 --sandboxes 0":                        {nil, "error: limits are set all at once"},
		"admin teams on":                                               {[]string{"GET /v1/admin/teams?search=on"}, "ann@example.org"},
		"admin byoc a1b2c3-d1e2f3 on":                                  {[]string{"GET /v1/admin/teams?search=a1b2c3-d1e2f3", `PUT /v1/admin/teams/team-1/byoc {"enabled":true}`}, "yes"},
		"key create ci":                                                {[]string{`POST /v1/api-keys {"name":"ci"}`}, "skerry_x"},
		"team list -o json":                                            {[]string{list}, `"slug": "a1b2c3-d1e2f3"`},
		"team members -o json":                                         {[]string{active, "GET /v1/teams/team-1/members"}, `"user_id": "usr-2"`},
		"team invite -o json":                                          {[]string{active, `POST /v1/teams/team-1/invitations {"role":"member","expires_in_sec":604800}`}, `"url": "https://x/signup#invitation=sinv_1"`},
		"team remove usr-2":                                            {[]string{active, "DELETE /v1/teams/team-1/members/usr-2?revoke_keys=false"}, "key-1"},
		"team rename N --team zz":                                      {[]string{list}, "error: you are in no team"},
		"team role zz@x admin":                                         {[]string{active, "GET /v1/teams/team-1/members"}, "error: zz@x is not in the team"},
		"team switch One":                                              {nil, "error: only a login that is kept"},
		"team delete One":                                              {nil, "error: deleting a team"},
		"team role usr-2 owner":                                        {nil, "error: "},
	} {
		t.Run(line, func(t *testing.T) {
			url, asked := teamServer(t)
			stdout, stderr, err := run(t, url, strings.Fields(line)...)
			if err != nil {
				stdout = "error: " + err.Error()
			}
			if !strings.Contains(stdout, want.says) || err != nil && !strings.HasPrefix(want.says, "error: ") {
				t.Errorf("says %q %q", stdout, stderr)
			}
			if diff := cmp.Diff(want.asks, *asked); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestA9_AKeyThatEndsByItself(t *testing.T) {
	url, asked := teamServer(t)
	if _, _, err := run(t, url, "key", "create", "ci", "--scopes", "read", "--expires", "24h"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(*asked); !strings.Contains(got, `"scopes":["read"]`) || !strings.Contains(got, `"expires_at":"20`) {
		t.Errorf("asked %s", got)
	}
}
