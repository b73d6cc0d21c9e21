package app

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// document is as much of OpenAPI as it takes to send every operation a body.
type document struct {
	Paths      map[string]map[string]json.RawMessage `json:"paths"`
	Components struct {
		Schemas map[string]schema `json:"schemas"`
	} `json:"components"`
}

type schema struct {
	Ref        string            `json:"$ref"`
	Type       string            `json:"type"`
	Format     string            `json:"format"`
	Enum       []string          `json:"enum"`
	Properties map[string]schema `json:"properties"`
	Items      *schema           `json:"items"`
	Minimum    float64           `json:"minimum"`
	AllOf      []schema          `json:"allOf"`
	Any        json.RawMessage   `json:"additionalProperties"`
}

type operation struct {
	ID          string `json:"operationId"`
	Parameters  []struct{ Name, In string }
	RequestBody struct {
		Content map[string]struct {
			Schema schema `json:"schema"`
		} `json:"content"`
	} `json:"requestBody"`
}

// canaries makes values that appear nowhere else and remembers all secrets.
type canaries struct {
	tag  string
	n    int
	made []string // secrets that the server made
}

func (c *canaries) next() string {
	c.n++
	return fmt.Sprintf("canary-%s-%d", c.tag, c.n)
}

// secretField are the names of fields that must never be kept in clear.
var secretField = regexp.MustCompile(`password|token|secret|^key$|code|state|csr|env|metadata|cmd|args|stdin|content|signature|cookie|nonce|ticket`)

// fill makes a value for a schema, with a canary wherever a secret may stand.
func (c *canaries) fill(d document, s schema, name string, depth int) any {
	if s.Ref != "" {
		s = d.Components.Schemas[s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]]
	}
	for _, part := range s.AllOf {
		if m, ok := c.fill(d, part, name, depth).(map[string]any); ok {
			return m
		}
	}
	switch {
	case len(s.Enum) > 0:
		return s.Enum[0]
	case depth > 6:
		return nil
	case s.Type == "array":
		if s.Items == nil {
			return []any{}
		}
		return []any{c.fill(d, *s.Items, name, depth+1)}
	case s.Type == "integer" || s.Type == "number":
		return max(s.Minimum, 1)
	case s.Type == "boolean":
		return true
	case s.Type == "string" && secretField.MatchString(name):
		return c.next()
	case s.Type == "string" && s.Format == "date-time":
		return time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000Z")
	case s.Type == "string":
		return "plain"
	}
	out := map[string]any{}
	for field, of := range s.Properties {
		out[field] = c.fill(d, of, field, depth+1)
	}
	if len(out) == 0 {
		out[c.next()] = c.next() // a map of the caller's own, such as env
	}
	return out
}

// keep remembers what the server gave away in confidence.
func (c *canaries) keep(name string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for field, of := range v {
			c.keep(field, of)
		}
	case []any:
		for _, of := range v {
			c.keep(name, of)
		}
	case string:
		if len(v) >= 8 && slices.Contains([]string{"token", "key", "registration_token", "refresh_token", "access_token", "ticket", "device_code", "url", "install_command"}, name) {
			c.made = append(c.made, v)
		}
	}
}

