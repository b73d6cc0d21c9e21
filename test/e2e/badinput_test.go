package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Bad input gets the right status, a stable code and a remedy, and changes
// nothing.
func TestC3_BadInputSaysWhatToDo(t *testing.T) {
	in := skerry(t)
	dead := in.Create(t, nil)
	in.Must(t, "DELETE", "/v1/sandboxes/"+dead.ID, nil, nil)
	live := in.Create(t, nil)
	someone := "sb-01932f6c-0000-7000-8000-000000000000"

	for _, c := range []struct {
		name, method, path, body, key string
		status                        int
		code                          string
	}{
		{"unknown template", "POST", "/v1/sandboxes", `{"template":"nope"}`, in.Key, 404, "template_not_found"},
		{"template missing", "POST", "/v1/sandboxes", `{}`, in.Key, 400, "invalid_request"},
		{"wrong type", "POST", "/v1/sandboxes", `{"template":"base","memory_mb":"much"}`, in.Key, 400, "invalid_request"},
		{"unknown field", "POST", "/v1/sandboxes", `{"template":"base","colour":"red"}`, in.Key, 400, "invalid_request"},
		{"not JSON", "POST", "/v1/sandboxes", `{`, in.Key, 400, "invalid_request"},
		{"negative memory", "POST", "/v1/sandboxes", `{"template":"base","memory_mb":-1}`, in.Key, 400, "invalid_request"},
		{"absurd memory", "POST", "/v1/sandboxes", `{"template":"base","memory_mb":2147483648}`, in.Key, 400, "invalid_request"},
		{"zero disk", "POST", "/v1/sandboxes", `{"template":"base","disk_mb":0}`, in.Key, 400, "invalid_request"},
		{"too large a body", "POST", "/v1/sandboxes", `{"template":"` + strings.Repeat("x", 2<<20) + `"}`, in.Key, 413, "body_too_large"},
		{"malformed id", "GET", "/v1/sandboxes/sb-nope", "", in.Key, 400, "invalid_id"},
		{"id of another kind", "GET", "/v1/sandboxes/team-01932f6c-0000-7000-8000-000000000000", "", in.Key, 400, "invalid_id"},
		{"hostile id", "GET", "/v1/sandboxes/sb-%00%ff%2e%2e", "", in.Key, 400, "invalid_id"},
		{"unknown id", "GET", "/v1/sandboxes/" + someone, "", in.Key, 404, "sandbox_not_found"},
		{"missing key", "GET", "/v1/sandboxes", "", "", 401, "unauthenticated"},
		{"wrong key", "GET", "/v1/sandboxes", "", "skerry_" + strings.Repeat("0", 40), 401, "invalid_api_key"},
		{"dead sandbox", "POST", "/v1/sandboxes/" + dead.ID + "/exec", `{"cmd":"true"}`, in.Key, 409, "invalid_state"},
		{"files of a dead sandbox", "GET", "/v1/sandboxes/" + dead.ID + "/files?path=/etc/passwd", "", in.Key, 409, "invalid_state"},
		{"unknown user", "POST", "/v1/sandboxes/" + live.ID + "/exec", `{"cmd":"true","user":"nobody-here"}`, in.Key, 400, "invalid_user"},
		{"missing directory", "POST", "/v1/sandboxes/" + live.ID + "/exec", `{"cmd":"true","cwd":"/nowhere"}`, in.Key, 400, "invalid_cwd"},
		{"missing file", "GET", "/v1/sandboxes/" + live.ID + "/files?path=/nowhere", "", in.Key, 404, "file_not_found"},
		{"file without path", "GET", "/v1/sandboxes/" + live.ID + "/files", "", in.Key, 400, "invalid_path"},
		{"limit of zero", "GET", "/v1/sandboxes?limit=0", "", in.Key, 400, "invalid_request"},
		{"limit of 201", "GET", "/v1/sandboxes?limit=201", "", in.Key, 400, "invalid_request"},
		{"junk cursor", "GET", "/v1/sandboxes?cursor=junk!", "", in.Key, 400, "invalid_cursor"},
		{"unknown status", "GET", "/v1/sandboxes?status=asleep", "", in.Key, 400, "invalid_request"},
		{"unknown path", "GET", "/v1/nothing-here", "", in.Key, 404, "route_not_found"},
		{"wrong method", "PATCH", "/v1/sandboxes", "{}", in.Key, 405, "method_not_allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, in.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if c.key != "" {
				req.Header.Set("X-API-Key", c.key)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			raw, _ := io.ReadAll(res.Body)
			var answer struct {
				Error struct {
					Code, Message string
					RequestID     string `json:"request_id"`
				}
			}
			if err := json.Unmarshal(raw, &answer); err != nil {
				t.Fatalf("%d %s is not an error of ours: %v", res.StatusCode, raw, err)
			}
			if res.StatusCode != c.status || answer.Error.Code != c.code {
				t.Errorf("%d %s (%s), want %d %s", res.StatusCode, answer.Error.Code, answer.Error.Message, c.status, c.code)
			}
			if len(answer.Error.Message) < 15 || answer.Error.RequestID == "" || answer.Error.RequestID != res.Header.Get("X-Request-Id") {
				t.Errorf("the answer does not help: %s", raw)
			}
		})
	}
	if got := in.Sh(t, live.ID, "echo unharmed"); got.Stdout != "unharmed\n" {
		t.Errorf("the live sandbox says %+v", got)
	}
}
