// Package id names things. Each kind of thing has its own Go type, so that a
// team's id cannot be passed where a host's is wanted, and its own prefix on
// the wire ("sb-0193…"). Inside, every id is a UUID; prefixed strings exist
// only at the API and RPC boundaries.
package id

import (
	"database/sql/driver"
	"fmt"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/kernel/errs"
)

// kind is a type-level name of what an id stands for.
type kind interface{ prefix() string }

// ID is the id of one kind of thing. The zero value stands for "none", except
// for teams, where it is the platform itself.
type ID[K kind] struct{ u uuid.UUID }

func newID[K kind]() ID[K] { return ID[K]{u: uuid.Must(uuid.NewV7())} }

// FromUUID gives a UUID that is known to name this kind of thing its type:
// id.Team{}.FromUUID(u).
func (ID[K]) FromUUID(u uuid.UUID) ID[K] { return ID[K]{u: u} }

// UUID returns the bare UUID.
func (i ID[K]) UUID() uuid.UUID { return i.u }

// IsZero reports whether i is the all-zero id.
func (i ID[K]) IsZero() bool { return i.u == uuid.Nil }

// String returns the form used on the wire, the prefix and the UUID.
func (i ID[K]) String() string {
	var k K
	return k.prefix() + "-" + i.u.String()
}

// MarshalText implements encoding.TextMarshaler with the wire form.
func (i ID[K]) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler for the wire form.
func (i *ID[K]) UnmarshalText(text []byte) error {
	parsed, err := parse[K](string(text))
	if err != nil {
		return err
	}
	*i = parsed
	return nil
}

// Value implements driver.Valuer; the database sees a uuid.
func (i ID[K]) Value() (driver.Value, error) { return i.u.String(), nil }

// Scan implements sql.Scanner for a uuid column.
func (i *ID[K]) Scan(src any) error { return i.u.Scan(src) }

const uuidLength = 36

// parse reads the wire form and only that: the kind's prefix, a dash, and the
// UUID in lower-case canonical form. Anything else is invalid_id.
func parse[K kind](s string) (ID[K], error) {
	var k K
	want := k.prefix() + "-"
	if len(s) != len(want)+uuidLength || s[:len(want)] != want {
		return ID[K]{}, invalid[K]()
	}
	u, err := uuid.Parse(s[len(want):])
	if err != nil || u.String() != s[len(want):] {
		return ID[K]{}, invalid[K]()
	}
	return ID[K]{u: u}, nil
}

// ParseBare reads a UUID without prefix, the form used inside RPC messages:
// id.Sandbox{}.ParseBare(s).
func (ID[K]) ParseBare(s string) (ID[K], error) {
	u, err := uuid.Parse(s)
	if err != nil || u.String() != s {
		return ID[K]{}, invalid[K]()
	}
	return ID[K]{u: u}, nil
}

func invalid[K kind]() error {
	var k K
	return errs.Invalid("invalid_id", fmt.Sprintf("An id of this kind looks like %s-0193a1b2-….", k.prefix()))
}
