package audittrail

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// Kind is what was done to a file.
type Kind string

// The kinds of faults.
const (
	Changed   Kind = "changed"
	Removed   Kind = "removed"
	Reordered Kind = "reordered"
	Inserted  Kind = "inserted"
	CutOff    Kind = "cut off"
	Foreign   Kind = "foreign signature"
	Malformed Kind = "malformed"
)

// Fault is the first thing that is wrong with a file.
type Fault struct {
	Kind Kind
	Line int    // of the file, from 1
	Seq  int64  // of the entry it is about
	ID   string // of that entry, or of the nearest one that is left; "" for none
	Text string // a sentence
}

func (f *Fault) Error() string {
	where := fmt.Sprintf("line %d", f.Line)
	if f.ID != "" {
		where += fmt.Sprintf(", entry %d (%s)", f.Seq, f.ID)
	}
	return fmt.Sprintf("%s: %s: %s", where, f.Kind, f.Text)
}

// Report is what a file proves.
type Report struct {
	TeamID  id.Team
	Entries int64
	First   int64 // sequence of the first entry; those before went by retention
	Last    int64
	At      time.Time // when the head was signed
	KID     string
	Signed  bool // the signature was checked
}

// Verify reads a file and returns what it proves, or the first *Fault. Without
// keys the signature is not checked: then whoever could rewrite the whole file
// could make one that passes. Its memory does not grow with the file.
func Verify(in io.Reader, keys Keys) (Report, error) {
	v := &verifier{in: bufio.NewReaderSize(in, 64<<10)}
	return v.run(keys)
}

type verifier struct {
	in    *bufio.Reader
	n     int  // of the line read last
	whole bool // it ended with a line feed

	begin  Beginning
	before Hash   // of the one before last
	last   Point  // up to here all is right
	lastID string // of that entry
	report Report
}

func (v *verifier) run(keys Keys) (Report, error) {
	raw, err := v.next()
	if err != nil {
		return Report{}, v.orFault(err, v.fault(Malformed, 0, "", "The file is empty."))
	}
	if exact(raw, &v.begin) != nil || v.begin.Format != Format || v.begin.Anchor.Seq < 0 {
		return Report{}, v.fault(Malformed, 0, "", "This is no exported audit trail, or one of another version.")
	}
	v.last = v.begin.Anchor
	v.report = Report{TeamID: v.begin.TeamID, First: v.last.Seq + 1}
	for {
		raw, err := v.next()
		if err != nil {
			return Report{}, v.orFault(err, v.cutOff("The signed head is missing: the end of the trail was cut off."))
		}
		if bytes.HasPrefix(raw, []byte(`{"head":`)) {
			return v.finish(raw, keys)
		}
		var r Record
		if exact(raw, &r) != nil {
			if !v.whole {
				return Report{}, v.cutOff("The file ends in the middle of a line.")
			}
			seq, name := glimpse(raw)
			return Report{}, v.fault(Changed, seq, name, "The line is not an entry as Skerry writes them.")
		}
		if err := v.entry(r); err != nil {
			return Report{}, err
		}
	}
}

// entry checks the next one.
func (v *verifier) entry(r Record) error {
	want := v.last.Seq + 1
	switch {
	case r.TeamID != v.begin.TeamID:
		return v.fault(Inserted, r.Seq, r.ID.String(), "It belongs to another team.")
	case r.Seq > want:
		return v.gap(r, want)
	case r.Seq < want:
		return v.repeated(r)
	case r.After(v.last.Hash) != r.Hash:
		return v.mismatch(r)
	}
	v.before, v.last, v.lastID = v.last.Hash, Point{Seq: r.Seq, Hash: r.Hash}, r.ID.String()
	v.report.Entries++
	return nil
}

// gap tells a removed entry from one that stands further down.
func (v *verifier) gap(r Record, want int64) error {
	removed := v.fault(Removed, want, r.ID.String(), fmt.Sprintf("Entries %d to %d are missing before this one, which is %d.", want, r.Seq-1, r.Seq))
	moved := v.fault(Reordered, r.Seq, r.ID.String(), "")
	for {
		raw, err := v.next()
		if errors.Is(err, io.EOF) {
			return removed
		}
		if err != nil {
			return err
		}
		var later Record
		if exact(raw, &later) == nil && later.Seq == want && later.TeamID == r.TeamID {
			moved.Text = fmt.Sprintf("Entry %d (%s), which comes before it, is on line %d.", want, later.ID, v.n)
			return moved
		}
	}
}

// repeated tells which of two entries with one sequence was put in, by the one
// that follows.
func (v *verifier) repeated(r Record) error {
	fault := v.fault(Inserted, r.Seq, r.ID.String(), fmt.Sprintf("Entry %d is there already.", r.Seq))
	if r.Seq != v.last.Seq || r.After(v.before) != r.Hash {
		return fault
	}
	earlier := v.fault(Inserted, r.Seq, v.lastID, fmt.Sprintf("Entry %d is there twice, and the trail goes on from the other (%s).", r.Seq, r.ID))
	earlier.Line = v.n - 1
	raw, err := v.next()
	var after Record
	if err == nil && exact(raw, &after) == nil && after.After(r.Hash) == after.Hash {
		return earlier
	}
	var head headLine
	if err == nil && exact(raw, &head) == nil && head.Head.Hash == r.Hash {
		return earlier
	}
	return fault
}

