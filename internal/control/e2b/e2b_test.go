package e2b

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/errs"
)

// encoded is a metadata filter as clients send it, decoded as a query once.
func encoded(metadata map[string]string) string {
	component := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
	form := url.Values{}
	for k, v := range metadata {
		form.Set(component(k), component(v))
	}
	return form.Encode()
}

func TestS11_MetadataFiltersSurviveTheirEncoding(t *testing.T) {
	for _, want := range []map[string]string{
		{}, {"a": "b"}, {"a": ""}, {"a b": "c d", "e": "f"}, {"k&=": "v&=%+"}, {"é": "日本"}, {"a=b": "c=d"}, {"100%": "%41"},
	} {
		got, err := metadataOf(encoded(want))
		if err != nil {
			t.Errorf("%v: %v", want, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: %s", want, diff)
		}
	}
	for _, bad := range []string{"a", "a=%25zz", "%zz", "%25zz=1", "a=%2500"} {
		if got, err := metadataOf(bad); errs.CodeOf(err) != errs.CodeInvalid {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}

func TestS11_CreatesAreTranslated(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	no := false
	for body, want := range map[string]sandbox.CreateRequest{
		`{"templateID":"base"}`: {TimeoutSec: number(300), OnTimeout: sandbox.OnTimeoutKill},
		`{"templateID":"base","timeout":7,"secure":true,"new":[1]}`: {TimeoutSec: number(7), OnTimeout: sandbox.OnTimeoutKill},
		`{"templateID":"base","autoPause":true,"autoPauseMemory":true,"autoResume":{"enabled":true}}`: {
			TimeoutSec: number(300), OnTimeout: sandbox.OnTimeoutPause, AutoResume: true,
		},
		`{"templateID":"base","allow_internet_access":false,"metadata":{"a":"b"},"envVars":{"C":"d"},"mcp":null,"volumeMounts":[]}`: {
			TimeoutSec: number(300), OnTimeout: sandbox.OnTimeoutKill, Internet: &no, Metadata: map[string]string{"a": "b"}, Env: map[string]string{"C": "d"},
		},
		`{"templateID":"base","network":{"denyOut":["0.0.0.0/0"],"allowOut":[],"egressProxy":null}}`: {
			TimeoutSec: number(300), OnTimeout: sandbox.OnTimeoutKill, Internet: &no,
		},
	} {
		var n newSandbox
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			t.Fatal(err)
		}
		got, err := n.request(timeoutV2)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
	for body, field := range map[string]string{
		`{}`:                                     "templateID",
		`{"templateID":"b","timeout":0}`:         "timeout",
		`{"templateID":"b","timeout":-1}`:        "timeout",
		`{"templateID":"b","mcp":{"a":1}}`:       "mcp",
		`{"templateID":"b","iam":{"tokens":{}}}`: "iam",
		`{"templateID":"b","volumeMounts":[{"name":"v","path":"/v"}]}`:           "volumeMounts",
		`{"templateID":"b","network":{"allowOut":["a.example"]}}`:                "network.allowOut",
		`{"templateID":"b","network":{"denyOut":["10.0.0.0/8"]}}`:                "network.denyOut",
		`{"templateID":"b","network":{"egressProxy":{"address":"a"}}}`:           "network.egressProxy",
		`{"templateID":"b","autoPauseMemory":false}`:                             "autoPauseMemory",
		`{"templateID":"b","autoPause":true,"autoPauseMemory":false}`:            "autoPauseMemory",
		`{"templateID":"b","network":{"denyOut":["0.0.0.0/0"],"rules":{"a":1}}}`: "network.rules",
	} {
		var n newSandbox
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			t.Fatal(err)
		}
		_, err := n.request(timeoutV2)
		if got := errs.As(err); got == nil || got.Code != errs.CodeInvalid || got.Details["field"] != field {
			t.Errorf("%s: %v, want %s to be at fault", body, err, field)
		}
	}
}

func TestS11_NamesOfTemplatesAndSnapshots(t *testing.T) {
	for name, want := range map[string][2]string{
		"base": {"base", ""}, "base:default": {"base", ""}, "base:v2": {"base:v2", ""}, "snap-1": {"", "snap-1"}, "snap-1:default": {"", "snap-1"},
	} {
		if tpl, snapshot := source(name); tpl != want[0] || snapshot != want[1] {
			t.Errorf("%s: %q, %q", name, tpl, snapshot)
		}
	}
}

func TestS11_BodiesMayBeAbsentAndKnowMore(t *testing.T) {
	for body, fault := range map[string]string{"": "", "{}": "", `{"timeout":3,"other":{}}`: "", `[]`: "invalid_request", `{`: "invalid_request", `{"timeout":"3"}`: "invalid_request"} {
		var into waking
		err := read(httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)), &into)
		if fault == "" && err != nil || fault != "" && !errs.Is(err, fault) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

// What the protocol calls one state is several of ours, and none is lost.
func TestS11_EveryStatusHasItsPlace(t *testing.T) {
	all, err := statusesOf(nil)
	if err != nil {
		t.Fatal(err)
	}
	one, err := statusesOf([]string{"running", "paused"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, one); diff != "" {
		t.Error(diff)
	}
	in := map[sandbox.Status]bool{}
	for _, s := range all {
		in[s] = true
	}
	for _, s := range sandbox.Statuses() {
		if in[s] != present(s) {
			t.Errorf("%s: listed %t, present %t", s, in[s], present(s))
		}
	}
	if _, err := statusesOf([]string{"stopped"}); errs.CodeOf(err) != errs.CodeInvalid {
		t.Errorf("an unknown state: %v", err)
	}
}

// Each route is one of our own operations, so that their permissions hold for it.
func TestC8_EveryRouteIsAnOperationOfOurs(t *testing.T) {
	for _, r := range (&Facade{}).routes() {
		method, path, _ := strings.Cut(r.pattern, " ")
		for _, name := range []string{"snap-1", "base"} {
			req := httptest.NewRequest(method, strings.NewReplacer("{id}", name, "{alias}", name).Replace(path), nil)
			req.SetPathValue("id", name)
			operation := r.operation(req)
			if p, ok := web.PermissionOf(operation); !ok || p.Anonymous || len(p.Scopes) == 0 {
				t.Errorf("%s is %s: %+v", r.pattern, operation, p)
			}
		}
	}
}