// TestAU05_SecretsAreNowhereInRecordsAndLogs sends every operation of the
// document that changes something a canary in each field and header that may
// hold a secret, and then looks for them.
func TestAU05_SecretsAreNowhereInRecordsAndLogs(t *testing.T) {
	g := newGround(t)
	c := &canaries{tag: rand.Text()[:12]}
	var doc document
	_, raw := g.raw(t, http.MethodGet, "/docs/openapi.json", "", "")
	if err := json.Unmarshal([]byte(raw), &doc); err != nil {
		t.Fatal(err)
	}
	send := func(method, path, auth string, body any, header ...string) int {
		t.Helper()
		encoded, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, bytes.NewReader(encoded))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Cookie", "skerry_refresh="+c.next())
		req.Header.Set("Idempotency-Key", c.next())
		req.Header.Set("X-Skerry-Refresh", "1")
		req.Header.Set("Origin", g.url)
		if auth != "" {
			req.Header.Set("Authorization", "Bearer "+auth)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode >= 400 && bytes.Contains(answer, []byte(c.tag)) {
			t.Errorf("%s %s echoes a secret: %d %s", method, path, res.StatusCode, answer)
		}
		var v any
		if res.StatusCode < 300 && json.Unmarshal(answer, &v) == nil {
			c.keep("", v)
		}
		for _, cookie := range res.Cookies() {
			// One tells pages that there is a session, and nothing else.
			if cookie.Value != "" && (cookie.Name != "skerry_session" || cookie.Value != "1") {
				c.made = append(c.made, cookie.Value)
			}
		}
		return res.StatusCode
	}

	// What succeeds, with the secrets that the server makes.
	password := c.next()
	account := map[string]any{"email": "canary@example.org", "password": password, "name": "Canary"}
	if status := send(http.MethodPost, "/v1/auth/signup", "", account); status != http.StatusCreated {
		t.Fatalf("signup: %d", status)
	}
	token := c.made[0]
	for what, status := range map[string]int{
		"login":       send(http.MethodPost, "/v1/auth/login", "", map[string]any{"email": "canary@example.org", "password": password}),
		"key":         send(http.MethodPost, "/v1/api-keys", token, map[string]any{"name": "k"}),
		"host":        send(http.MethodPost, "/v1/hosts", g.admin, map[string]any{"type": "regular"}),
		"sandbox":     send(http.MethodPost, "/v1/sandboxes", token, map[string]any{"template": "base", "env": map[string]string{"A": c.next()}, "metadata": map[string]string{"m": c.next()}}),
		"wrong login": send(http.MethodPost, "/v1/auth/login", "", map[string]any{"email": "canary@example.org", "password": c.next()}) - http.StatusUnauthorized + 200,
		"wrong key":   send(http.MethodPost, "/v1/sandboxes", "", map[string]any{}, "X-API-Key", c.next()) - http.StatusUnauthorized + 200,
		"wrong token": send(http.MethodPost, "/v1/sandboxes", c.next(), map[string]any{}) - http.StatusUnauthorized + 200,
	} {
		if status >= 300 {
			t.Errorf("%s: %d", what, status)
		}
	}
	if len(c.made) < 4 {
		t.Errorf("the server made only %d secrets", len(c.made))
	}

	// Every operation that changes something, whatever comes of it.
	operations := 0
	for path, methods := range doc.Paths {
		for method, raw := range methods {
			var op operation
			if method == "get" || method == "parameters" || json.Unmarshal(raw, &op) != nil || op.ID == "logout" {
				continue
			}
			operations++
			query := "?x=" + c.next()
			for _, p := range op.Parameters {
				if p.In == "query" {
					query += "&" + p.Name + "=" + c.next()
				}
			}
			var body any
			for _, content := range op.RequestBody.Content {
				body = c.fill(doc, content.Schema, "", 0)
			}
			target := regexp.MustCompile(`\{[a-z_]+\}`).ReplaceAllString(path, "x") + query
			send(strings.ToUpper(method), target, token, body)
			send(strings.ToUpper(method), target, "", body, "X-API-Key", c.next())
		}
	}
	if operations < 25 {
		t.Errorf("the document has only %d operations that change something", operations)
	}
	t.Logf("%d canaries and %d secrets of the server, in %d operations", c.n, len(c.made), operations)

	if err := g.stop(); err != nil { // what is counted and logged late is there then
		t.Fatal(err)
	}
	kept := map[string]string{"the log": g.log.String()}
	for _, table := range []string{"audit_logs", "outbox", "sandbox_events", "operations", "refusal_counts"} {
		var all string
		if err := g.pool.QueryRow(t.Context(), "SELECT coalesce(string_agg(x::text, E'\\n'), '') FROM "+table+" x").Scan(&all); err != nil {
			t.Fatal(err)
		}
		kept[table] = all
	}
	for where, text := range kept {
		if text == "" {
			t.Errorf("nothing is in %s", where)
		}
		for _, secret := range append([]string{c.tag}, c.made...) {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s holds a secret: …%s…", where, text[max(0, i-200):min(len(text), i+80)])
			}
		}
	}
}
