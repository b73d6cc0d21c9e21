package id_test

import (
	"strings"
	"testing"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

func TestC2_EachKindHasItsOwnPrefix(t *testing.T) {
	forms := map[string]string{
		"usr": id.NewUser().String(), "team": id.NewTeam().String(), "key": id.NewAPIKey().String(), "host": id.NewHost().String(),
		"htok": id.NewHostToken().String(), "hrt": id.NewHostRefreshToken().String(), "sb": id.NewSandbox().String(), "tpl": id.NewTemplate().String(),
		"snap": id.NewSnapshot().String(), "log": id.NewAuditEntry().String(), "op": id.NewOperation().String(), "ses": id.NewSession().String(),
		"bld": id.NewBuild().String(), "inv": id.NewInvitation().String(), "port": id.NewPortAccess().String(),
	}
	for prefix, form := range forms {
		if !strings.HasPrefix(form, prefix+"-") || len(form) != len(prefix)+37 {
			t.Errorf("%s looks like %s", prefix, form)
		}
		if _, err := id.ParseSandbox(form); (err == nil) != (prefix == "sb") {
			t.Errorf("%s as a sandbox's: %v", form, err)
		}
	}
	if got := id.FormatTeam(id.PlatformTeamID); got != "team-00000000-0000-0000-0000-000000000000" {
		t.Errorf("the platform is %s", got)
	}
}

// Whatever bytes are sent, the answer is an id that prints as it was read, or
// invalid_id.
func FuzzC2_ParseIsExactOrInvalid(f *testing.F) {
	for _, seed := range []string{
		"", "sb-", "sb", id.NewSandbox().String(), "SB-01936d5a-0000-7000-8000-000000000001", "sb-01936D5A-0000-7000-8000-000000000001",
		"sb-{01936d5a-0000-7000-8000-00000000000}", "sb-urn:uuid:01936d5a-0000-7000-8000-0001", "usr-01936d5a-0000-7000-8000-000000000001",
		"sb-01936d5a00007000800000000000000100000", "sb-\x00\xff", strings.Repeat("s", 25), strings.Repeat("-", 39),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parsed, err := id.ParseSandbox(s)
		if err == nil {
			if parsed.String() != s {
				t.Errorf("%q came back as %q", s, parsed)
			}
			return
		}
		if !errs.Is(err, "invalid_id") || errs.CodeOf(err) != errs.CodeInvalid {
			t.Errorf("%q: %v", s, err)
		}
		var viaText id.Sandbox
		if viaText.UnmarshalText([]byte(s)) == nil {
			t.Errorf("%q is refused by one reader and taken by the other", s)
		}
		if bare, err := (id.Sandbox{}).ParseBare(s); err == nil && bare.UUID().String() != s {
			t.Errorf("bare %q came back as %s", s, bare.UUID())
		}
	})
}
