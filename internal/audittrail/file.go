package audittrail

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// Format is the version of the file: NDJSON, first line a Beginning, then an
// entry a line, oldest first, last line the Head. Every line is exactly what
// encoding/json makes of its type.
const Format = 1

// maxLine bounds a line of the file; the server's entries are far below.
const maxLine = 1 << 20

// Point is a place in a chain: an entry's sequence and hash, zeros before the
// first one.
type Point struct {
	Seq  int64 `json:"seq"`
	Hash Hash  `json:"hash"`
}

// Beginning is the first line of the file.
type Beginning struct {
	Format int     `json:"skerry_audit"`
	TeamID id.Team `json:"team_id"`
	// Anchor is the last entry that retention removed; the file goes on after
	// it.
	Anchor Point `json:"anchor"`
}

// Head is the signed end of a chain.
type Head struct {
	Point
	At  time.Time // of the signature
	KID string
}

// headLine is the last line.
type headLine struct {
	Head struct {
		Point
		At        stamp  `json:"at"`
		KID       string `json:"kid"`
		Signature []byte `json:"signature"`
	} `json:"head"`
}

// signed is what a signature of a head covers: the beginning too, so that
// nothing can be taken away at either end.
func (h Head) signed(b Beginning) []byte {
	var f fields
	f.add([]byte("skerry audit head"))
	f.number(int64(b.Format))
	team := b.TeamID.UUID()
	f.add(team[:])
	f.number(b.Anchor.Seq)
	f.add(b.Anchor.Hash[:])
	f.number(h.Seq)
	f.add(h.Hash[:])
	f.number(h.At.UnixMicro())
	f.add([]byte(h.KID))
	return f.Bytes()
}

// Keys finds an Ed25519 public key by its name.
type Keys func(kid string) (ed25519.PublicKey, bool)

// Writer writes the file. Its memory does not grow with what is written.
type Writer struct {
	out   *bufio.Writer
	begin Beginning
}

// NewWriter begins a file.
func NewWriter(out io.Writer, team id.Team, anchor Point) (*Writer, error) {
	w := &Writer{out: bufio.NewWriterSize(out, 64<<10), begin: Beginning{Format: Format, TeamID: team, Anchor: anchor}}
	return w, w.line(w.begin)
}

// Add writes the next entry.
func (w *Writer) Add(r Record) error { return w.line(r) }

// Close writes the signed head and what is buffered. The end is what the
// database knows beside the entries, so that a file shows when they lack some.
func (w *Writer) Close(end Point, at time.Time, kid string, sign func(message []byte) []byte) error {
	var l headLine
	l.Head.Point, l.Head.At, l.Head.KID = end, stamp(at), kid
	l.Head.Signature = sign(Head{Point: end, At: at, KID: kid}.signed(w.begin))
	if err := w.line(l); err != nil {
		return err
	}
	return w.out.Flush()
}

func (w *Writer) line(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := w.out.Write(raw); err != nil {
		return err
	}
	return w.out.WriteByte('\n')
}
