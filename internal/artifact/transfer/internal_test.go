package transfer

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

type fixedClock struct{ now atomic.Int64 }

func (c *fixedClock) Now() time.Time { return time.Unix(c.now.Load(), 0) }

func FuzzGrant(f *testing.F) {
	clock := &fixedClock{}
	clock.now.Store(1_800_000_000)
	s, err := NewSigner(bytes.Repeat([]byte("s"), 32), clock)
	if err != nil {
		f.Fatal(err)
	}
	good := s.seal(grant{op: opRead, artifact: id.NewArtifact(), host: id.NewHost(), expires: clock.Now().Add(time.Hour)})
	for _, seed := range []string{good, good[:10], "", "AQ", fmt.Sprint(good, "=")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		g, err := s.open(token)
		if err != nil {
			return
		}
		if s.seal(g) != token {
			t.Errorf("%q opens, and is not what was sealed", token)
		}
	})
}

func TestGrant_OnlyKnownOperationsAndVersions(t *testing.T) {
	clock := &fixedClock{}
	s, err := NewSigner(bytes.Repeat([]byte("s"), 32), clock)
	if err != nil {
		t.Fatal(err)
	}
	good := grant{op: opWrite, artifact: id.NewArtifact(), host: id.NewHost(), expires: clock.Now().Add(time.Hour)}
	if got, err := s.open(s.seal(good)); err != nil || got != good {
		t.Errorf("%+v %v", got, err)
	}
	bad := good
	bad.op = 'x'
	if _, err := s.open(s.seal(bad)); !errs.Is(err, "invalid_grant") {
		t.Errorf("an unknown operation: %v", err)
	}
	b, err := base64.RawURLEncoding.DecodeString(s.seal(good))
	if err != nil {
		t.Fatal(err)
	}
	b[0]++
	old := append(b[:grantPayload:grantPayload], s.sign(b[:grantPayload])...)
	if _, err := s.open(base64.RawURLEncoding.EncodeToString(old)); !errs.Is(err, "invalid_grant") {
		t.Errorf("an unknown version: %v", err)
	}
	if _, err := NewSigner([]byte("short"), clock); err == nil {
		t.Error("a short secret signs")
	}
}

func codec(t testing.TB, key artifact.ContentKey) (*sealer, *opener) {
	t.Helper()
	s, err := newSealer(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOpener(key, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close(); o.close() })
	return s, o
}

// Whoever has the store can make digests of stored bytes fit; not what is under
// them.
func TestS16_WhatIsSealedCannotBeAltered(t *testing.T) {
	s, o := codec(t, bytes.Repeat([]byte{1}, 32))
	raw := []byte("the memory of a sandbox")
	stored, c, err := s.seal(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := o.open(bytes.Clone(stored), nil, c); err != nil || !bytes.Equal(got, raw) {
		t.Fatalf("%q %v", got, err)
	}
	for i := range stored {
		bent := bytes.Clone(stored)
		bent[i] ^= 0x10
		forged := c
		forged.Digest = artifact.DigestOf(bent)
		if _, err := o.open(bent, nil, forged); !errs.Is(err, "content_mismatch") {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for n := range stored {
		forged := c
		forged.Size, forged.Digest = int64(n), artifact.DigestOf(stored[:n])
		if _, err := o.open(bytes.Clone(stored[:n]), nil, forged); !errs.Is(err, "content_mismatch") {
			t.Fatalf("cut to %d: %v", n, err)
		}
	}
	swapped := c
	swapped.RawDigest = artifact.DigestOf(raw) // as another chunk's
	if _, err := o.open(bytes.Clone(stored), nil, swapped); !errs.Is(err, "content_mismatch") {
		t.Errorf("as another chunk: %v", err)
	}
}

func TestS16_TwoFramesOfOneContentHaveTwoNonces(t *testing.T) {
	s, _ := codec(t, bytes.Repeat([]byte{1}, 32))
	raw := bytes.Repeat([]byte("compressible "), 1000)
	a, ca, err := s.seal(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	later := *s
	other, err := newSealer(s.key, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	later.encoder = other.encoder
	b, cb, err := later.seal(raw, nil)
	if err != nil || !bytes.Equal(a, b) || ca != cb {
		t.Errorf("the same content is sealed in two ways: %v", err)
	}
	b, cb, err = s.seal(append(raw, 'x'), nil)
	if err != nil || bytes.Equal(a[:nonceBytes], b[:nonceBytes]) || ca.RawDigest == cb.RawDigest {
		t.Errorf("other content has the same nonce: %v", err)
	}
}

func FuzzOpenChunk(f *testing.F) {
	s, _ := codec(f, nil)
	for _, raw := range []string{"x", "some text", string(make([]byte, 100_000))} {
		stored, _, err := s.seal([]byte(raw), nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(stored, int64(len(raw)))
	}
	_, plain := codec(f, nil)
	_, sealed := codec(f, bytes.Repeat([]byte{1}, 32))
	f.Fuzz(func(t *testing.T, stored []byte, size int64) {
		c := artifact.Chunk{RawSize: size, RawDigest: artifact.DigestOf(stored), Size: int64(len(stored)), Digest: artifact.DigestOf(stored)}
		for _, o := range []*opener{plain, sealed} {
			into := make([]byte, 0, artifact.ChunkSize)
			if got, err := o.open(bytes.Clone(stored), into, c); err == nil || len(got) > artifact.ChunkSize {
				t.Errorf("%d bytes of nonsense open", len(got))
			}
		}
	})
}
