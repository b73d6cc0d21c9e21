package audittrail_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/internal/kernel/id"
)

// trail is a chain of a team, with the key that signs its exports.
type trail struct {
	team    id.Team
	anchor  audittrail.Point
	records []audittrail.Record
	public  ed25519.PublicKey
	private ed25519.PrivateKey
}

func newTrail(t testing.TB, anchor audittrail.Point, n int) *trail {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &trail{team: id.NewTeam(), anchor: anchor, public: public, private: private}
	at := time.Date(2026, 3, 4, 5, 6, 7, 890123000, time.UTC)
	for i := range n {
		x.records = append(x.records, audittrail.Record{
			ID: id.NewAuditEntry(), TeamID: x.team, Seq: anchor.Seq + int64(i) + 1, ActorType: "user", ActorID: "usr-1", ActorName: "Ada <ada@x> & \"B\"",
			ResourceType: "api_key", ResourceID: fmt.Sprintf("key-%d", i), Action: "create", Scope: "team", Status: "success",
			Metadata: fmt.Appendf(nil, `{"n":%d,"name":"a \u003c b"}`, i), RequestID: "r", IP: netip.MustParseAddr("192.0.2.7"), At: at.Add(time.Duration(i) * time.Microsecond),
		})
	}
	x.chain()
	return x
}

// chain computes all hashes, as the server does.
func (x *trail) chain() {
	before := x.anchor.Hash
	for i := range x.records {
		before = x.records[i].After(before)
		x.records[i].Hash = before
	}
}

