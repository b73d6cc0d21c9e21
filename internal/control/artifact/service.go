package artifact

import (
	"context"
	"crypto/rand"
	"strings"
	"time"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Op is what an address is for.
type Op string

// The operations.
const (
	Read  Op = "read"
	Write Op = "write"
)

// The lifetimes of addresses: a slow host must get through a large state. Who
// asks is looked at with each request all the same.
const (
	readTTL  = 6 * time.Hour
	writeTTL = 6 * time.Hour
)

// Rows is what the service needs of the room's store.
type Rows interface {
	// Look reads an artifact together with who asks for it; ErrNotFound when there
	// is none.
	Look(ctx context.Context, a id.Artifact, asker id.Host) (Artifact, Asker, error)
	// TeamKey returns the sealed key of a team, and keeps the one given when it has
	// none yet.
	TeamKey(ctx context.Context, team id.Team, fresh []byte) ([]byte, error)
}

// Grants makes the addresses under which hosts move bytes.
type Grants interface {
	ReadURL(base string, a id.Artifact, host id.Host, ttl time.Duration) string
	WriteURL(base string, a id.Artifact, host id.Host, ttl time.Duration) string
}

// Service gives hosts access to artifacts.
type Service struct {
	rows   Rows
	grants Grants
	secret keyring.Secret
	base   string
}

// NewService makes the service. base is where hosts reach the control plane.
func NewService(rows Rows, grants Grants, secret keyring.Secret, base string) *Service {
	return &Service{rows: rows, grants: grants, secret: secret, base: strings.TrimRight(base, "/")}
}

// Source is the address and the key under which a host may have an artifact, or
// put it there; the zero host is the control plane itself. Refused with
// no_such_artifact or upload_gone, and it stays so: the store asks again on each
// request.
func (s *Service) Source(ctx context.Context, a id.Artifact, h id.Host, op Op) (artifact.Source, error) {
	row, by, err := s.rows.Look(ctx, a, h)
	if err != nil {
		return artifact.Source{}, err
	}
	if op == Write {
		err = MayWrite(row, by)
	} else {
		err = MayRead(row, by)
	}
	if err != nil {
		return artifact.Source{}, err
	}
	key, err := s.key(ctx, row.Team)
	if err != nil {
		return artifact.Source{}, err
	}
	if op == Write {
		return artifact.Source{URL: s.grants.WriteURL(s.base, a, h, writeTTL), Key: key}, nil
	}
	return artifact.Source{URL: s.grants.ReadURL(s.base, a, h, readTTL), Key: key}, nil
}

// Describe reads a row.
func (s *Service) Describe(ctx context.Context, a id.Artifact) (Artifact, error) {
	row, _, err := s.rows.Look(ctx, a, id.Host{})
	return row, err
}

// keyPurpose is what the keys of teams are sealed for.
const keyPurpose = "team_keys"

// key is a team's, made when it is first needed; the platform's artifacts are no
// secret and have none.
func (s *Service) key(ctx context.Context, team id.Team) (artifact.ContentKey, error) {
	if team == id.PlatformTeamID {
		return nil, nil
	}
	fresh := make([]byte, artifact.ContentKeyBytes)
	_, _ = rand.Read(fresh) // never fails, see crypto/rand
	bound := team.UUID()
	sealed, err := s.rows.TeamKey(ctx, team, s.secret.Seal(keyPurpose, fresh, bound[:]))
	if err != nil {
		return nil, err
	}
	key, err := s.secret.Open(keyPurpose, sealed, bound[:])
	if err != nil {
		return nil, errs.FailedPrecondition("wrong_secret",
			"SKERRY_SECRET is not the one under which this team's artifacts were encrypted. Set the same secret on all servers.").Because(err)
	}
	return key, nil
}
