package app

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

type hostAnswer struct {
	ID                string            `json:"id"`
	Name              string            `json:"name"`
	Status            string            `json:"status"`
	Labels            map[string]string `json:"labels"`
	Drained           bool              `json:"drained"`
	DrainDeadline     string            `json:"drain_deadline"`
	NeedsRegistration bool              `json:"needs_registration"`
	Sandboxes         int               `json:"sandboxes"`
	Capacity          amounts           `json:"capacity"`
	Reserved          amounts           `json:"reserved"`
	Load              map[string]int64  `json:"load"`
}

type amounts struct {
	CPU    int64 `json:"cpu_millis"`
	Memory int64 `json:"memory_mb"`
	Disk   int64 `json:"disk_mb"`
}

// A host that two servers talk to is emptied, taken back and deleted: within a
// second neither has a connection left, whoever knocks with its credentials
// hears the signed word, and nothing is placed there any more.
func TestH11_H12_HI06_AHostLeavesAllServersAtOnce(t *testing.T) {
	url, storeDir := pgtest.Empty(t), t.TempDir()
	_, secret := keyring.NewSecret()
	g := newGroundOn(t, url, secret, storeDir)
	other := start(t, url, secret, storeDir)
	path := "/v1/hosts/" + g.hostID

	var h hostAnswer
	g.do(t, http.MethodGet, path, g.admin, nil, http.StatusOK, &h)
	if h.Status != "online" || h.Sandboxes != 1 || h.Capacity.CPU != 4000 || h.Reserved.CPU != 1000 || h.Reserved.Disk != 4096 || h.Load["disk_free_bytes"] != 1 || h.NeedsRegistration {
		t.Errorf("%+v", h)
	}
	g.do(t, http.MethodPatch, path, g.admin, map[string]any{"name": "north", "labels": map[string]string{"gpu": "no"}}, http.StatusOK, &h)
	if h.Name != "north" || h.Labels["gpu"] != "no" {
		t.Errorf("%+v", h)
	}
	g.refused(t, http.MethodPatch, path, g.admin, map[string]any{"name": ""}, http.StatusBadRequest, "invalid_request")
	g.refused(t, http.MethodPost, path+"/drain", g.admin, map[string]any{"deadline_sec": 0}, http.StatusBadRequest, "invalid_request")

	g.do(t, http.MethodPost, path+"/drain", g.admin, map[string]any{"deadline_sec": 3600}, http.StatusOK, &h)
	if h.Status != "draining" || h.DrainDeadline == "" {
		t.Errorf("%+v", h)
	}
	g.refused(t, http.MethodPost, "/v1/sandboxes", g.annKey, map[string]any{"template": "base"}, http.StatusServiceUnavailable, "no_capacity")
	testkit.Eventually(t, 20*time.Second, "it is drained", func() bool {
		h = hostAnswer{}
		other.do(t, http.MethodGet, path, g.admin, nil, http.StatusOK, &h)
		return h.Drained
	})
	var x struct {
		Status string `json:"status"`
		Reason string `json:"paused_reason"`
	}
	g.do(t, http.MethodGet, "/v1/sandboxes/"+g.annSandbox, g.annKey, nil, http.StatusOK, &x)
	if x.Status != "paused" || x.Reason != "drain" {
		t.Errorf("%+v", x)
	}
	g.refused(t, http.MethodPost, "/v1/sandboxes/"+g.annSandbox+"/resume", g.annKey, map[string]any{}, http.StatusServiceUnavailable, "host_draining")
	h = hostAnswer{}
	g.do(t, http.MethodPost, path+"/undrain", g.admin, nil, http.StatusOK, &h)
	if h.Status != "online" || h.DrainDeadline != "" || h.Drained {
		t.Errorf("%+v", h)
	}
	// Both servers reach it.
	for _, s := range []*server{g.server, other} {
		s.do(t, http.MethodPost, "/v1/sandboxes", g.annKey, map[string]any{"template": "base"}, http.StatusCreated, nil)
	}
	if n := g.host.open.Load(); n < 2 {
		t.Fatalf("%d connections", n)
	}

	var lost struct {
		Items []struct {
			Kind, ID, Status string
		} `json:"items"`
		Next      string `json:"next_cursor"`
		Sandboxes int    `json:"sandboxes"`
	}
	g.do(t, http.MethodGet, path+"/delete-preview?limit=2", g.admin, nil, http.StatusOK, &lost)
	if lost.Sandboxes != 3 || len(lost.Items) != 2 || lost.Items[0].ID != g.annSandbox || lost.Next == "" {
		t.Errorf("%+v", lost)
	}
	f := g.refused(t, http.MethodDelete, path, g.admin, nil, http.StatusConflict, "has_active_sandboxes")
	if items, ok := f.Error.Details["items"].([]any); !ok || len(items) != 3 {
		t.Errorf("%+v", f.Error.Details)
	}
	g.do(t, http.MethodDelete, path+"?force=true", g.admin, nil, http.StatusNoContent, nil)
	start := time.Now()
	testkit.Eventually(t, 10*time.Second, "no connection is left", func() bool { return g.host.open.Load() == 0 })
	if d := time.Since(start); d > time.Second {
		t.Errorf("the last connection went after %s", d)
	}
	g.host.mu.Lock()
	if n := len(g.host.sandboxes); n != 0 {
		t.Errorf("%d sandboxes were not ended there", n)
	}
	g.host.mu.Unlock()
	g.refused(t, http.MethodGet, path, g.admin, nil, http.StatusNotFound, "host_not_found")
	g.refused(t, http.MethodDelete, path, g.admin, nil, http.StatusNotFound, "host_not_found")
	(&ground{server: other}).refused(t, http.MethodPost, "/v1/sandboxes", g.annKey, map[string]any{"template": "base"}, http.StatusServiceUnavailable, "no_capacity")

	for _, s := range []*server{g.server, other} {
		g.host.url = s.agentURL
		for call, body := range map[string]any{
			"/v1/hosts/" + g.hostID + "/heartbeat": map[string]any{
				"generation": 2, "address": g.host.address, "version": "1",
				"load": map[string]any{"sandboxes": 0, "cpu_millis": 0, "memory_bytes": 0, "disk_free_bytes": 1},
			},
			"/v1/hosts/" + g.hostID + "/events":  map[string]any{"generation": 2, "events": []any{}},
			"/v1/hosts/" + g.hostID + "/samples": map[string]any{"samples": []any{}},
			"/v1/hosts/auth/refresh":             map[string]any{"refresh_token": g.host.creds.Refresh, "csr": g.host.csr},
		} {
			status, raw := g.host.call(t, call, body)
			var f failure
			if err := json.Unmarshal(raw, &f); err != nil || status != http.StatusGone || f.Error.Code != "host_deleted" {
				t.Errorf("%s: %d %s", call, status, raw)
				continue
			}
			statement, _ := f.Error.Details["statement"].(string)
			token, _, err := jwt.NewParser().ParseUnverified(statement, jwt.MapClaims{})
			if err != nil || token.Header["typ"] != keyring.HostDeletedType {
				t.Errorf("%s: %v %v", call, token, err)
				continue
			}
			if sub, err := token.Claims.GetSubject(); err != nil || sub != g.hostID {
				t.Errorf("%s: about %q (%v)", call, sub, err)
			}
		}
	}
	if n := g.host.open.Load(); n != 0 {
		t.Errorf("%d new connections to a deleted host", n)
	}
	if logs := g.log.String(); strings.Contains(logs, `"status":500`) {
		t.Errorf("faults in the log:\n%s", logs)
	}
}
