package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	aBox = `{"id":"sb-1","status":"paused","template":"base","template_id":"tpl-1","engine":"gvisor","vcpus":0.5,"memory_mb":512,"disk_mb":4096,
		"internet":true,"metadata":{"job":"7"},"timeout_sec":300,"on_timeout":"pause","actions":["resume"],"created_by":"Ann","created_at":"2026-01-02T03:04:05.000000Z",
		"paused_at":"2026-01-02T03:04:05.000000Z","paused_reason":"idle","saved_at":"2026-01-02T03:04:05.000000Z","saved_bytes":12000000,"only_on_host":"box"}`
	aSnapshot = `{"id":"snap-1","name":"ready","type":"snapshot","status":"ready","sandbox_id":"sb-1","template":"base","engine":"gvisor","memory":true,
		"vcpus":0.5,"memory_mb":512,"disk_mb":4096,"size_bytes":12000000,"stored":true,"stored_bytes":2500000,"hosts":["box","other"],"created_by":"Ann","created_at":"2026-01-02T03:04:05.000000Z"}`
	aSample = `{"at":"2026-01-02T03:04:05.000000Z","vcpus_used":0.25,"memory_bytes":1000000,"disk_bytes":2000000,"processes":3}`
	taken   = `{"error":{"code":"invalid_state","message":"The sandbox is running.","request_id":"r"}}`
)

const anAccess = `{"id":"port-1","port":3000,"public":false,"url":"http://3000-sb-1.localhost/","created_by":"x","created_at":"2026-01-02T03:04:05.000000Z","expires_at":"2026-01-02T04:04:05.000000Z"}`