// mismatch tells an entry that was put in before its successor, or changed
// places with it, from one that was changed.
func (v *verifier) mismatch(r Record) error {
	inserted := v.fault(Inserted, r.Seq, r.ID.String(), "The trail goes on without it.")
	changed := v.fault(Changed, r.Seq, r.ID.String(), "Its hash does not follow from its content and the entry before: it was changed, or the one before together with its hash.")
	raw, err := v.next()
	var after Record
	if err == nil && exact(raw, &after) == nil {
		after.Seq = r.Seq // those after it may have been counted anew
		if after.After(v.last.Hash) == after.Hash {
			if r.Seq++; r.After(after.Hash) == r.Hash {
				inserted.Kind, inserted.Text = Reordered, fmt.Sprintf("It comes after the next one (%s).", after.ID)
			}
			return inserted
		}
	}
	return changed
}

func (v *verifier) finish(raw []byte, keys Keys) (Report, error) {
	var l headLine
	if exact(raw, &l) != nil {
		if !v.whole {
			return Report{}, v.cutOff("The file ends in the middle of the signed head.")
		}
		return Report{}, v.fault(Malformed, v.last.Seq, v.lastID, "The signed head is not as Skerry writes it.")
	}
	head := Head{Point: l.Head.Point, At: time.Time(l.Head.At), KID: l.Head.KID}
	switch {
	case head.Seq > v.last.Seq:
		return Report{}, v.cutOff(fmt.Sprintf("The signed head says %d entries more: those after this one were cut off.", head.Seq-v.last.Seq))
	case head.Seq < v.last.Seq:
		return Report{}, v.fault(Inserted, v.last.Seq, v.lastID, fmt.Sprintf("The signed head ends the trail at entry %d.", head.Seq))
	case head.Hash != v.last.Hash:
		return Report{}, v.fault(Changed, v.last.Seq, v.lastID, "The last entry is not the one that the head was signed for.")
	}
	if keys != nil {
		key, ok := keys(head.KID)
		if !ok || len(key) != ed25519.PublicKeySize {
			return Report{}, v.fault(Foreign, v.last.Seq, v.lastID, fmt.Sprintf("The head is signed by key %q, which is not among the given ones.", head.KID))
		}
		if !ed25519.Verify(key, head.signed(v.begin), l.Head.Signature) {
			return Report{}, v.fault(Foreign, v.last.Seq, v.lastID, "The signature is not by the given key, or the trail was rewritten after it was signed.")
		}
	}
	if raw, err := v.next(); err == nil {
		seq, name := glimpse(raw)
		return Report{}, v.fault(Inserted, seq, name, "Something follows after the signed head.")
	} else if !errors.Is(err, io.EOF) {
		return Report{}, err
	}
	v.report.Last, v.report.At, v.report.KID, v.report.Signed = v.last.Seq, head.At, head.KID, keys != nil
	return v.report, nil
}

// next reads a line; io.EOF when there is none.
func (v *verifier) next() ([]byte, error) {
	var raw []byte
	for {
		part, err := v.in.ReadSlice('\n')
		if len(raw)+len(part) > maxLine {
			v.n++
			return nil, v.fault(Malformed, v.last.Seq, v.lastID, "A line is longer than any that Skerry writes.")
		}
		raw = append(raw, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == nil || errors.Is(err, io.EOF) && len(raw) > 0:
			v.n++
			v.whole = err == nil
			return bytes.TrimSuffix(raw, []byte("\n")), nil
		default:
			return nil, err
		}
	}
}

func (v *verifier) fault(kind Kind, seq int64, name, text string) *Fault {
	return &Fault{Kind: kind, Line: max(v.n, 1), Seq: seq, ID: name, Text: text}
}

// cutOff names the last entry that is there.
func (v *verifier) cutOff(text string) *Fault { return v.fault(CutOff, v.last.Seq, v.lastID, text) }

// orFault is the fault when nothing is left to read, else what went wrong in
// reading.
func (*verifier) orFault(err error, fault *Fault) error {
	if errors.Is(err, io.EOF) {
		return fault
	}
	return err
}

var errForm = errors.New("not in the form that Skerry writes")

// exact decodes a line that is exactly what its value encodes to: no field more
// or twice, no other spelling, so that no two readers can see different things.
func exact[T any](raw []byte, into *T) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return err
	}
	again, err := json.Marshal(*into)
	if err != nil {
		return err
	}
	if !bytes.Equal(raw, again) {
		return errForm
	}
	return nil
}

// glimpse finds which entry a line is about that cannot be read in full.
func glimpse(raw []byte) (seq int64, name string) {
	var l struct {
		ID  string `json:"id"`
		Seq int64  `json:"seq"`
	}
	_ = json.Unmarshal(raw, &l) // what it found counts
	return l.Seq, l.ID
}
