package ratelimit_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/ratelimit"
)

type fakeClock struct{ now time.Time }

func (c *fakeClock) Now() time.Time { return c.now }

func TestC7_BurstThenRefill(t *testing.T) {
	clock := &fakeClock{now: time.Unix(1000, 0)}
	l := ratelimit.New(clock, ratelimit.Rate{Burst: 10, Per: time.Minute}, 100)
	for i := range 10 {
		if wait := l.Take("a"); wait != 0 {
			t.Fatalf("take %d waits %s", i, wait)
		}
	}
	if wait := l.Take("a"); wait != 6*time.Second {
		t.Errorf("the 11th waits %s, want 6s", wait)
	}
	if wait := l.Take("b"); wait != 0 {
		t.Errorf("another key waits %s", wait)
	}
	clock.now = clock.now.Add(6 * time.Second)
	if wait := l.Wait("a"); wait != 0 {
		t.Errorf("after 6s it waits %s", wait)
	}
	if first, second := l.Take("a"), l.Take("a"); first != 0 || second == 0 {
		t.Errorf("after 6s one token, got waits %s and %s", first, second)
	}
}

func TestGiveUndoesOneTakeAndNoMore(t *testing.T) {
	l := ratelimit.New(&fakeClock{now: time.Unix(1000, 0)}, ratelimit.Rate{Burst: 2, Per: time.Minute}, 100)
	for range 5 { // whoever is right each time never waits
		if wait := l.Take("a"); wait != 0 {
			t.Fatalf("waits %s", wait)
		}
		l.Give("a")
	}
	l.Give("a") // never more than full
	first, second, third := l.Take("a"), l.Take("a"), l.Take("a")
	if first != 0 || second != 0 || third == 0 {
		t.Errorf("a full bucket of two gives %s, %s, %s", first, second, third)
	}
	l.Give("a") // also into an empty one
	if wait := l.Take("a"); wait != 0 {
		t.Errorf("waits %s", wait)
	}
}

func TestLimiterKeepsActiveKeysWhenItForgets(t *testing.T) {
	clock := &fakeClock{now: time.Unix(1000, 0)}
	l := ratelimit.New(clock, ratelimit.Rate{Burst: 1, Per: time.Hour}, 4)
	if l.Take("guesser") != 0 {
		t.Fatal("first take waits")
	}
	for i := range 40 {
		l.Take(fmt.Sprint(i))
		if l.Take("guesser") == 0 {
			t.Fatalf("forgot an active key after %d others", i)
		}
	}
}

func TestIPKeyOfIPv6IsItsNetwork(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:2")
	if ratelimit.IPKey(a) != ratelimit.IPKey(b) {
		t.Errorf("%s and %s differ", a, b)
	}
	if got := ratelimit.IPKey(netip.MustParseAddr("::ffff:192.0.2.7")); got != "192.0.2.7" {
		t.Errorf("mapped address is %s", got)
	}
}
