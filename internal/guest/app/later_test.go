package app_test

import (
	"net/http"
	"strings"
	"testing"
)

// The agent of a later release, to which a sandbox has come with its daemon, says
// more than that knows, asks for what it has not, and gets along.
func TestP7_ALaterAgentGetsAlongWithThisDaemon(t *testing.T) {
	d := ready(t)
	later := strings.NewReader(`{"envVars":{"A":"1"},"maxProcesses":9,"lifecycleID":"2","later":{"than":["this"]},"evenLater":true}`)
	if res, body := d.do("POST", "/init", later, "X-Skerry-Init", secret, "X-Skerry-Later", "1"); res.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if _, body := d.do("GET", "/envs", nil); strings.TrimSpace(string(body)) != `{"A":"1"}` {
		t.Errorf("environment %s", body)
	}
	if res, _ := d.do("GET", "/later", nil, "X-Skerry-Init", secret); res.StatusCode != http.StatusNotFound {
		t.Errorf("a path that is not there yet: %d", res.StatusCode)
	}
}
