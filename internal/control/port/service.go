package port

import (
	"context"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Store keeps accesses. Each verb is one transaction.
type Store interface {
	// Open stores an access by its token's hash, nil for everybody, and returns it
	// with the database's times, while its sandbox has not ended and has fewer
	// than MaxPerSandbox. It takes part in idempotency with Opened as receipt.
	Open(ctx context.Context, a Access, by principal.Principal, lastsSec *int64, hash []byte, token string, entry audit.Entry) (Access, error)
	// List returns a page of a sandbox's accesses that have not expired, newest
	// first.
	List(ctx context.Context, sandbox id.Sandbox, p page.Request) (page.Page[Access], error)
	// Revoke removes an access of the team's sandbox; ErrNotFound when there is
	// none.
	Revoke(ctx context.Context, team id.Team, sandbox id.Sandbox, access id.PortAccess, entry func(port int, name string) audit.Entry) error
	// Admit finds what opens a port for everybody, or for a token with this hash.
	Admit(ctx context.Context, sandbox id.Sandbox, port int, hash []byte) (a Admission, found bool, err error)
	// TeamOf finds whose a sandbox is that has not ended.
	TeamOf(ctx context.Context, sandbox id.Sandbox) (team id.Team, found bool, err error)
	// Living are those of the given accesses that Admit would find.
	Living(ctx context.Context, accesses []id.PortAccess) ([]id.PortAccess, error)
}

// Admission is what opened a port for a request.
type Admission struct {
	Access id.PortAccess
	TeamID id.Team
	Public bool
	// ExpiresAt is nil when it lasts as long as the sandbox.
	ExpiresAt *time.Time
}

// ErrNotFound is an access that does not exist, or not of this sandbox.
var ErrNotFound = errs.NotFound("port_access_not_found", "There is no such access to a port of this sandbox. List them with GET /v1/sandboxes/{id}/ports.")

// Sandboxes finds a sandbox for a caller: that of another team is not found.
type Sandboxes interface {
	Get(ctx context.Context, by principal.Principal, sandbox id.Sandbox) (sandbox.Sandbox, error)
}

// Service is the room's use cases.
type Service struct {
	store     Store
	sandboxes Sandboxes
}

// NewService returns the service.
func NewService(store Store, sandboxes Sandboxes) *Service {
	return &Service{store: store, sandboxes: sandboxes}
}

// Open lets a port be reached from outside.
func (s *Service) Open(ctx context.Context, by principal.Principal, x id.Sandbox, r OpenRequest) (Opened, error) {
	team, err := by.Team()
	if err != nil {
		return Opened{}, err
	}
	found, err := s.sandboxes.Get(ctx, by, x)
	if err != nil {
		return Opened{}, err
	}
	if r, err = r.normalize(); err != nil {
		return Opened{}, err
	}
	if !found.Status.Live() {
		return Opened{}, sandbox.InvalidState(found)
	}
	a := Access{ID: id.NewPortAccess(), TeamID: team, SandboxID: x, Port: r.Port, Public: r.Public, Name: r.Name, CreatedBy: by.ActorName()}
	var token string
	var hash []byte
	if !r.Public {
		token = newToken()
		hash = hashOf(token)
	}
	a, err = s.store.Open(ctx, a, by, r.ExpiresInSec, hash, token, audit.By(by).PortOpened(team, x, a.ID, r.Port, r.Public, r.Name))
	if err != nil {
		return Opened{}, err
	}
	return Opened{Access: a, Token: token}, nil
}

// List returns a page of the accesses to a sandbox's ports.
func (s *Service) List(ctx context.Context, by principal.Principal, x id.Sandbox, p page.Request) (page.Page[Access], error) {
	if _, err := s.sandboxes.Get(ctx, by, x); err != nil {
		return page.Page[Access]{}, err
	}
	return s.store.List(ctx, x, p)
}

// Close takes an access back: the next request is refused, and what is open
// ends within a second.
func (s *Service) Close(ctx context.Context, by principal.Principal, x id.Sandbox, access id.PortAccess) error {
	team, err := by.Team()
	if err != nil {
		return err
	}
	if _, err := s.sandboxes.Get(ctx, by, x); err != nil {
		return err
	}
	return s.store.Revoke(ctx, team, x, access, func(port int, name string) audit.Entry {
		return audit.By(by).PortClosed(team, x, access, port, name)
	})
}

// Admit decides whether a token, empty for none, opens a port. What is no token
// opens only what is open for everybody.
func (s *Service) Admit(ctx context.Context, x id.Sandbox, port int, token string) (Admission, bool, error) {
	if port == Control {
		return Admission{}, false, nil
	}
	return s.store.Admit(ctx, x, port, hashOf(token))
}

// TeamOf finds whose a sandbox is that has not ended.
func (s *Service) TeamOf(ctx context.Context, x id.Sandbox) (id.Team, bool, error) {
	return s.store.TeamOf(ctx, x)
}

// Living are those of the given accesses that still open their port.
func (s *Service) Living(ctx context.Context, accesses []id.PortAccess) ([]id.PortAccess, error) {
	return s.store.Living(ctx, accesses)
}
