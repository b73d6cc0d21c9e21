package microvm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"skerry.dev/skerry/internal/guest/vmapi"
)

// ask has the machine's first process do something. The answer is a guest's
// word: bounded, and believed only where it is the guest's own affair.
func (e *Engine) ask(ctx context.Context, r *record, q vmapi.Request) (a vmapi.Response, err error) {
	c, err := dialAt(ctx, r.WorkDir, guestSocket)
	if err != nil {
		return a, fmt.Errorf("microvm: guest: %w", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var id [8]byte
	_, _ = rand.Read(id[:])
	q.ID = binary.NativeEndian.Uint64(id[:]) >> 11 // exact in any JSON
	b, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	if len(b) > vmapi.MaxRequest-2 {
		return a, fmt.Errorf("microvm: %d bytes for the guest, at most %d", len(b), vmapi.MaxRequest-2)
	}
	// What another host's request left unfinished ends here.
	if _, err := c.Write(append(append([]byte{'\n'}, b...), '\n')); err != nil {
		return a, fmt.Errorf("microvm: guest: %w", contextOr(ctx, err))
	}
	in := bufio.NewReaderSize(c, vmapi.MaxResponse)
	// Answers to others' questions are few.
	for range 100 {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return a, fmt.Errorf("microvm: guest: %w", contextOr(ctx, err))
		}
		if json.Unmarshal(bytes.TrimSpace(line), &a) != nil || a.ID != q.ID {
			a = vmapi.Response{}
			continue
		}
		if a.Error != "" {
			return a, fmt.Errorf("microvm: guest: %s: %.500q", q.Op, a.Error)
		}
		return a, nil
	}
	return a, errors.New("microvm: guest: it says much, and not what it was asked")
}

// contextOr is the context's error once it has ended, which is then the cause.
func contextOr(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// fresh is what a machine needs whose clock stood still, or which is a copy.
func fresh(q vmapi.Request) vmapi.Request {
	q.Now = time.Now().UnixNano()
	q.Entropy = make([]byte, 32)
	_, _ = rand.Read(q.Entropy)
	return q
}
