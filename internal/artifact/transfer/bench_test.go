package transfer_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/id"
)

// benchFile is 256 MB, half of it noise and half text, as memory is; different
// each time, so that nothing of it is stored already.
func benchFile(b *testing.B, n int) (path string, size int64) {
	b.Helper()
	path = filepath.Join(b.TempDir(), fmt.Sprint("file", n))
	f, err := os.Create(path)
	must(b, err)
	for i := range 64 {
		chunk := append([]byte(nil), noise()...)
		for at := 0; at < len(chunk); at += 8192 {
			copy(chunk[at:at+4096], fmt.Sprintf("%d %d %4000d", n, i, at))
			copy(chunk[at+4096:], fmt.Sprint(n, i, at))
		}
		_, err := f.Write(chunk)
		must(b, err)
	}
	must(b, f.Close())
	return path, 64 * artifact.ChunkSize
}

func BenchmarkMove(b *testing.B) {
	b.Run("copy", func(b *testing.B) {
		path, size := benchFile(b, 0)
		b.SetBytes(size)
		for b.Loop() {
			in, err := os.Open(path)
			must(b, err)
			out, err := os.Create(path + ".copy")
			must(b, err)
			_, err = io.Copy(struct{ io.Writer }{out}, in)
			must(b, err)
			must(b, out.Sync())
			must(b, out.Close())
			must(b, in.Close())
		}
	})
	for name, key := range map[string]artifact.ContentKey{"plain": nil, "encrypted": teamKey(1)} {
		b.Run("upload/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			n := 0
			for b.Loop() {
				b.StopTimer()
				n++
				path, size := benchFile(b, n)
				b.SetBytes(size)
				b.StartTimer()
				a := w.ledger.Begin(id.NewTeam(), w.host)
				_, err := transfer.Upload(b.Context(), w.clients(), w.write(a, key), []transfer.File{{Name: "f", Path: path}}, artifact.MediaTypeState, transfer.Options{})
				must(b, err)
			}
		})
		b.Run("fetch/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			path, size := benchFile(b, 0)
			a, _ := w.put(b, id.NewTeam(), key, transfer.File{Name: "f", Path: path})
			b.SetBytes(size)
			for b.Loop() {
				must(b, w.fetch(b, a, key, b.TempDir(), nil))
			}
		})
		b.Run("upload what is there/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			path, size := benchFile(b, 0)
			team := id.NewTeam()
			w.put(b, team, key, transfer.File{Name: "f", Path: path})
			b.SetBytes(size)
			for b.Loop() {
				began := time.Now()
				w.put(b, team, key, transfer.File{Name: "f", Path: path})
				b.ReportMetric(time.Since(began).Seconds(), "s/again")
			}
		})
	}
}
