package microvm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Memory and disk are mostly nothing. In a checkpoint they are kept as what is
// something: a row of extents, each with its offset, its length and its bytes,
// closed by one of length 0 whose offset is the size of the whole.

const (
	block      = 4 << 10 // zeros of this size, at such offsets, are left out
	copyBuffer = 1 << 20
)

type extentHeader struct{ Offset, Length uint64 }

// packExtents writes what is something in src, of so many bytes, to w. stop is
// asked between pieces.
func packExtents(w io.Writer, src *os.File, size int64, stop func() error) error {
	out := bufio.NewWriterSize(w, copyBuffer)
	buf := make([]byte, copyBuffer)
	for at := int64(0); at < size; {
		if err := stop(); err != nil {
			return err
		}
		from, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return fmt.Errorf("microvm: %w", err)
		}
		from &^= block - 1
		if from >= size {
			break
		}
		n, err := src.ReadAt(buf[:min(size-from, copyBuffer)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("microvm: %w", err)
		}
		if n == 0 {
			break
		}
		if err := packBlocks(out, buf[:n], from); err != nil {
			return err
		}
		at = from + int64(n)
	}
	if err := binary.Write(out, binary.LittleEndian, extentHeader{Offset: uint64(size)}); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("microvm: %w", err)
	}
	return nil
}

// packBlocks writes the runs of blocks in b that are not zero.
func packBlocks(out io.Writer, b []byte, at int64) error {
	for i := 0; i < len(b); {
		start := i
		for i < len(b) && !nothing(b[i:min(i+block, len(b))]) {
			i = min(i+block, len(b))
		}
		if i > start {
			err := binary.Write(out, binary.LittleEndian, extentHeader{Offset: uint64(at) + uint64(start), Length: uint64(i - start)})
			if err == nil {
				_, err = out.Write(b[start:i])
			}
			if err != nil {
				return fmt.Errorf("microvm: %w", err)
			}
			continue
		}
		i = min(i+block, len(b))
	}
	return nil
}

// nothing tells whether all of b is zero: the first byte is, and each is as the
// one before it.
func nothing(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// unpackExtents writes the extents of r to dst, which is of the given size and
// holds nothing else. What is not whole, or of another size, is an error.
func unpackExtents(dst *os.File, r io.Reader, size int64) error {
	in := bufio.NewReaderSize(r, copyBuffer)
	buf := make([]byte, copyBuffer)
	for {
		var h extentHeader
		if err := binary.Read(in, binary.LittleEndian, &h); err != nil {
			return fmt.Errorf("microvm: the checkpoint is cut off: %w", err)
		}
		if h.Length == 0 {
			if h.Offset != uint64(size) {
				return fmt.Errorf("microvm: the checkpoint is of %d bytes, not %d", h.Offset, size)
			}
			return nil
		}
		if h.Length > copyBuffer || h.Offset > uint64(size) || h.Length > uint64(size)-h.Offset {
			return errors.New("microvm: the checkpoint reaches beyond its end")
		}
		if _, err := io.ReadFull(in, buf[:h.Length]); err != nil {
			return fmt.Errorf("microvm: the checkpoint is cut off: %w", err)
		}
		if _, err := dst.WriteAt(buf[:h.Length], int64(h.Offset)); err != nil {
			return fmt.Errorf("microvm: %w", err)
		}
	}
}