func (x *trail) lines(t testing.TB) []string {
	t.Helper()
	var out bytes.Buffer
	w, err := audittrail.NewWriter(&out, x.team, x.anchor)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range x.records {
		if err := w.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	end := x.anchor
	for _, r := range x.records {
		end = audittrail.Point{Seq: r.Seq, Hash: r.Hash}
	}
	at := time.Date(2026, 4, 1, 0, 0, 0, 123456789, time.UTC)
	if err := w.Close(end, at, "k1", func(m []byte) []byte { return ed25519.Sign(x.private, m) }); err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func (x *trail) keys(kid string) (ed25519.PublicKey, bool) { return x.public, kid == "k1" }

func verify(lines []string, keys audittrail.Keys) (audittrail.Report, *audittrail.Fault, error) {
	report, err := audittrail.Verify(strings.NewReader(strings.Join(lines, "")), keys)
	var fault *audittrail.Fault
	errors.As(err, &fault)
	return report, fault, err
}

func TestL2_WholeExportVerifies(t *testing.T) {
	var some audittrail.Point
	some.Seq = 41
	some.Hash[3] = 9
	for name, tt := range map[string]struct {
		anchor audittrail.Point
		n      int
	}{"whole": {n: 20}, "pruned": {anchor: some, n: 20}, "empty": {}, "all pruned": {anchor: some}, "long": {n: 5000}} {
		x := newTrail(t, tt.anchor, tt.n)
		report, _, err := verify(x.lines(t), x.keys)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if report.TeamID != x.team || report.Entries != int64(tt.n) || report.First != tt.anchor.Seq+1 || report.Last != tt.anchor.Seq+int64(tt.n) ||
			!report.Signed || report.KID != "k1" {
			t.Errorf("%s: %+v", name, report)
		}
		if report, _, err := verify(x.lines(t), nil); err != nil || report.Signed {
			t.Errorf("%s without a key: %+v, %v", name, report, err)
		}
	}
}

// Each is done to an export of 20 entries, whose lines are 1 to 20 between the
// beginning and the head.
func TestAU04_VerifierNamesTheFirstBadRecord(t *testing.T) {
	type change = func(x *trail, l []string) []string
	replace := func(n int, from, to string) change {
		return func(_ *trail, l []string) []string {
			if !strings.Contains(l[n], from) {
				panic(l[n])
			}
			l[n] = strings.Replace(l[n], from, to, 1)
			return l
		}
	}
	forge := func(x *trail, seq int64, after audittrail.Hash) string {
		r := x.records[0]
		r.ID, r.Seq, r.ActorName = id.NewAuditEntry(), seq, "Mallory"
		r.Hash = r.After(after)
		raw, _ := r.MarshalJSON()
		return string(raw) + "\n"
	}
	for name, tt := range map[string]struct {
		do   change
		kind audittrail.Kind
		seq  int64 // 0: of no entry
		id   int   // whose id is named; 0 for none or a forged one's
	}{
		"metadata":            {replace(7, `"n":6`, `"n":5`), audittrail.Changed, 7, 7},
		"metadata more":       {replace(7, `"n":6`, `"n":6,"x":1`), audittrail.Changed, 7, 7},
		"one byte of a name":  {replace(1, "Ada", "Adb"), audittrail.Changed, 1, 1},
		"time":                {replace(20, "890142Z", "890143Z"), audittrail.Changed, 20, 20},
		"time's zone":         {replace(20, "890142Z", "890142+00:00"), audittrail.Changed, 20, 20},
		"below a microsecond": {replace(20, "890142Z", "890142001Z"), audittrail.Changed, 20, 20},
		"address":             {replace(3, "192.0.2.7", "192.0.2.8"), audittrail.Changed, 3, 3},
		"address's spelling":  {replace(3, "192.0.2.7", "::ffff:192.0.2.7"), audittrail.Changed, 3, 3},
		"status":              {replace(3, `"success"`, `"error"`), audittrail.Changed, 3, 3},
		"id": {func(x *trail, l []string) []string {
			l[3] = strings.Replace(l[3], x.records[2].ID.String(), x.records[3].ID.String(), 1)
			return l
		}, audittrail.Changed, 3, 4},
		"a field more":  {replace(3, `"ip":`, `"x":1,"ip":`), audittrail.Changed, 3, 3},
		"a field twice": {replace(3, `"ip":`, `"action":"nothing","ip":`), audittrail.Changed, 3, 3},
		"white space":   {replace(3, `"ip":`, `"ip": `), audittrail.Changed, 3, 3},
		"changed, hashed anew": {func(x *trail, l []string) []string {
			r := x.records[4]
			r.ActorName = "Mallory"
			r.Hash = r.After(x.records[3].Hash)
			raw, _ := r.MarshalJSON()
			l[5] = string(raw) + "\n"
			return l
		}, audittrail.Changed, 6, 6}, // it, or the one before together with its hash
		"last changed, hashed anew": {func(x *trail, l []string) []string {
			r := x.records[19]
			r.ActorName = "Mallory"
			r.Hash = r.After(x.records[18].Hash)
			raw, _ := r.MarshalJSON()
			l[20] = string(raw) + "\n"
			return l
		}, audittrail.Changed, 20, 20},

		"first removed": {func(_ *trail, l []string) []string { return slices.Delete(l, 1, 2) }, audittrail.Removed, 1, 2},
		"one removed":   {func(_ *trail, l []string) []string { return slices.Delete(l, 9, 10) }, audittrail.Removed, 9, 10},
		"many removed":  {func(_ *trail, l []string) []string { return slices.Delete(l, 9, 15) }, audittrail.Removed, 9, 15},
		"neighbours":    {func(_ *trail, l []string) []string { l[4], l[5] = l[5], l[4]; return l }, audittrail.Reordered, 5, 5},
		"neighbours, counted anew": {func(_ *trail, l []string) []string {
			l[4], l[5] = strings.Replace(l[5], `"seq":5,`, `"seq":4,`, 1), strings.Replace(l[4], `"seq":4,`, `"seq":5,`, 1)
			return l
		}, audittrail.Reordered, 4, 5},
		"far apart":      {func(_ *trail, l []string) []string { l[2], l[19] = l[19], l[2]; return l }, audittrail.Reordered, 19, 19},
		"moved to end":   {func(_ *trail, l []string) []string { m := l[3]; return slices.Insert(slices.Delete(l, 3, 4), 20, m) }, audittrail.Reordered, 4, 4},
		"line twice":     {func(_ *trail, l []string) []string { return slices.Insert(l, 6, l[5]) }, audittrail.Inserted, 5, 5},
		"an old one":     {func(_ *trail, l []string) []string { return slices.Insert(l, 16, l[5]) }, audittrail.Inserted, 5, 5},
		"forged, before": {func(x *trail, l []string) []string { return slices.Insert(l, 6, forge(x, 6, audittrail.Hash{})) }, audittrail.Inserted, 6, 0},
		"forged, fitting before": {func(x *trail, l []string) []string {
			return slices.Insert(l, 6, forge(x, 6, x.records[4].Hash))
		}, audittrail.Inserted, 6, 0},
		"forged, fitting after": {func(x *trail, l []string) []string {
			return slices.Insert(l, 7, forge(x, 6, x.records[4].Hash))
		}, audittrail.Inserted, 6, 0},
		"forged, others counted anew": {func(x *trail, l []string) []string {
			for i := 6; i <= 20; i++ {
				l[i] = strings.Replace(l[i], fmt.Sprintf(`"seq":%d,`, i), fmt.Sprintf(`"seq":%d,`, i+1), 1)
			}
			return slices.Insert(l, 6, forge(x, 6, audittrail.Hash{}))
		}, audittrail.Inserted, 6, 0},
		"another team's": {func(x *trail, l []string) []string {
			other := newTrail(t, audittrail.Point{}, 6)
			return slices.Insert(l, 6, other.lines(t)[6])
		}, audittrail.Inserted, 6, 0},
		"appended":   {func(x *trail, l []string) []string { return slices.Insert(l, 21, forge(x, 21, x.records[19].Hash)) }, audittrail.Inserted, 21, 0},
		"after head": {func(x *trail, l []string) []string { return append(l, "\n", forge(x, 21, x.records[19].Hash)) }, audittrail.Inserted, 21, 0},

		"no head":            {func(_ *trail, l []string) []string { return l[:21] }, audittrail.CutOff, 20, 20},
		"no tail":            {func(_ *trail, l []string) []string { return l[:12] }, audittrail.CutOff, 11, 11},
		"tail, head stays":   {func(_ *trail, l []string) []string { return slices.Delete(l, 15, 21) }, audittrail.CutOff, 14, 14},
		"all, head stays":    {func(_ *trail, l []string) []string { return slices.Delete(l, 1, 21) }, audittrail.CutOff, 0, 0},
		"in mid-line":        {func(_ *trail, l []string) []string { l = l[:12]; l[11] = l[11][:40]; return l }, audittrail.CutOff, 10, 10},
		"in mid-head":        {func(_ *trail, l []string) []string { l[21] = l[21][:40]; return l }, audittrail.CutOff, 20, 20},
		"nothing":            {func(_ *trail, _ []string) []string { return nil }, audittrail.Malformed, 0, 0},
		"something else":     {func(_ *trail, _ []string) []string { return []string{"{}\n"} }, audittrail.Malformed, 0, 0},
		"endless line":       {func(_ *trail, l []string) []string { l[3] = strings.Repeat("x", 2<<20); return l }, audittrail.Malformed, 2, 2},
		"head's time":        {replace(21, "2026-04-01", "2026-04-02"), audittrail.Foreign, 20, 20},
		"rewritten, resumed": {nil, audittrail.Foreign, 20, 20},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTrail(t, audittrail.Point{}, 20)
			lines := x.lines(t)
			if tt.do == nil {
				// Everything computed anew, with a key of one's own.
				mine := *x
				mine.records = slices.Clone(x.records)
				mine.records[7].ActorName = "Mallory"
				mine.chain()
				_, mine.private, _ = ed25519.GenerateKey(nil)
				lines = mine.lines(t)
			} else {
				lines = tt.do(x, lines)
			}
			_, fault, err := verify(lines, x.keys)
			if fault == nil {
				t.Fatalf("passes: %v", err)
			}
			if fault.Kind != tt.kind || fault.Seq != tt.seq {
				t.Errorf("%v, want %s of %d", fault, tt.kind, tt.seq)
			}
			if tt.id > 0 && fault.ID != x.records[tt.id-1].ID.String() {
				t.Errorf("%v names %s, want %s", fault, fault.ID, x.records[tt.id-1].ID)
			}
			if tt.id == 0 && tt.seq > 0 {
				for _, r := range x.records {
					if fault.ID == r.ID.String() {
						t.Errorf("%v blames a true entry", fault)
					}
				}
			}
		})
	}
}

