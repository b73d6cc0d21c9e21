package hosthttp

import (
	"testing"
	"time"

	"skerry.dev/skerry/gen/restapi"
)

// An agent writes times as Go does, with as many digits as there are. What is
// refused here is lost: the agent drops an event that can never be taken.
func TestTimesOfHostsHaveAnyNumberOfDigits(t *testing.T) {
	for _, at := range []string{
		"2026-11-21T23:35:00Z", "2026-11-21T23:35:00.5Z", "2026-11-21T23:35:00.661419Z",
		"2026-11-21T23:35:00.661419213Z", "2026-11-22T00:35:00.66+01:00",
	} {
		var req restapi.HostEventsRequest
		body := `{"generation":1,"events":[{"seq":1,"kind":"exited","sandbox_id":"01a20071-ee6e-730e-b541-708ba6e705e9","incarnation":1,"at":"` + at + `","data":{"reason":"killed"}}]}`
		if err := req.UnmarshalJSON([]byte(body)); err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		want, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		var measured restapi.HostSamplesRequest
		body = `{"samples":[{"sandbox_id":"01a20071-ee6e-730e-b541-708ba6e705e9","incarnation":1,"at":"` + at + `","cpu_millis":1,"memory_bytes":1,"disk_bytes":1,"processes":1}]}`
		if err := measured.UnmarshalJSON([]byte(body)); err != nil {
			t.Errorf("a sample's %s: %v", at, err)
		}
		got, err := toReport(req.Events[0])
		if err != nil || !got.At.Equal(want) || got.EndReason() != "killed" {
			t.Errorf("%s: %+v, %v", at, got, err)
		}
	}
}
