package audithttp_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/id"
)

var system = audit.By(principal.System("test"))

// sameMicrosecond writes n entries of which all have one time.
func (s *stack) sameMicrosecond(t testing.TB, team id.Team, n int) {
	t.Helper()
	entries := make([]audit.Entry, n)
	for i := range entries {
		entries[i] = system.TeamCreated(team, fmt.Sprint(i))
	}
	s.append(t, entries...)
}

func TestAU03_EveryEntryIsPagedExactlyOnce(t *testing.T) {
	s := newStack(t, nil)
	team, other := id.NewTeam(), id.NewTeam()
	_, owner := s.member(t, team, "owner")
	s.member(t, other, "owner")
	_, root := s.member(t, team, "platform")
	s.sameMicrosecond(t, team, 1000)
	var times int
	if err := s.pool.QueryRow(context.Background(), "SELECT count(DISTINCT created_at) FROM audit_logs").Scan(&times); err != nil || times != 1 {
		t.Fatalf("%d times (%v)", times, err)
	}
	want := map[string]bool{}
	for _, e := range s.walk(t, "/v1/audit-logs?limit=200", owner, nil) {
		want[e.ID] = true
	}
	if len(want) != 1000 {
		t.Fatalf("%d entries", len(want))
	}
	for _, path := range []string{"/v1/audit-logs?", "/v1/admin/audit-logs?", "/v1/admin/audit-logs?team_id=" + team.String() + "&"} {
		token := owner
		if strings.Contains(path, "admin") {
			token = root
		}
		for _, size := range []int{7, 10, 100, 200} {
			added := 0
			seen := map[string]int{}
			for _, e := range s.walk(t, fmt.Sprintf("%slimit=%d", path, size), token, func() {
				if added < 100 {
					s.append(t, system.TeamCreated(team, "more"), system.TeamCreated(other, "more"))
					added++
				}
			}) {
				seen[e.ID]++
			}
			missing := 0
			for entry := range want {
				if seen[entry] == 0 {
					missing++
				}
			}
			for entry, n := range seen {
				if n > 1 {
					t.Errorf("%s by %d: %s is there %d times", path, size, entry, n)
				}
			}
			if missing > 0 {
				t.Errorf("%s by %d: %d are missing", path, size, missing)
			}
		}
	}
}

func TestC4_PagesOfTheTrailHaveBounds(t *testing.T) {
	s := newStack(t, nil)
	team := id.NewTeam()
	_, owner := s.member(t, team, "owner")
	_, root := s.member(t, team, "platform")
	s.sameMicrosecond(t, team, 201)
	for _, path := range []string{"/v1/audit-logs", "/v1/admin/audit-logs"} {
		token := owner
		if strings.Contains(path, "admin") {
			token = root
		}
		if n := len(s.page(t, path, token).Items); n != 50 {
			t.Errorf("%s: %d without a limit", path, n)
		}
		if p := s.page(t, path+"?limit=200", token); len(p.Items) != 200 || p.NextCursor == "" {
			t.Errorf("%s: %d of 200", path, len(p.Items))
		}
		for _, bad := range []string{
			"limit=0", "limit=201", "limit=-1", "limit=x", "cursor=junk", "cursor=MA", "cursor=e30", "cursor=bnVsbA", "cursor=LTU",
			"action=" + strings.Repeat("x", 65), "resource_type=" + strings.Repeat("a,", 10) + strings.Join(strings.Split("abcdefghijklmnopqrstuvwxyzABCDEFG", ""), ","),
		} {
			if status, body := s.call(t, http.MethodGet, path+"?"+bad, token, ""); status != http.StatusBadRequest {
				t.Errorf("%s?%s: %d %s", path, bad, status, body)
			}
		}
	}
	if status, _ := s.call(t, http.MethodGet, "/v1/admin/audit-logs?team_id=junk", root, ""); status != http.StatusBadRequest {
		t.Errorf("a junk team: %d", status)
	}
}