// TestO3_SavingCommands: what each verb asks the server for, and what it prints.
func TestO3_SavingCommands(t *testing.T) {
	answers := map[string]string{
		"POST /v1/sandboxes":                     "201 " + aBox,
		"GET /v1/sandboxes":                      `{"items":[` + aBox + `]}`,
		"GET /v1/sandboxes/sb-1":                 aBox,
		"POST /v1/sandboxes/sb-1/pause":          aBox,
		"POST /v1/sandboxes/sb-2/pause":          "409 " + taken,
		"POST /v1/sandboxes/sb-1/resume":         aBox,
		"POST /v1/sandboxes/sb-1/recover":        aBox,
		"GET /v1/snapshots/ready":                aSnapshot,
		"POST /v1/sandboxes/sb-1/fork":           `201 {"items":[` + aBox + `,` + strings.Replace(aBox, "sb-1", "sb-3", 1) + `]}`,
		"POST /v1/sandboxes/sb-1/timeout":        aBox,
		"GET /v1/sandboxes/sb-1/logs":            `{"text":"one\n\u001b[31mtwo\r\n","truncated":true}`,
		"GET /v1/sandboxes/sb-1/metrics":         `{"vcpus":0.5,"memory_limit_bytes":536870912,"disk_limit_bytes":4294967296,"samples":[` + aSample + `],"live":` + aSample + `}`,
		"GET /v1/snapshots":                      `{"items":[` + aSnapshot + `]}`,
		"POST /v1/snapshots":                     "201 " + aSnapshot,
		"DELETE /v1/snapshots/ready":             "204 ",
		"POST /v1/sandboxes/sb-1/ports":          `201 {"access":` + anAccess + `,"token":"skp_1","url":"http://3000-sb-1.localhost/?skerry_token=skp_1"}`,
		"GET /v1/sandboxes/sb-1/ports":           `{"items":[` + anAccess + `]}`,
		"DELETE /v1/sandboxes/sb-1/ports/port-1": "204 ",
		"DELETE /v1/snapshots/gone":              `404 {"error":{"code":"snapshot_not_found","message":"There is no such snapshot.","request_id":"r"}}`,
	}
	for line, want := range map[string]struct {
		asks string
		says string
		code int
	}{
		"sandbox create --auto-resume":                     {`POST /v1/sandboxes {"template":"base","auto_resume":true}`, "sb-1\n", 0},
		"sandbox create --snapshot ready --checkpoint 10m": {`POST /v1/sandboxes {"snapshot":"ready","checkpoint_interval_sec":600}`, "sb-1\n", 0},
		"sandbox create --host-label zone=north,1":         {`POST /v1/sandboxes {"template":"base","host_labels":{"zone":"north,1"}}`, "sb-1\n", 0},
		"sandbox create --host-label zone":                 {"", "host-label", ExitUsage},

		"sandbox expose sb-1 3000":                                    {`POST /v1/sandboxes/sb-1/ports {"port":3000}`, "http://3000-sb-1.localhost/?skerry_token=skp_1\n", 0},
		"sandbox expose sb-1 3000 --public --name x --for 1h -o json": {`POST /v1/sandboxes/sb-1/ports {"port":3000,"public":true,"name":"x","expires_in_sec":3600}`, `"token": "skp_1"`, 0},
		"sandbox expose sb-1 x":                                       {"", "port", ExitUsage},
		"sandbox ports sb-1":                                          {"GET /v1/sandboxes/sb-1/ports", "a token", 0},
		"sandbox unexpose sb-1 port-1":                                {"DELETE /v1/sandboxes/sb-1/ports/port-1", "port-1 is taken back", 0},

		"sandbox list":       {"GET /v1/sandboxes", "paused", 0},
		"sandbox get sb-1":   {"GET /v1/sandboxes/sb-1", "12.0 MB, only on box", 0},
		"sandbox pause sb-1": {`POST /v1/sandboxes/sb-1/pause {"memory":true}`, "sb-1 is paused", 0},

		"sandbox pause sb-1 --disk-only --no-wait": {`POST /v1/sandboxes/sb-1/pause?wait=0 {"memory":false}`, "sb-1 is paused", 0},
		"sandbox pause sb-1 -o json":               {`POST /v1/sandboxes/sb-1/pause {"memory":true}`, `"status": "paused"`, 0},
		"sandbox pause sb-2":                       {`POST /v1/sandboxes/sb-2/pause {"memory":true}`, "invalid_state", exitConflict},
		"sandbox resume sb-1 --timeout 10m":        {`POST /v1/sandboxes/sb-1/resume {"timeout_sec":600,"memory":true}`, "sb-1 is", 0},
		"sandbox recover sb-1":                     {"POST /v1/sandboxes/sb-1/recover", "sb-1 is paused", 0},
		"sandbox create --paused-ttl 48h":          {`POST /v1/sandboxes {"template":"base","paused_ttl_sec":172800}`, "sb-1\n", 0},
		"snapshot get ready":                       {"GET /v1/snapshots/ready", "2.5 MB compressed", 0},
		"sandbox fork sb-1 -n 2 -m job=8":          {`POST /v1/sandboxes/sb-1/fork {"count":2,"metadata":{"job":"8"}}`, "sb-1\nsb-3\n", 0},
		"sandbox fork sb-1 -o json":                {`POST /v1/sandboxes/sb-1/fork {"count":1}`, `"id": "sb-3"`, 0},
		"sandbox timeout sb-1 30m":                 {`POST /v1/sandboxes/sb-1/timeout {"timeout_sec":1800}`, "sb-1 is", 0},
		"sandbox logs sb-1":                        {"GET /v1/sandboxes/sb-1/logs", "(the beginning is cut)\none\n [31mtwo\n", 0},
		"sandbox logs sb-1 -o json":                {"GET /v1/sandboxes/sb-1/logs", `"truncated": true`, 0},
		"sandbox metrics sb-1":                     {"GET /v1/sandboxes/sb-1/metrics", "0.25 of 0.5", 0},
		"sandbox metrics sb-1 -o json":             {"GET /v1/sandboxes/sb-1/metrics", `"processes": 3`, 0},
		"snapshot create sb-1 ready":               {`POST /v1/snapshots {"sandbox_id":"sb-1","name":"ready","memory":true,"overwrite":false}`, "snap-1\n", 0},
		"snapshot list":                            {"GET /v1/snapshots?type=snapshot", "store, 2 hosts", 0},
		"snapshot ls --type all -o json":           {"GET /v1/snapshots?type=all", `"size_bytes": 12000000`, 0},
		"snapshot rm ready":                        {"DELETE /v1/snapshots/ready", "ready is deleted", 0},
		"snapshot rm gone":                         {"DELETE /v1/snapshots/gone", "snapshot_not_found", exitNotFound},
		"snapshot list --type nonsense":            {"", "must be one of", ExitUsage},
	} {
		t.Run(line, func(t *testing.T) {
			asked := ""
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				path := r.URL.RequestURI()
				if strings.HasSuffix(r.URL.Path, "/metrics") {
					path = r.URL.Path // it asks since when
				}
				asked += strings.TrimSpace(r.Method + " " + path + " " + string(body))
				answer, status := answers[r.Method+" "+r.URL.Path], http.StatusOK
				if n, err := fmt.Sscanf(answer, "%3d ", &status); n == 1 && err == nil {
					answer = answer[4:]
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, answer)
			}))
			defer server.Close()
			got := newShell(t, server.URL).run(t, append(strings.Fields(line), "--api-key", "k")...)
			if said := got.stderr + got.stdout; got.code != want.code || !strings.Contains(said, want.says) {
				t.Errorf("exit code %d, want %d: says %q", got.code, want.code, said)
			}
			if diff := cmp.Diff(want.asks, asked); diff != "" {
				t.Error(diff)
			}
		})
	}
}
