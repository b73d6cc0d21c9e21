package app_test

import (
	"testing"
	"time"

	processpb "skerry.dev/skerry/gen/guestrpc/process"
)

// TestStartToEndIsQuick reports what one short command costs over the wire.
func TestStartToEndIsQuick(t *testing.T) {
	d := ready(t)
	const n = 100
	began := time.Now()
	for range n {
		if o := d.run(ctxFor(t), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/true"}}); o.err != nil || o.end.GetExitCode() != 0 {
			t.Fatalf("%+v", o)
		}
	}
	each := time.Since(began) / n
	t.Logf("start to end of /bin/true: %s", each)
	if each > 100*time.Millisecond {
		t.Errorf("one short command takes %s: something waits that should not", each)
	}
}
