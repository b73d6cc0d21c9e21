package build

import (
	"testing"

	"skerry.dev/skerry/internal/kernel/id"
)

// One team does not take every place there is.
func TestUploadsOfATeamAreBounded(t *testing.T) {
	u := &uploads{of: map[id.Team]int{}}
	var ends []func()
	greedy := id.NewTeam()
	for range 2 * maxUploads {
		if done, ok := u.begin(greedy); ok {
			ends = append(ends, done)
		}
	}
	if len(ends) != teamUploads {
		t.Errorf("it has %d", len(ends))
	}
	for len(ends) < maxUploads {
		done, ok := u.begin(id.NewTeam())
		if !ok {
			t.Fatalf("others have %d", len(ends)-teamUploads)
		}
		ends = append(ends, done)
	}
	if _, ok := u.begin(id.NewTeam()); ok {
		t.Error("more than there may be")
	}
	for _, done := range ends {
		done()
	}
	if u.total != 0 || len(u.of) != 0 {
		t.Errorf("%d are left of %d teams", u.total, len(u.of))
	}
}
