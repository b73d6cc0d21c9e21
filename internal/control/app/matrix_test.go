package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/id"
)

// The actors of the matrix, a letter each, in the order of its columns.
const actors = "ASMDORKsntrH"

var actorNames = map[byte]string{
	'A': "anonymous", 'S': "owner of another team", 'M': "member", 'D': "admin", 'O': "owner", 'R': "platform admin, not of the team",
	'K': "key with all scopes", 's': "key for sandboxes", 'n': "key for snapshots", 't': "key for templates", 'r': "key to read", 'H': "host",
}

// Lines that several operations share: + may call, 1 is 401, 3 is 403, 4 is 404.
const (
	anybodys   = "++++++++++++"
	users      = "1+++++333331"
	admins     = "13333+333331"
	ofTeam     = "14+++4333331" // whoever is in the team
	manage     = "143++4333331" // its admins and owner
	ownerOnly  = "1433+4333331"
	sandboxGet = "14+++4++33+1"
	sandboxDo  = "14+++4++3331"
	listing    = "1+++++++33+1" // of the caller's own team
	anyKey     = "1++++++++++1"
	hostOnly   = "11111133333+"
	ownSecret  = "111111111111" // carries a credential of its own, and ours is none
)

// line is an operation: where it is, what is sent, and who may.
type line struct {
	allowed string
	call    string // METHOD path; words in braces are filled in from the fixture
	body    string
}

