package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Cost is what one argon2id hash costs. It may rise over time; a hash made at a
// lower cost is renewed at the next login.
type Cost struct {
	MemoryKiB uint32
	Passes    uint32
	Threads   uint8
}

// DefaultCost takes 32 MiB and two passes on one core, some 50 ms: above
// OWASP's minimum of 19 MiB and two passes.
func DefaultCost() Cost { return Cost{MemoryKiB: 32 << 10, Passes: 2, Threads: 1} }

const (
	saltSize, hashSize = 16, 32
	// maxStoredKiB bounds what a stored hash may make us allocate.
	maxStoredKiB = 256 << 10
	// hashWithin is how long a login waits for its turn.
	hashWithin = 10 * time.Second
)

// Hasher hashes passwords, as many at a time as the machine has cores, so that
// a flood of logins waits instead of eating the memory.
type Hasher struct {
	cost  Cost
	slots chan struct{}
	// observe is called as a hash begins, and what it returns as it ends.
	observe func(Cost) (done func())
}

// NewHasher returns a hasher.
func NewHasher(cost Cost) *Hasher {
	return &Hasher{cost: cost, slots: make(chan struct{}, max(2, runtime.NumCPU())), observe: func(Cost) func() { return func() {} }}
}

// Observe has each hash reported as it begins and, by calling what begin
// returned, as it ends. Set it before the first use.
func (h *Hasher) Observe(begin func(Cost) (done func())) { h.observe = begin }

// Slots is how many hashes run at a time at most; each takes its cost's memory.
func (h *Hasher) Slots() int { return cap(h.slots) }

// Hash returns the PHC string of a password with a fresh salt.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails, see crypto/rand
	sum, err := h.sum(ctx, password, salt, h.cost)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.cost.MemoryKiB, h.cost.Passes, h.cost.Threads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(sum)), nil
}

// Verify compares a password with a PHC string; outdated tells that the hash
// should be renewed.
func (h *Hasher) Verify(ctx context.Context, password, phc string) (ok, outdated bool, err error) {
	cost, salt, want, err := parsePHC(phc)
	if err != nil {
		return false, false, err
	}
	got, err := h.sum(ctx, password, salt, cost)
	if err != nil {
		return false, false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1, cost != h.cost, nil
}

func (h *Hasher) sum(ctx context.Context, password string, salt []byte, cost Cost) ([]byte, error) {
	timer := time.NewTimer(hashWithin)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-timer.C:
		return nil, errs.Unavailable("busy", "Too many logins at once. Try again.").After(5 * time.Second)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer h.observe(cost)()
	return argon2.IDKey([]byte(password), salt, cost.Passes, cost.MemoryKiB, cost.Threads, hashSize), nil
}

func parsePHC(phc string) (cost Cost, salt, sum []byte, err error) {
	bad := func(what string) error { return fmt.Errorf("stored password hash: %s", what) }
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return cost, nil, nil, bad("not argon2id")
	}
	var version int
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return cost, nil, nil, bad("unknown version")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &cost.MemoryKiB, &cost.Passes, &cost.Threads); err != nil ||
		cost.MemoryKiB == 0 || cost.MemoryKiB > maxStoredKiB || cost.Passes == 0 || cost.Threads == 0 {
		return cost, nil, nil, bad("bad parameters")
	}
	salt, errSalt := base64.RawStdEncoding.DecodeString(parts[4])
	sum, errSum := base64.RawStdEncoding.DecodeString(parts[5])
	if errSalt != nil || errSum != nil || len(sum) != hashSize {
		return cost, nil, nil, bad("bad salt or sum")
	}
	return cost, salt, sum, nil
}
