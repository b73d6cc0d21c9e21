package web_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"skerry.dev/skerry/internal/control/web"
)

// One key of each scope by every operation of the document: what a scope lets a
// key do is written out here once more, so that nobody widens it in passing.
// Whatever has no line is refused to all keys, as are members, keys, hosts,
// accounts, the trail and the platform's administration.
func TestID07_OneKeyPerScopeByEveryOperation(t *testing.T) {
	s := newStack(t, options{})
	var operations []operation
	for _, op := range documentOperations(t) {
		if op.raw && strings.HasPrefix(op.path, "/v1/") { // the others are there
			s.web.Mount(web.Route{Method: op.method, Path: op.path, Operation: op.id, Handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }})
		}
		operations = append(operations, op)
	}
	const all, sandboxes, snapshots, reading, saved, templates = "read sandboxes snapshots templates", "sandboxes", "snapshots",
		"read sandboxes", "read sandboxes snapshots", "read sandboxes templates"
	expected := map[string]string{
		"getLimits": all, "streamEvents": all, "createEventTicket": all,
		"listTemplates": templates, "getTemplate": templates, "listBuilds": templates, "getBuild": templates, "getBuildLogs": templates,
		"createTemplate": "templates", "deleteTemplate": "templates", "uploadBuildContext": "templates", "cancelBuild": "templates",
		"listSnapshots": saved, "getSnapshot": saved, "createSnapshot": snapshots, "deleteSnapshot": snapshots,
	}
	for _, op := range []string{
		"listSandboxes", "getSandbox", "listSandboxEvents", "getSandboxMetrics", "getSandboxLogs", "downloadFile", "listFiles", "statFile", "createSandboxTicket", "listPorts",
	} {
		expected[op] = reading
	}
	for _, op := range []string{
		"createSandbox", "deleteSandbox", "execSandbox", "pauseSandbox", "resumeSandbox", "recoverSandbox", "forkSandbox", "setSandboxTimeout", "pingSandbox",
		"streamExec", "openPTY", "uploadFile", "removeFile", "makeDirectory", "moveFile", "openPort", "closePort",
	} {
		expected[op] = sandboxes
	}
	a := s.signup(t, "ada@example.com")
	variable := regexp.MustCompile(`\{\w+\}`)
	cells := 0
	for _, scope := range strings.Fields(all) {
		key, _ := s.apiKey(t, a.Token, map[string]any{"name": scope, "scopes": []string{scope}})
		for _, op := range operations {
			if p, _ := web.PermissionOf(op.id); p.Anonymous {
				continue
			}
			cells++
			r := s.call(t, op.method, variable.ReplaceAllString(op.path, "x"), "{", "X-API-Key", key)
			if may := slices.Contains(strings.Fields(expected[op.id]), scope); may != (r.status != 401 && r.status != 403) {
				t.Errorf("%s with a key of scope %s: %d %s", op.id, scope, r.status, r.body)
			}
		}
	}
	for op := range expected {
		if !slices.ContainsFunc(operations, func(o operation) bool { return o.id == op }) {
			t.Errorf("%s is expected and not in the document", op)
		}
	}
	t.Logf("%d cells", cells)
}
