package guestlink

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/guest/guestapi"
	"skerry.dev/skerry/internal/testkit"
)

// A daemon comes along with the sandbox, or the saved memory, that it is in: this
// agent may find one that says more than it knows, and one that says less.
func TestP7_DaemonsOfOtherReleasesAreUnderstood(t *testing.T) {
	for name, said := range map[string]struct {
		metrics string
		idle    time.Duration
	}{
		"later":   {`{"idle_ms":5,"later":{"than":["this"]}}`, 5 * time.Millisecond},
		"earlier": {`{"ts":1}`, 0}, // which is at work, for all we know
	} {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"later":1}`) })
		mux.HandleFunc("POST /init", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"later":1}`) })
		mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, said.metrics) })
		mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintln(w, `{"seq":1,"kind":"of_a_later_release","later":{"than":["this"]}}`)
			fmt.Fprintln(w, `{"seq":2,"kind":"oom_kill","later":true}`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		got := &sink{}
		l := newLink(t, Options{Dial: guest(t, mux), InitSecret: "s", OnEvent: got.take})
		if err := l.Await(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := l.Init(t.Context(), guestapi.Init{NewInitSecret: "t"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		l.Follow()
		testkit.Eventually(t, 10*time.Second, "the event that is known", func() bool { return got.len() == 1 })
		testkit.Eventually(t, 10*time.Second, "how long nothing goes on", func() bool {
			idle, err := l.Idle(t.Context())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return idle == said.idle
		})
		l.Close()
		if diff := cmp.Diff([]int64{2}, got.seqs); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