// matrix has a line for each operation of the document.
var matrix = map[string]line{
	"signup":               {anybodys, "POST /v1/auth/signup", `{"email":"{fresh}@x.org","password":"long enough","name":"N"}`},
	"login":                {anybodys, "POST /v1/auth/login", `{"email":"victim@x.org","password":"a long password"}`},
	"logout":               {users, "POST /v1/auth/logout", ""},
	"refreshSession":       {ownSecret, "POST /v1/auth/refresh", ""},
	"listAuthProviders":    {anybodys, "GET /v1/auth/providers", ""},
	"startOAuth":           {"444444444444", "GET /v1/auth/oauth/none", ""}, // none is configured
	"finishOAuth":          {anybodys, "GET /v1/auth/oauth/none/callback", ""},
	"requestPasswordReset": {anybodys, "POST /v1/auth/password-reset", `{"email":"nobody@x.org"}`},
	"confirmPasswordReset": {anybodys, "POST /v1/auth/password-reset/confirm", `{"token":"x","password":"long enough"}`},
	"confirmEmail":         {anybodys, "POST /v1/auth/email-proof/confirm", `{"token":"x"}`},
	"startDeviceLogin":     {anybodys, "POST /v1/auth/device", `{}`},
	"pollDeviceLogin":      {anybodys, "POST /v1/auth/device/token", `{"device_code":"{device}"}`},
	"getDeviceLogin":       {users, "GET /v1/auth/device/{usercode}", ""},
	"decideDeviceLogin":    {users, "POST /v1/auth/device/{usercode}", `{"approve":false}`},
	"switchTeam":           {"13+++3333331", "POST /v1/auth/switch-team", `{"team_id":"{team}"}`},

	"getMe":             {users, "GET /v1/me", ""},
	"updateMe":          {users, "PATCH /v1/me", `{"name":"N"}`},
	"deleteMe":          {users, "DELETE /v1/me", `{"password":"not mine"}`},
	"changePassword":    {users, "POST /v1/me/password", `{"current_password":"not mine","new_password":"long enough"}`},
	"requestEmailProof": {users, "POST /v1/me/email-proof", ""},
	"listSessions":      {users, "GET /v1/me/sessions", ""},
	"endSession":        {"144444333331", "DELETE /v1/me/sessions/{session}", ""}, // somebody else's
	"listIdentities":    {users, "GET /v1/me/identities", ""},
	"linkIdentity":      {"144444333331", "POST /v1/me/identities/none", ""},
	"unlinkIdentity":    {"144444333331", "DELETE /v1/me/identities/none", ""},

	"listTeams":         {users, "GET /v1/teams", ""},
	"createTeam":        {users, "POST /v1/teams", `{"name":"T"}`},
	"getTeam":           {ofTeam, "GET /v1/teams/{team}", ""},
	"updateTeam":        {manage, "PATCH /v1/teams/{team}", `{"name":"T"}`},
	"deleteTeam":        {ownerOnly, "DELETE /v1/teams/{team}", ""},
	"transferTeam":      {ownerOnly, "POST /v1/teams/{team}/transfer", `{"user_id":"{victim}"}`},
	"leaveTeam":         {ofTeam, "POST /v1/teams/{team}/leave", ""},
	"listMembers":       {ofTeam, "GET /v1/teams/{team}/members", ""},
	"addMember":         {manage, "POST /v1/teams/{team}/members", `{"email":"bystander@x.org"}`},
	"updateMember":      {manage, "PATCH /v1/teams/{team}/members/{victim}", `{"role":"admin"}`},
	"removeMember":      {manage, "DELETE /v1/teams/{team}/members/{victim}", ""},
	"listInvitations":   {manage, "GET /v1/teams/{team}/invitations", ""},
	"createInvitation":  {manage, "POST /v1/teams/{team}/invitations", `{}`},
	"revokeInvitation":  {manage, "DELETE /v1/teams/{team}/invitations/{invitation}", ""},
	"previewInvitation": {anybodys, "POST /v1/invitations/preview", `{"token":"{token}"}`},
	"acceptInvitation":  {users, "POST /v1/invitations/accept", `{"token":"{token}"}`},
	"searchUsers":       {users, "GET /v1/users/search?email=victim@", ""}, // each of these manages some team
	"getLimits":         {anyKey, "GET /v1/limits", ""},

	"adminListUsers":       {admins, "GET /v1/admin/users", ""},
	"adminSetUserAdmin":    {admins, "PUT /v1/admin/users/{victim}/admin", `{"enabled":false}`},
	"adminSetUserActive":   {admins, "PUT /v1/admin/users/{victim}/active", `{"enabled":true}`},
	"adminCreateResetLink": {admins, "POST /v1/admin/users/{victim}/password-reset", ""},
	"adminListTeams":       {admins, "GET /v1/admin/teams", ""},
	"setBYOC":              {admins, "PUT /v1/admin/teams/{team}/byoc", `{"enabled":false}`},
	"adminGetTeamLimits":   {admins, "GET /v1/admin/teams/{team}/limits", ""},
	"adminSetTeamLimits":   {admins, "PUT /v1/admin/teams/{team}/limits", `{}`},
	"adminListAuditLogs":   {admins, "GET /v1/admin/audit-logs", ""},
	"adminExportAuditLogs": {admins, "GET /v1/admin/audit-logs/export?team_id={team}", ""},
	"adminStreamEvents":    {admins, "GET /v1/admin/events", ""},

	"listAuditLogs":   {users, "GET /v1/audit-logs", ""},
	"exportAuditLogs": {"1+3+++333331", "GET /v1/audit-logs/export", ""},
	"listAuditKeys":   {anybodys, "GET /v1/audit-logs/keys", ""},

	"streamEvents":        {anyKey, "GET /v1/events", ""},
	"createEventTicket":   {anyKey, "POST /v1/events/stream-ticket", ""},
	"createSandboxTicket": {sandboxGet, "POST /v1/sandboxes/{sandbox}/stream-ticket", `{"operation":"downloadFile"}`},

	"listAPIKeys":  {users, "GET /v1/api-keys", ""},
	"createAPIKey": {users, "POST /v1/api-keys", `{"name":"k"}`},
	"deleteAPIKey": {manage, "DELETE /v1/api-keys/{key}", ""}, // the owner made it

	"listHosts":           {users, "GET /v1/hosts", ""},
	"createHost":          {admins, "POST /v1/hosts", `{"type":"regular"}`},
	"getHost":             {"14444+333331", "GET /v1/hosts/{host}", ""},
	"createHostToken":     {"14444+333331", "POST /v1/hosts/{host}/token", ""},
	"updateHost":          {"14444+333331", "PATCH /v1/hosts/{host}", `{"name":"n"}`},
	"previewHostDeletion": {"14444+333331", "GET /v1/hosts/{host}/delete-preview", ""},
	"deleteHost":          {"14444+333331", "DELETE /v1/hosts/{sparehost}", ""},
	"drainHost":           {"14444+333331", "POST /v1/hosts/{sparehost}/drain", `{}`},
	"undrainHost":         {"14444+333331", "POST /v1/hosts/{sparehost}/undrain", ""},
	"listHostStrays":      {"14444+333331", "GET /v1/hosts/{host}/strays", ""},
	"destroyHostStray":    {"144444333331", "DELETE /v1/hosts/{host}/strays/{sandbox}", ""}, // it is none
	"registerHost":        {anybodys, "POST /v1/hosts/register", `{"registration_token":"x","csr":"x","facts":{"hostname":"h","arch":"amd64","cpus":1,"memory_bytes":1,"disk_bytes":1,"kernel":"k","version":"v","address":"h:1","engines":[]}}`},
	"refreshHost":         {ownSecret, "POST /v1/hosts/auth/refresh", `{"refresh_token":"x","csr":"x"}`},
	"heartbeat":           {hostOnly, "POST /v1/hosts/{host}/heartbeat", `{"generation":1,"address":"{address}","version":"1","load":{"sandboxes":0,"cpu_millis":0,"memory_bytes":0,"disk_free_bytes":1}}`},
	"reportHostEvents":    {hostOnly, "POST /v1/hosts/{host}/events", `{"generation":1,"events":[]}`},
	"reportHostSamples":   {hostOnly, "POST /v1/hosts/{host}/samples", `{"samples":[]}`},

	"listTemplates":     {"1+++++++3++1", "GET /v1/templates", ""},
	"getTemplate":       {"1+++++++3++1", "GET /v1/templates/base", ""},
	"buildBaseTemplate": {admins, "POST /v1/templates/base/build", ""},

	"createTemplate":     {"1++++++33+31", "POST /v1/templates", `{"name":"t{fresh}"}`}, // R has a team of its own
	"deleteTemplate":     {"14+++4+33+31", "DELETE /v1/templates/{template}", ""},
	"uploadBuildContext": {"1++++++33+31", "POST /v1/build-contexts", "bytes"},
	"listBuilds":         {"1+++++++3++1", "GET /v1/builds", ""},
	"getBuild":           {"14+++4++3++1", "GET /v1/builds/{build}", ""},
	"getBuildLogs":       {"14+++4++3++1", "GET /v1/builds/{build}/logs", ""},
	"cancelBuild":        {"14+++4+33+31", "POST /v1/builds/{build}/cancel", ""},

	"listSandboxes":     {listing, "GET /v1/sandboxes", ""},
	"createSandbox":     {"1+++++++3331", "POST /v1/sandboxes?wait=0", `{"template":"base"}`},
	"getSandbox":        {sandboxGet, "GET /v1/sandboxes/{sandbox}", ""},
	"deleteSandbox":     {sandboxDo, "DELETE /v1/sandboxes/{sandbox}", ""},
	"listSandboxEvents": {sandboxGet, "GET /v1/sandboxes/{sandbox}/events", ""},
	"execSandbox":       {sandboxDo, "POST /v1/sandboxes/{sandbox}/exec", `{"cmd":"true"}`},
	"pauseSandbox":      {sandboxDo, "POST /v1/sandboxes/{sandbox}/pause?wait=0", `{}`},
	"resumeSandbox":     {sandboxDo, "POST /v1/sandboxes/{sandbox}/resume?wait=0", `{}`},
	"recoverSandbox":    {sandboxDo, "POST /v1/sandboxes/{sandbox}/recover", ""},
	"forkSandbox":       {sandboxDo, "POST /v1/sandboxes/{sandbox}/fork?wait=0", `{}`},
	"setSandboxTimeout": {sandboxDo, "POST /v1/sandboxes/{sandbox}/timeout", `{"timeout_sec":300}`},
	"pingSandbox":       {sandboxDo, "POST /v1/sandboxes/{sandbox}/ping", ""},
	"getSandboxMetrics": {sandboxGet, "GET /v1/sandboxes/{sandbox}/metrics", ""},
	"getSandboxLogs":    {sandboxGet, "GET /v1/sandboxes/{sandbox}/logs", ""},
	"streamExec":        {sandboxDo, "GET /v1/sandboxes/{sandbox}/exec/stream", ""},
	"openPTY":           {sandboxDo, "GET /v1/sandboxes/{sandbox}/pty", ""},
	"downloadFile":      {sandboxGet, "GET /v1/sandboxes/{sandbox}/files?path=/x", ""},
	"uploadFile":        {sandboxDo, "PUT /v1/sandboxes/{sandbox}/files?path=/x", "bytes"},
	"removeFile":        {sandboxDo, "DELETE /v1/sandboxes/{sandbox}/files?path=/x", ""},
	"listFiles":         {sandboxGet, "GET /v1/sandboxes/{sandbox}/files/list?path=/", ""},
	"statFile":          {sandboxGet, "GET /v1/sandboxes/{sandbox}/files/stat?path=/x", ""},
	"makeDirectory":     {sandboxDo, "POST /v1/sandboxes/{sandbox}/files/mkdir", `{"path":"/x"}`},
	"moveFile":          {sandboxDo, "POST /v1/sandboxes/{sandbox}/files/move", `{"source":"/x","destination":"/y"}`},

	"listPorts": {sandboxGet, "GET /v1/sandboxes/{sandbox}/ports", ""},
	"openPort":  {sandboxDo, "POST /v1/sandboxes/{sandbox}/ports", `{"port":3000}`},
	"closePort": {sandboxDo, "DELETE /v1/sandboxes/{sandbox}/ports/{access}", ""},

	"listSnapshots":  {"1++++++++3+1", "GET /v1/snapshots", ""},
	"createSnapshot": {"14+++4+3+331", "POST /v1/snapshots?wait=0", `{"sandbox_id":"{sandbox}","name":"n{fresh}"}`},
	"getSnapshot":    {"14+++4+++3+1", "GET /v1/snapshots/{snapshot}", ""},
	"deleteSnapshot": {"14+++4+3+331", "DELETE /v1/snapshots/{snapshot}", ""},

	"getHealth":          {anybodys, "GET /healthz", ""},
	"getReadiness":       {anybodys, "GET /readyz", ""},
	"getOpenAPI":         {anybodys, "GET /openapi.yaml", ""},
	"getDocs":            {anybodys, "GET /docs", ""},
	"getDeviceLoginPage": {anybodys, "GET /login/device", ""},
	"getDocsAsset":       {anybodys, "GET /docs/docs.css", ""},
}

