package microvm

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func sparse(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func never() error { return nil }

// Whatever is where, what comes out is what went in, and nothing is not kept.
func TestExtents_KeepWhatIsSomething(t *testing.T) {
	const size = 9<<20 + 4096
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 20 {
		src := sparse(t, size)
		var written int64
		for range round {
			b := make([]byte, r.IntN(200<<10)+1)
			for i := range b {
				b[i] = byte(r.Uint32() | 1)
			}
			at := r.Int64N(size - int64(len(b)))
			if _, err := src.WriteAt(b, at); err != nil {
				t.Fatal(err)
			}
			written += int64(len(b)) + 2*block
		}
		// Zeros that take place are nothing as well.
		if _, err := src.WriteAt(make([]byte, 1<<20), 1<<20); err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		if err := packExtents(&packed, src, size, never); err != nil {
			t.Fatal(err)
		}
		if limit := written + written/block*16 + 64; int64(packed.Len()) > limit {
			t.Errorf("round %d: %d bytes kept of at most %d", round, packed.Len(), limit)
		}
		dst := sparse(t, size)
		if err := unpackExtents(dst, bytes.NewReader(packed.Bytes()), size); err != nil {
			t.Fatal(err)
		}
		want, err1 := os.ReadFile(src.Name())
		got, err2 := os.ReadFile(dst.Name())
		if err1 != nil || err2 != nil || !bytes.Equal(want, got) {
			t.Fatalf("round %d: what came out is not what went in (%v %v)", round, err1, err2)
		}
	}
}

// A checkpoint that is cut off anywhere, or is another size's, is refused.
func TestExtents_RefuseWhatIsNotWhole(t *testing.T) {
	const size = 64 << 10
	src := sparse(t, size)
	if _, err := src.WriteAt(bytes.Repeat([]byte{7}, 10_000), 8192); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := packExtents(&packed, src, size, never); err != nil {
		t.Fatal(err)
	}
	whole := packed.Bytes()
	for n := 0; n < len(whole); n += 511 {
		if err := unpackExtents(sparse(t, size), bytes.NewReader(whole[:n]), size); err == nil {
			t.Errorf("%d of %d bytes were taken for whole", n, len(whole))
		}
	}
	for _, other := range []int64{size / 2, size * 2, 8192} {
		if err := unpackExtents(sparse(t, other), bytes.NewReader(whole), other); err == nil {
			t.Errorf("taken for %d bytes", other)
		}
	}
}

// Who gives up is heard between pieces.
func TestExtents_StopWhenAsked(t *testing.T) {
	src := sparse(t, 8<<20)
	if _, err := src.WriteAt(bytes.Repeat([]byte{7}, 8<<20), 0); err != nil {
		t.Fatal(err)
	}
	asked := 0
	err := packExtents(&bytes.Buffer{}, src, 8<<20, func() error {
		if asked++; asked > 3 {
			return unix.EINTR
		}
		return nil
	})
	if err != unix.EINTR || asked != 4 {
		t.Errorf("%v after being asked %d times", err, asked)
	}
}