func TestL4_FiltersAndScopes(t *testing.T) {
	keys := keysOf{"all": {Kind: principal.KindAPIKey, HasTeam: true, APIKeyID: id.NewAPIKey(), Scopes: []principal.Scope{"sandboxes", "snapshots", "templates", "read"}}}
	s := newStack(t, keys)
	team, other := id.NewTeam(), id.NewTeam()
	_, owner := s.member(t, team, "owner")
	_, stranger := s.member(t, other, "owner")
	_, admin := s.member(t, team, "admin")
	user, member := s.member(t, team, "member")
	by := audit.By(principal.Principal{Kind: principal.KindUser, UserID: user, UserName: "Ada", RequestID: "r-7", IP: netip.MustParseAddr("192.0.2.1")})
	s.append(t,
		by.TeamCreated(team, "T"),
		by.APIKeyCreated(team, id.NewAPIKey(), "<k>"),
		by.APIKeyRevoked(team, id.NewAPIKey(), "<k>"),
		by.LoggedIn(team, id.NewSession()),
		by.HostMarkedDown(team, id.NewHost(), "silent"),
		by.TeamCreated(other, "O"),
	)
	actions := func(path, token string) string {
		var out []string
		for _, e := range s.walk(t, path, token, nil) {
			if e.TeamID != team.String() {
				t.Errorf("%s shows an entry of %s", path, e.TeamID)
			}
			out = append(out, e.ResourceType+"."+e.Action)
		}
		return strings.Join(out, " ")
	}
	const all = "host.marked_down session.login api_key.revoke api_key.create team.create"
	const scoped = "api_key.revoke api_key.create team.create"
	for who, tt := range map[string]struct{ token, want string }{"owner": {owner, all}, "admin": {admin, all}, "member": {member, scoped}} {
		if got := actions("/v1/audit-logs?limit=2", tt.token); got != tt.want {
			t.Errorf("%s sees %q, want %q", who, got, tt.want)
		}
	}
	// The role is the database's, at once.
	if _, err := s.owner.Exec(context.Background(), "UPDATE users_teams SET role = 'admin' WHERE user_id = $1", user.UUID()); err != nil {
		t.Fatal(err)
	}
	if got := actions("/v1/audit-logs?limit=2", member); got != all {
		t.Errorf("as an admin the member sees %q", got)
	}
	for query, want := range map[string]string{
		"resource_type=api_key":                               "api_key.revoke api_key.create",
		"resource_type=api_key,team":                          "api_key.revoke api_key.create team.create",
		"resource_type=api_key&resource_type=team":            "api_key.revoke api_key.create team.create",
		"resource_type=api_key,host&resource_type=session":    "host.marked_down session.login api_key.revoke api_key.create",
		"action=create":                                       "api_key.create team.create",
		"action=create,login":                                 "session.login api_key.create team.create",
		"action=create&resource_type=team":                    "team.create",
		"action=%20create%20,,&resource_type=api_key,api_key": "api_key.create",
		"action=nothing":                                      "",
		"action=":                                             all,
	} {
		if got := actions("/v1/audit-logs?limit=1&"+query, owner); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if got := s.page(t, "/v1/audit-logs?action=create&resource_type=api_key", owner).Items[0]; got.Metadata["name"] != "<k>" || got.IP != "192.0.2.1" ||
		got.Actor.ID != user.String() || got.Actor.Type != "user" || len(got.Hash) != 64 || !strings.Contains(got.CreatedAt, ".") {
		t.Errorf("an entry: %+v", got)
	}
	if got := s.page(t, "/v1/audit-logs", stranger).Items; len(got) != 1 || got[0].TeamID != other.String() {
		t.Errorf("another team sees %+v", got)
	}
	// Sessions only, and the platform's lists for its admins alone.
	for path, tokens := range map[string][]string{
		"/v1/audit-logs": {"all", ""}, "/v1/audit-logs/export": {"all", "", member[:0]}, "/v1/admin/audit-logs": {"all", "", owner, admin},
		"/v1/admin/audit-logs/export?team_id=" + team.String(): {"all", "", owner, admin},
	} {
		for _, token := range tokens {
			if status, body := s.call(t, http.MethodGet, path, token, ""); status != http.StatusForbidden && status != http.StatusUnauthorized {
				t.Errorf("%s with %.8q: %d %s", path, token, status, body)
			}
		}
	}
}

func TestL5_ExportsAreSignedAndForThoseWhoMay(t *testing.T) {
	s := newStack(t, nil)
	team := id.NewTeam()
	_, owner := s.member(t, team, "owner")
	_, admin := s.member(t, team, "admin")
	_, member := s.member(t, team, "member")
	_, root := s.member(t, team, "platform")
	s.sameMicrosecond(t, team, 1234)
	keys := s.publicKeys(t)
	known := func(kid string) (ed25519.PublicKey, bool) { k, ok := keys[kid]; return k, ok }
	for who, tt := range map[string]struct{ path, token string }{
		"owner": {"/v1/audit-logs/export", owner}, "admin": {"/v1/audit-logs/export", admin},
		"platform": {"/v1/admin/audit-logs/export?team_id=" + team.String(), root},
	} {
		status, file := s.call(t, http.MethodGet, tt.path, tt.token, "")
		report, err := audittrail.Verify(strings.NewReader(file), known)
		if status != http.StatusOK || err != nil || report.Entries != 1234 || report.TeamID != team || !report.Signed {
			t.Errorf("%s: %d, %+v, %v", who, status, report, err)
		}
		if lines := strings.Count(file, "\n"); lines != 1236 {
			t.Errorf("%s: %d lines", who, lines)
		}
	}
	for path, tt := range map[string]struct {
		token string
		want  int
	}{
		"/v1/audit-logs/export": {member, 403},
		"/v1/admin/audit-logs/export?team_id=" + id.NewTeam().String():  {root, 404},
		"/v1/admin/audit-logs/export":                                   {root, 400},
		"/v1/admin/audit-logs/export?team_id=team-x":                    {root, 400},
		"/v1/admin/audit-logs/export?team_id=" + team.String() + "&x=1": {owner, 403},
	} {
		if status, body := s.call(t, http.MethodGet, path, tt.token, ""); status != tt.want || !strings.Contains(body, `"error"`) {
			t.Errorf("%s: %d %s, want %d", path, status, body, tt.want)
		}
	}
	// A retired key still proves what it signed.
	_, file := s.call(t, http.MethodGet, "/v1/audit-logs/export", owner, "")
	if _, err := s.owner.Exec(context.Background(), "UPDATE platform_keys SET retired_at = now() WHERE kind = 'audit'"); err != nil {
		t.Fatal(err)
	}
	keys = s.publicKeys(t)
	if _, err := audittrail.Verify(strings.NewReader(file), known); err != nil {
		t.Errorf("with a retired key: %v", err)
	}
}

func TestL1_RefusalsOfKnownCallersAreRecorded(t *testing.T) {
	team := id.NewTeam()
	key := principal.Principal{Kind: principal.KindAPIKey, HasTeam: true, TeamID: team, APIKeyID: id.NewAPIKey(), APIKeyName: "ci", Scopes: []principal.Scope{principal.ScopeRead}}
	s := newStack(t, keysOf{"read-only": key})
	_, owner := s.member(t, team, "owner")
	_, lone := s.member(t, team, "platform")
	const sandbox = "/v1/sandboxes/sb-01936d5a-0000-7000-8000-000000000001"
	for _, c := range []struct {
		method, path, token, body, reason, operation string
		team                                         id.Team
	}{
		{"DELETE", sandbox, "read-only", "", "scope_required", "deleteSandbox", team},                                      // the table, generated
		{"PUT", "/v1/admin/teams/" + team.String() + "/limits", owner, "{}", "admin_required", "adminSetTeamLimits", team}, // the table, a session
		{"POST", "/v1/hosts", owner, `{"type":"regular"}`, "admin_required", "createHost", team},                           // the room
		{"GET", sandbox + "/exec/stream", "read-only", "", "", "", team},                                                   // not mounted here: 404
		{"POST", "/v1/api-keys", "read-only", `{"name":"x"}`, "api_key_not_allowed", "createAPIKey", team},                 // no key may
		{"POST", "/v1/hosts", lone, `{"type":"regular"}`, "admin_required", "createHost", id.PlatformTeamID},
		{"GET", "/v1/hosts", owner, "", "", "", team},            // reading
		{"GET", "/v1/admin/audit-logs", owner, "", "", "", team}, // reading
		{"POST", "/v1/hosts", owner, `{"type":1}`, "", "", team}, // not 403
	} {
		before := s.entries(t)
		status, body := s.call(t, c.method, c.path, c.token, c.body)
		got := s.entries(t)[len(before):]
		if c.operation == "" {
			if len(got) != 0 {
				t.Errorf("%s %s (%d %s) is recorded: %+v", c.method, c.path, status, body, got)
			}
			continue
		}
		if status != http.StatusForbidden || !strings.Contains(body, c.reason) {
			t.Errorf("%s %s: %d %s", c.method, c.path, status, body)
		}
		want := c.operation + " refused warning admin " + c.reason + " " + c.team.String()
		if len(got) != 1 || got[0] != want {
			t.Errorf("%s %s: recorded %q, want %q", c.method, c.path, got, want)
		}
	}
	if log := s.log.String(); strings.Contains(log, "is not recorded") {
		t.Error(log)
	}
	// In the team's list its owner reads who it was.
	all := s.walk(t, "/v1/audit-logs?action=refused&resource_type=deleteSandbox", owner, nil)
	if len(all) != 1 || all[0].Actor.Type != "api_key" || all[0].Actor.ID != key.APIKeyID.String() || all[0].IP == "" {
		t.Errorf("%+v", all)
	}
}

func (s *stack) entries(t testing.TB) []string {
	t.Helper()
	rows, err := s.pool.Query(context.Background(), `SELECT resource_type || ' ' || action || ' ' || status || ' ' || scope || ' ' || (metadata->>'reason') || ' team-' || team_id
		FROM audit_logs ORDER BY created_at, id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := []string{}
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		out = append(out, line)
	}
	return out
}

func TestL1_RefusalsOfNobodyAreCounted(t *testing.T) {
	s := newStack(t, nil)
	for range 20 {
		s.call(t, "POST", "/v1/hosts", "no-such-key", `{}`)
		s.call(t, "DELETE", "/v1/sandboxes/sb-01936d5a-0000-7000-8000-000000000001", "no-such-key", "")
		s.call(t, "GET", "/v1/me", "", "")
	}
	ctx := context.Background()
	s.refusals.Flush(ctx)
	s.refusals.Flush(ctx) // nothing twice
	got := map[string]int{}
	rows, err := s.pool.Query(ctx, "SELECT reason, sum(count)::int, bool_and(ip = '127.0.0.1' AND date_trunc('minute', minute) = minute) FROM refusal_counts GROUP BY reason")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var reason string
		var n int
		var here bool
		if err := rows.Scan(&reason, &n, &here); err != nil || !here {
			t.Fatal(err, reason, here)
		}
		got[reason] = n
	}
	total := 0
	for _, n := range got {
		total += n
	}
	if total != 60 || got["invalid_api_key"] < 20 {
		t.Errorf("counted %v", got)
	}
	if n := len(s.entries(t)); n != 0 {
		t.Errorf("%d entries of nobody", n)
	}
}

// A caller that is refused all the time does not fill the trail.
func TestL1_RefusalsAreBounded(t *testing.T) {
	s := newStack(t, nil)
	team := id.NewTeam()
	user, _ := s.member(t, team, "owner")
	by := principal.Principal{Kind: principal.KindUser, UserID: user, HasTeam: true, TeamID: team, IP: netip.MustParseAddr("192.0.2.9")}
	for range 1000 {
		s.refusals.Refused(context.Background(), by, "createHost", "admin_required")
	}
	for i := range 10_000 {
		s.refusals.Counted(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), "invalid_token")
	}
	for i := range 1000 { // one network
		s.refusals.Counted(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 8: byte(i >> 8), 15: byte(i)}), "invalid_token")
	}
	s.refusals.Flush(context.Background())
	var counted, rows, few int
	if err := s.pool.QueryRow(context.Background(), "SELECT sum(count), count(*), count(*) FILTER (WHERE ip = '::') FROM refusal_counts").Scan(&counted, &rows, &few); err != nil {
		t.Fatal(err)
	}
	entries := len(s.entries(t))
	if entries < 300 || entries > 400 || entries+counted != 12_000 || rows > 4100 || few == 0 {
		t.Errorf("%d entries, %d counted in %d rows (%d without address)", entries, counted, rows, few)
	}
}

// percentile is the duration below which a share of the calls ended.
func percentile(took []time.Duration, share float64) time.Duration {
	return took[min(len(took)-1, int(share*float64(len(took))))]
}

// BenchmarkListAuditLogs is the newest page of a team with 100,000 entries, and
// pages under filters.
func BenchmarkListAuditLogs(b *testing.B) {
	s := newStack(b, nil)
	team := id.NewTeam()
	_, owner := s.member(b, team, "owner")
	_, member := s.member(b, team, "member")
	for i := range 100 {
		entries := make([]audit.Entry, 1000)
		for j := range entries {
			switch j % 4 {
			case 0:
				entries[j] = system.APIKeyCreated(team, id.NewAPIKey(), "k")
			case 1:
				entries[j] = system.LoggedIn(team, id.NewSession())
			default:
				entries[j] = system.SandboxDestroyed(team, id.NewSandbox(), "requested")
			}
		}
		if i == 0 {
			entries[0] = system.TeamCreated(team, "T")
		}
		s.append(b, entries...)
	}
	if _, err := s.owner.Exec(context.Background(), "VACUUM ANALYZE audit_logs"); err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct{ name, query, token string }{
		{"Newest50", "", owner},
		{"Member", "", member},
		{"Newest200", "limit=200", owner},
		{"Filtered", "resource_type=api_key&action=create", owner},
		{"OneInAll", "resource_type=team", owner},
	} {
		b.Run(tt.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				started := time.Now()
				if status, body := s.call(b, http.MethodGet, "/v1/audit-logs?"+tt.query, tt.token, ""); status != http.StatusOK {
					b.Fatal(status, body)
				}
				took = append(took, time.Since(started))
			}
			b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "requests/s")
			slices.Sort(took)
			b.ReportMetric(float64(percentile(took, 0.5).Microseconds())/1000, "median-ms")
			b.ReportMetric(float64(percentile(took, 0.99).Microseconds())/1000, "p99-ms")
		})
	}
}