// consumed are the operations after which what they were called on is gone.
var consumed = map[string]bool{
	"acceptInvitation": true, "closePort": true, "decideDeviceLogin": true, "deleteAPIKey": true, "deleteHost": true, "deleteSnapshot": true, "deleteTeam": true, "deleteTemplate": true, "leaveTeam": true,
	"removeMember": true, "revokeInvitation": true, "transferTeam": true,
}

// cast is the people of the matrix. Each operation has a team, keys, a sandbox
// and a snapshot of its own, so that what one destroys no other misses.
type cast struct {
	*ground
	tokens map[byte]string
	users  map[byte]string // ids
	fresh  int
}

const everybodysPassword = "a long password"

func newCast(t *testing.T) *cast {
	t.Helper()
	c := &cast{ground: newGround(t), tokens: map[byte]string{}, users: map[byte]string{}}
	c.tokens['R'] = c.admin
	for letter, email := range map[byte]string{'S': "stranger", 'M': "member", 'D': "deputy", 'O': "owner", 'v': "victim", 'b': "bystander"} {
		c.account(t, email+"@x.org", &letter)
	}
	return c
}

func (c *cast) account(t *testing.T, email string, letter *byte) {
	t.Helper()
	var made struct {
		Token string `json:"token"`
		User  struct {
			ID string `json:"id"`
		} `json:"user"`
	}
	c.do(t, http.MethodPost, "/v1/auth/signup", "", map[string]string{"email": email, "password": everybodysPassword, "name": email}, http.StatusCreated, &made)
	c.tokens[*letter], c.users[*letter] = made.Token, made.User.ID
}

