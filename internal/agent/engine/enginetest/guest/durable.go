package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
)

// writer keeps a disk busy the way a database does: each round appends a
// record to a log and overwrites a page somewhere, and counts only when both
// are synced.
type writer struct {
	mu    sync.Mutex
	wg    sync.WaitGroup
	stop  chan struct{}
	count uint64 // rounds that are safe
	err   error
}

const (
	logPath   = "/log"
	pagesPath = "/pages"
	pageSize  = 4096
	pages     = 256
)

// start begins after the rounds the disk already has.
func (w *writer) start() error {
	found, err := verify()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		return fmt.Errorf("already writing")
	}
	w.stop, w.count = make(chan struct{}), found.Records
	stop, next := w.stop, found.Records+1
	w.wg.Go(func() { w.run(stop, next) })
	return nil
}

func (w *writer) run(stop <-chan struct{}, next uint64) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.fail(err)
		return
	}
	defer log.Close()
	data, err := os.OpenFile(pagesPath, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.fail(err)
		return
	}
	defer data.Close()
	for ; ; next++ {
		select {
		case <-stop:
			return
		default:
		}
		where := rand.Int64N(pages)
		for _, err := range []error{
			writeAll(log, record(next), -1), log.Sync(),
			writeAll(data, page(where, next), where*pageSize), data.Sync(),
		} {
			if err != nil {
				w.fail(err)
				return
			}
		}
		w.mu.Lock()
		w.count = next
		w.mu.Unlock()
	}
}

func (w *writer) fail(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
}

// end stops the writing and returns the rounds that are safe.
func (w *writer) end() (uint64, error) {
	w.mu.Lock()
	if w.stop != nil {
		close(w.stop)
		w.stop = nil
	}
	w.mu.Unlock()
	w.wg.Wait()
	return w.safe()
}

func (w *writer) safe() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count, w.err
}

func writeAll(f *os.File, b []byte, at int64) error {
	var err error
	if at < 0 {
		_, err = f.Write(b)
	} else {
		_, err = f.WriteAt(b, at)
	}
	return err
}

// record is length, number, filling and checksum.
func record(n uint64) []byte {
	b := make([]byte, 16+n*7919%3000)
	binary.LittleEndian.PutUint64(b, uint64(len(b)+4))
	binary.LittleEndian.PutUint64(b[8:], n)
	for i := 16; i < len(b); i++ {
		b[i] = byte(n + uint64(i))
	}
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

func page(where int64, n uint64) []byte {
	b := bytes.Repeat([]byte{byte(n)}, pageSize-4)
	binary.LittleEndian.PutUint64(b, uint64(where))
	binary.LittleEndian.PutUint64(b[8:], n)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// verified is what the disk holds.
type verified struct {
	Records uint64 `json:"records"` // whole ones, in order from 1
	Tail    int    `json:"tail"`    // bytes of one that was not finished
	Torn    int    `json:"torn"`    // pages whose checksum is wrong
	Newest  uint64 `json:"newest"`  // round of the newest page
}

func verify() (verified, error) {
	var v verified
	b, err := os.ReadFile(logPath)
	if err != nil && !os.IsNotExist(err) {
		return v, err
	}
	for len(b) >= 16 {
		n := binary.LittleEndian.Uint64(b)
		if n > uint64(len(b)) {
			break
		}
		if !bytes.Equal(b[:n], record(v.Records+1)) {
			return v, fmt.Errorf("record %d is damaged", v.Records+1)
		}
		b = b[n:]
		v.Records++
	}
	v.Tail = len(b)
	if b, err = os.ReadFile(pagesPath); err != nil && !os.IsNotExist(err) {
		return v, err
	}
	for at := 0; at+pageSize <= len(b); at += pageSize {
		p := b[at : at+pageSize]
		if bytes.Count(p, []byte{0}) == pageSize {
			continue // never written
		}
		n := binary.LittleEndian.Uint64(p[8:])
		if !bytes.Equal(p, page(int64(at/pageSize), n)) {
			v.Torn++
			continue
		}
		v.Newest = max(v.Newest, n)
	}
	return v, nil
}
