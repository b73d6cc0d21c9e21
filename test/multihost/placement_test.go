package multihost

import (
	"testing"
)

// One server was asked to make it, the other to run something in it.
func TestH13_SandboxesAreServedThroughEitherServer(t *testing.T) {
	w := open(t)
	a, b := w.Servers[0], w.Servers[1]
	box := a.Create(t, small(nil))
	b.Sh(t, box.ID, "echo kept >/home/user/kept")
	if got := a.Sh(t, box.ID, "cat /home/user/kept").Stdout; got != "kept\n" {
		t.Errorf("through the other server it says %q", got)
	}
}

func small(more map[string]any) map[string]any {
	options := map[string]any{"vcpus": 0.2, "memory_mb": 128, "disk_mb": 512, "timeout_sec": 7200}
	for key, value := range more {
		options[key] = value
	}
	return options
}
