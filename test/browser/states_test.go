package browser

import "testing"

// These take longest. The last test of a package is the first to go on beside
// others, so that neither of them is alone in the end.

func TestDA03_EveryPageByEveryRoleByEveryFault(t *testing.T) { beside(t, "failures") }

func TestD8_EveryPageInEachOfItsStates(t *testing.T) { beside(t, "states") }
