package browser

import "testing"

func TestD1_TheMainFlowByKeyboardAlone(t *testing.T) { beside(t, "keyboard") }

func TestD1_D2_SessionsLeaveNothingBehind(t *testing.T) { beside(t, "sessions") }

func TestD2_A3_LoginAtAProvider(t *testing.T) { beside(t, "oauth") }