func TestL2_BeginningCannotBeMoved(t *testing.T) {
	x := newTrail(t, audittrail.Point{}, 20)
	moved := *x
	moved.anchor, moved.records = audittrail.Point{Seq: 5, Hash: x.records[4].Hash}, x.records[5:]
	lines := moved.lines(t)
	lines[15+1] = x.lines(t)[21] // the head that the server signed
	if _, fault, err := verify(lines, x.keys); fault == nil || fault.Kind != audittrail.Foreign {
		t.Errorf("a trail without its first entries: %v", err)
	}
}

func TestL2_SignatureOfAnotherKeyIsForeign(t *testing.T) {
	x := newTrail(t, audittrail.Point{}, 3)
	other, _, _ := ed25519.GenerateKey(nil)
	for name, keys := range map[string]audittrail.Keys{
		"other": func(string) (ed25519.PublicKey, bool) { return other, true },
		"none":  func(string) (ed25519.PublicKey, bool) { return nil, false },
		"short": func(string) (ed25519.PublicKey, bool) { return other[:5], true },
	} {
		if _, fault, err := verify(x.lines(t), keys); fault == nil || fault.Kind != audittrail.Foreign {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	x := newTrail(b, audittrail.Point{}, 10_000)
	file := strings.Join(x.lines(b), "")
	for b.Loop() {
		if _, err := audittrail.Verify(strings.NewReader(file), x.keys); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "entries/s")
}

// No bytes crash the reader, and under a fixed key only the very file passes
// that was signed.
func FuzzAU04_OnlyTheSignedFileVerifies(f *testing.F) {
	x := newTrail(f, audittrail.Point{}, 4)
	good := strings.Join(x.lines(f), "") + ""
	f.Add([]byte(good))
	for i := 0; i < len(good); i += 97 {
		f.Add([]byte(good[:i]))
		f.Add([]byte(good[:i] + "x" + good[i+1:]))
	}
	f.Add([]byte(`{"skerry_audit":1,"team_id":"team-00000000-0000-0000-0000-000000000000","anchor":{"seq":9223372036854775807,"hash":"` + strings.Repeat("0", 64) + `"}}` + "\n{}\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		_, err := audittrail.Verify(bytes.NewReader(file), x.keys)
		if err == nil {
			if strings.TrimSuffix(string(file), "\n") != strings.TrimSuffix(good, "\n") {
				t.Errorf("passes: %q", file)
			}
			return
		}
		var fault *audittrail.Fault
		if !errors.As(err, &fault) || fault.Line < 1 || fault.Text == "" {
			t.Errorf("%v of %q", err, file)
		}
		_, _ = audittrail.Verify(bytes.NewReader(file), nil)
	})
}
