package browser

import "testing"

// What people come for, from the first page to the last.
func TestD3_SandboxFromSignUpToDestroy(t *testing.T) {
	beside(t, "flow")
}
