package rpcerr

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"skerry.dev/skerry/internal/kernel/errs"
)

func TestEveryClassSurvivesTheWire(t *testing.T) {
	for c := range classes() {
		in := errs.New(c, "some_reason", "what to do").Because(errors.New("secret")).After(1500 * time.Millisecond)
		wire := ToConnect(in)
		if strings.Contains(wire.Error(), "secret") {
			t.Errorf("%s: the private cause is sent: %v", c, wire)
		}
		got := errs.As(FromConnect(wire))
		if got.Code != c || got.Reason != "some_reason" || got.Message != "what to do" || got.RetryAfter != 2*time.Second {
			t.Errorf("%s came back as %+v", c, got)
		}
	}
}

func TestUntypedAndTransportErrors(t *testing.T) {
	if err := ToConnect(nil); err != nil {
		t.Errorf("nil became %v", err)
	}
	if got := connect.CodeOf(ToConnect(errors.New("disk on fire"))); got != connect.CodeInternal {
		t.Errorf("an untyped error is %v", got)
	}
	if strings.Contains(ToConnect(errors.New("disk on fire")).Error(), "fire") {
		t.Error("an untyped error is sent as it is")
	}
	if got := connect.CodeOf(ToConnect(context.DeadlineExceeded)); got != connect.CodeUnavailable {
		t.Errorf("a deadline is %v", got)
	}
	lost := FromConnect(connect.NewError(connect.CodeUnavailable, errors.New("connection refused")))
	if !errs.Is(lost, "host_unavailable") || errs.CodeOf(lost) != errs.CodeUnavailable {
		t.Errorf("a lost connection is %v", lost)
	}
}

func TestAPeerCannotClaimAnotherClass(t *testing.T) {
	ce := connect.NewError(connect.CodeInternal, errors.New("x"))
	ce.Meta().Set(HeaderReason, "r")
	ce.Meta().Set(HeaderCode, string(errs.CodeNotFound))
	if got := errs.CodeOf(FromConnect(ce)); got != errs.CodeInternal {
		t.Errorf("got %s", got)
	}
}

func TestDetailsTravel(t *testing.T) {
	sent := errs.FailedPrecondition("not_idle", "Busy.").With("idle_ms", int64(1)<<60).With("what", "é").With("list", []int{1})
	got := errs.As(FromConnect(ToConnect(sent)))
	if len(got.Details) != 2 || got.Details["idle_ms"] != int64(1)<<60 || got.Details["what"] != "é" {
		t.Errorf("arrived: %v", got.Details)
	}
	huge := errs.As(FromConnect(ToConnect(sent.With("huge", strings.Repeat("x", 1<<20)))))
	if huge.Reason != "not_idle" || len(huge.Details) != 0 {
		t.Errorf("what is too large is believed: %.40v", huge)
	}
}
