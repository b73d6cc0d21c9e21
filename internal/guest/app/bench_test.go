package app_test

import (
	"testing"
	"time"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/testkit"
)

// TestStartToEndIsQuick reports what one short command costs over the wire.
func TestStartToEndIsQuick(t *testing.T) {
	d := ready(t)
	const n = 100
	// More, and something waits that should not.
	testkit.Promise(t, 100*time.Millisecond, "one short command of a hundred", func() time.Duration {
		began := time.Now()
		for range n {
			if o := d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/true"}}); o.err != nil || o.end.GetExitCode() != 0 {
				t.Fatalf("%+v", o)
			}
		}
		each := time.Since(began) / n
		t.Logf("start to end of /bin/true: %s", each)
		return each
	})
}
