package transfer_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/transfer"
	"skerry.dev/skerry/internal/kernel/id"
)

// benchFile is 256 MB, half of it noise and half text, as memory is.
func benchFile(b *testing.B) (path string, size int64) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "file")
	f, err := os.Create(path)
	must(b, err)
	for i := range 64 {
		chunk := append([]byte(nil), noise()...)
		for at := 0; at < len(chunk); at += 8192 {
			copy(chunk[at:at+4096], fmt.Sprintf("%d %4000d", i, at))
			copy(chunk[at+4096:], fmt.Sprint(i, " ", at))
		}
		_, err := f.Write(chunk)
		must(b, err)
	}
	must(b, f.Close())
	return path, 64 * artifact.ChunkSize
}

// perCPU reports how much is moved in a second of one processor, both ends and
// the store together: it means something also on a machine that is busy.
func perCPU(b *testing.B, size int64, one func()) {
	b.Helper()
	b.SetBytes(size)
	var before, after syscall.Rusage
	used := func(r syscall.Rusage) int64 { return r.Utime.Nano() + r.Stime.Nano() }
	spent := int64(0)
	for b.Loop() {
		must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
		one()
		must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
		spent += used(after) - used(before)
	}
	b.ReportMetric(float64(size)*float64(b.N)/1e6/(float64(spent)/1e9), "MB/cpu-s")
}

func BenchmarkMove(b *testing.B) {
	b.Run("copy", func(b *testing.B) {
		path, size := benchFile(b)
		perCPU(b, size, func() {
			in, err := os.Open(path)
			must(b, err)
			out, err := os.Create(path + ".copy")
			must(b, err)
			_, err = io.Copy(struct{ io.Writer }{out}, in)
			must(b, err)
			must(b, out.Sync())
			must(b, out.Close())
			must(b, in.Close())
		})
	})
	for name, key := range map[string]artifact.ContentKey{"plain": nil, "encrypted": teamKey(1)} {
		b.Run("upload/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			path, size := benchFile(b)
			perCPU(b, size, func() { w.put(b, id.NewTeam(), key, transfer.File{Name: "f", Path: path}) })
		})
		b.Run("fetch/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			path, size := benchFile(b)
			a, _ := w.put(b, id.NewTeam(), key, transfer.File{Name: "f", Path: path})
			perCPU(b, size, func() { must(b, w.fetch(b, a, key, b.TempDir(), nil)) })
		})
		b.Run("upload-again/"+name, func(b *testing.B) {
			w := newWorld(b, onDisk(b))
			path, size := benchFile(b)
			team := id.NewTeam()
			w.put(b, team, key, transfer.File{Name: "f", Path: path})
			perCPU(b, size, func() { w.put(b, team, key, transfer.File{Name: "f", Path: path}) })
		})
	}
}