// team makes one past the limits of the API and returns its id.
func (c *cast) team(t *testing.T) string {
	t.Helper()
	made := id.NewTeam()
	err := pgx.BeginFunc(t.Context(), c.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "INSERT INTO teams (id, name, slug) VALUES ($1, 'T', $2)", made, fmt.Sprintf("%06x-%06x", c.fresh, 1)); err != nil {
			return err
		}
		for letter, role := range map[byte]string{'O': "owner", 'D': "admin", 'M': "member", 'v': "member"} {
			_, err := tx.Exec(t.Context(), "INSERT INTO users_teams (team_id, user_id, role) VALUES ($1, $2, $3)", made, strings.TrimPrefix(c.users[letter], "usr-"), role)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return made.String()
}

// stage makes what an operation is tried on and returns the words to fill in,
// and the credentials of all actors.
func (c *cast) stage(t *testing.T, l line) (words map[string]string, credentials map[byte]string) {
	t.Helper()
	c.fresh++
	team := c.team(t)
	credentials = map[byte]string{'A': "", 'S': c.tokens['S'], 'R': c.tokens['R'], 'H': c.host.creds.JWT}
	for _, letter := range []byte("MDO") {
		var auth struct {
			Token string `json:"token"`
		}
		c.do(t, http.MethodPost, "/v1/auth/switch-team", c.tokens[letter], map[string]string{"team_id": team}, http.StatusOK, &auth)
		credentials[letter] = auth.Token
	}
	words = map[string]string{
		"team": team, "victim": c.users['v'], "host": c.hostID, "address": c.host.address, "fresh": fmt.Sprint(c.fresh),
	}
	for letter, scopes := range map[byte][]string{
		'K': nil, 's': {"sandboxes"}, 'n': {"snapshots"}, 't': {"templates"}, 'r': {"read"},
	} {
		body := map[string]any{"name": "k"}
		if scopes != nil {
			body["scopes"] = scopes
		}
		var key struct {
			Key    string `json:"key"`
			APIKey struct {
				ID string `json:"id"`
			} `json:"api_key"`
		}
		c.do(t, http.MethodPost, "/v1/api-keys", credentials['O'], body, http.StatusCreated, &key)
		credentials[letter], words["key"] = key.Key, key.APIKey.ID
		if l.call == matrix["deleteAPIKey"].call && letter == 'K' {
			defer func() { words["key"] = key.APIKey.ID }()
		}
	}
	wants := func(word string) bool { return strings.Contains(l.call+l.body, "{"+word+"}") }
	if wants("sandbox") || wants("snapshot") {
		var x sandboxAnswer
		c.do(t, http.MethodPost, "/v1/sandboxes", credentials['O'], map[string]any{"template": "base", "vcpus": 0.1, "memory_mb": 64, "disk_mb": 64}, http.StatusCreated, &x)
		words["sandbox"] = x.ID
	}
	if wants("access") {
		var opened struct {
			Access struct {
				ID string `json:"id"`
			} `json:"access"`
		}
		c.do(t, http.MethodPost, "/v1/sandboxes/"+words["sandbox"]+"/ports", credentials['O'], map[string]any{"port": 3000}, http.StatusCreated, &opened)
		words["access"] = opened.Access.ID
	}
	if wants("snapshot") {
		words["snapshot"] = "saved"
		if _, err := c.pool.Exec(t.Context(), `INSERT INTO snapshots (id, team_id, kind, name, status, sandbox_id, incarnation, host_id, template_id, template_name,
				image_digest, engine, memory, cpu_millis, memory_mb, disk_mb, internet, digest, created_by_type, created_by_id, created_by_name, ready_at)
			SELECT gen_random_uuid(), team_id, 'snapshot', 'saved', 'ready', id, incarnation, host_id, template_id, template_name,
				image_digest, engine, true, cpu_millis, memory_mb, disk_mb, internet, 'd', 'user', '', '', now()
			FROM sandboxes WHERE id = $1`, strings.TrimPrefix(words["sandbox"], "sb-")); err != nil {
			t.Fatal(err)
		}
	}
	if wants("template") {
		words["template"] = "mine"
		if _, err := c.pool.Exec(t.Context(), `INSERT INTO templates (id, team_id, name, status, image_digest, manifest_digest) VALUES (gen_random_uuid(), $1, 'mine', 'ready', 'x', 'x')`,
			strings.TrimPrefix(team, "team-")); err != nil {
			t.Fatal(err)
		}
	}
	if wants("build") {
		made := id.NewBuild()
		words["build"] = made.String()
		if _, err := c.pool.Exec(t.Context(), `INSERT INTO builds (id, team_id, name, status, recipe, reason, created_by_type, created_by_id, created_by_name, finished_at)
			VALUES ($1, $2, 'old', 'failed', '{}', 'x', 'user', '', '', now())`, made, strings.TrimPrefix(team, "team-")); err != nil {
			t.Fatal(err)
		}
	}
	if wants("sparehost") {
		var made struct {
			Host struct {
				ID string `json:"id"`
			} `json:"host"`
		}
		c.do(t, http.MethodPost, "/v1/hosts", c.tokens['R'], map[string]string{"type": "regular"}, http.StatusCreated, &made)
		words["sparehost"] = made.Host.ID
	}
	if wants("invitation") || wants("token") {
		words["invitation"], words["token"] = c.invite(t, team, credentials['O'])
	}
	if wants("usercode") || wants("device") {
		var device struct {
			Device string `json:"device_code"`
			User   string `json:"user_code"`
		}
		c.do(t, http.MethodPost, "/v1/auth/device", "", map[string]string{}, http.StatusCreated, &device)
		words["device"], words["usercode"] = device.Device, device.User
	}
	if wants("session") {
		var sessions struct {
			Items []struct {
				ID string `json:"id"`
			} `json:"items"`
		}
		c.do(t, http.MethodGet, "/v1/me/sessions", c.tokens['v'], nil, http.StatusOK, &sessions)
		words["session"] = sessions.Items[0].ID
	}
	return words, credentials
}

// invite makes an invitation and returns its id and its token.
func (c *cast) invite(t *testing.T, team, owner string) (invitation, token string) {
	t.Helper()
	var invited struct {
		Invitation struct {
			ID string `json:"id"`
		} `json:"invitation"`
		URL string `json:"url"`
	}
	c.do(t, http.MethodPost, "/v1/teams/"+team+"/invitations", owner, map[string]string{}, http.StatusCreated, &invited)
	return invited.Invitation.ID, invited.URL[strings.LastIndexAny(invited.URL, "=/#")+1:]
}

// try calls an operation and says how it was answered: +, 1, 3 or 4.
func (c *cast) try(t *testing.T, l line, words map[string]string, credential string) (verdict byte, answer string) {
	t.Helper()
	c.fresh++
	words["fresh"] = fmt.Sprint(c.fresh)
	call, body := l.call, l.body
	for word, value := range words {
		call, body = strings.ReplaceAll(call, "{"+word+"}", value), strings.ReplaceAll(body, "{"+word+"}", value)
	}
	method, path, _ := strings.Cut(call, " ")
	client, base := http.DefaultClient, c.url
	if strings.Contains(l.allowed, "+") && l.allowed[len(l.allowed)-1] == '+' && strings.HasPrefix(path, "/v1/hosts/") || strings.HasPrefix(path, "/v1/hosts/register") ||
		strings.HasPrefix(path, "/v1/hosts/auth") {
		client, base = c.host.client, c.agentURL // where agents call
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Skerry-Refresh", "1")
	if strings.HasSuffix(path, "/exec/stream") || strings.HasSuffix(path, "/pty") {
		for name, value := range map[string]string{
			"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Protocol": "skerry.exec.v1", "Sec-WebSocket-Version": "13",
			"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
		} {
			req.Header.Set(name, value)
		}
	}
	switch {
	case strings.HasPrefix(credential, "skerry_"):
		req.Header.Set("X-API-Key", credential)
	case credential != "":
		req.Header.Set("Authorization", "Bearer "+credential)
	}
	client = &http.Client{Transport: client.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var raw []byte
	if res.StatusCode >= 400 {
		raw, _ = io.ReadAll(io.LimitReader(res.Body, 4096))
	}
	answer = fmt.Sprintf("%d %s", res.StatusCode, bytes.TrimSpace(raw))
	var f failure
	_ = json.Unmarshal(raw, &f)
	switch {
	case f.Error.Code == "invalid_credentials", f.Error.Code == "wrong_password": // a wrong password, not a caller who may not
		return '+', answer
	case res.StatusCode == http.StatusNotImplemented:
		return '?', answer
	}
	switch res.StatusCode {
	case http.StatusUnauthorized:
		return '1', answer
	case http.StatusForbidden:
		return '3', answer
	case http.StatusNotFound:
		return '4', answer
	}
	return '+', answer
}

// Who may call what: every operation of the document by every kind of caller.
func TestC8_TheMatrixOfCallersAndOperations(t *testing.T) {
	var operations []string
	for operation := range matrix {
		operations = append(operations, operation)
	}
	slices.Sort(operations)
	if want := web.PermittedOperations(); !slices.Equal(operations, want) {
		for _, operation := range want {
			if !slices.Contains(operations, operation) {
				t.Errorf("%s has no line in the matrix", operation)
			}
		}
		for _, operation := range operations {
			if !slices.Contains(want, operation) {
				t.Errorf("the matrix has a line for %s, which does not exist", operation)
			}
		}
	}
	c := newCast(t)
	cells := 0
	for _, operation := range operations {
		l := matrix[operation]
		words, credentials := c.stage(t, l)
		for i := range len(actors) {
			letter := actors[i]
			credential := credentials[letter]
			if operation == "logout" && credential != "" && strings.IndexByte("SMDOR", letter) >= 0 {
				credential = c.another(t, letter)
			}
			cells++
			got, answer := c.try(t, l, words, credential)
			if got != l.allowed[i] {
				t.Errorf("%s by %s: %c (%s), want %c", operation, actorNames[letter], got, answer, l.allowed[i])
			}
			if got == '+' && consumed[operation] {
				words, credentials = c.stage(t, l)
			}
		}
	}
	t.Logf("%d operations by %d actors: %d cells", len(operations), len(actors), cells)
}

// another is a second session of somebody.
func (c *cast) another(t *testing.T, letter byte) string {
	t.Helper()
	email := map[byte]string{'S': "stranger@x.org", 'M': "member@x.org", 'D': "deputy@x.org", 'O': "owner@x.org", 'R': "root@example.org"}[letter]
	var login struct {
		Token string `json:"token"`
	}
	c.do(t, http.MethodPost, "/v1/auth/login", "", map[string]string{"email": email, "password": everybodysPassword}, http.StatusOK, &login)
	return login.Token
}
