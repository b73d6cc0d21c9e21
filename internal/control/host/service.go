package host

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// Lifetimes.
const (
	RegistrationLifetime = time.Hour
	// RepeatWindow is how long the key that spent a token may repeat the call.
	RepeatWindow    = 5 * time.Minute
	RefreshLifetime = 60 * 24 * time.Hour
)

// Agents are the hosts' agents, as far as this room calls them.
type Agents interface {
	// Hello asks who answers at the host's address; the link itself proves that
	// it is this host.
	Hello(ctx context.Context, h Ref) (generation int64, err error)
	// DestroySandbox ends a sandbox and refuses what is older than incarnation.
	DestroySandbox(ctx context.Context, h Ref, sandbox id.Sandbox, incarnation int64, reason string) error
}

// NewToken is a registration token about to be stored.
type NewToken struct {
	ID   id.HostToken
	Hash []byte
}

// Registration is what an agent's first call changes.
type Registration struct {
	TokenHash []byte
	KeyHash   []byte // SHA-256 of PublicKey
	PublicKey []byte // PKIX DER
	Facts     Facts
	Family    id.HostRefreshToken
	// RefreshHash is of the family's first token.
	RefreshHash []byte
	Audit       func(team id.Team, host id.Host) audit.Entry
}

// Joined is the outcome of a registration: the new family, or, for a repeat by
// the same key, the one that the first call made.
type Joined struct {
	Host    id.Host
	Family  id.HostRefreshToken
	Counter int64
	Expires time.Time
}

// Deletion is the request to take a host away.
type Deletion struct {
	Host id.Host
	// Force: whatever is lost with it.
	Force bool
	// By records the end of each sandbox and snapshot, Audit that of the host.
	By    audit.AuditLogger
	Audit func(ended int) audit.Entry
}

// Rotation is what a refresh changes.
type Rotation struct {
	Family id.HostRefreshToken
	// Counter and TokenHash are of the token presented, which was derived by us.
	Counter   int64
	TokenHash []byte
	PublicKey []byte
	// Next is the hash of the successor of the token presented.
	Next  []byte
	Audit func(team id.Team, host id.Host, revoked bool) audit.Entry
	// Reason is what people are told of a host whose family was revoked.
	Reason string
}

// Beat is what a heartbeat says.
type Beat struct {
	Host id.Host
	// Family is of the credentials it came with.
	Family     id.HostRefreshToken
	Generation int64
	Address    string
	Version    string
	// Engines are what it offers now; nil is what it said before.
	Engines []scheduler.Engine
	Load    Load
}

// Store keeps hosts and their credentials. Each verb is one transaction.
type Store interface {
	// Create announces a host with its token. A byoc host's team must be alive
	// and byoc; else it is forbidden.
	Create(ctx context.Context, h Host, by *id.User, token NewToken, entry audit.Entry, receipt func(Host, time.Time) Created) (Created, error)
	// NewToken voids the former tokens.
	NewToken(ctx context.Context, host id.Host, token NewToken, entry audit.Entry, receipt func(Host, time.Time) Created) (Created, error)
	// Register spends the token, or answers ErrToken. Register, Rotate, Alive and
	// Heartbeat answer a *DeletedError to a host that was deleted.
	Register(ctx context.Context, r Registration) (Joined, error)
	// Rotate issues the successor of a refresh token. The predecessor stays
	// valid until the successor is used; one newer than the store knows counts
	// too, for the store may be a restored one. ErrRefreshToken for all else;
	// reuse of an older token revokes the family when the key is the host's, and
	// takes the host out of service.
	Rotate(ctx context.Context, r Rotation) (Joined, error)
	// Alive says whose a family of credentials is, while it lives.
	Alive(ctx context.Context, family id.HostRefreshToken) (id.Host, error)
	// Heartbeat notes it, if the credentials live, and returns the host as it then
	// is; otherwise the error is that of Alive. One statement unless it fails. A new
	// generation or address takes the host out of service.
	Heartbeat(ctx context.Context, b Beat) (Host, error)
	// MarkOnline puts a host in service that was reached at this address in this
	// generation; nothing changes when it has moved on.
	MarkOnline(ctx context.Context, h Host, entry audit.Entry) error
	SetReason(ctx context.Context, host id.Host, reason string) error
	// MarkStale takes hosts out of service whose last heartbeat is older, and
	// returns them.
	MarkStale(ctx context.Context, after time.Duration, reason string, entry func(Host) audit.Entry) ([]Host, error)
	// ListActiveHosts are those in reach.
	ListActiveHosts(ctx context.Context) ([]Ref, error)
	// ListBuilders are the platform's own that are online and not draining.
	ListBuilders(ctx context.Context) ([]Ref, error)
	Update(ctx context.Context, host id.Host, u Update, entry audit.Entry) (Host, error)
	// Drain has the host emptied, within a time if that is not nil; repeating it
	// sets the deadline anew.
	Drain(ctx context.Context, host id.Host, within *time.Duration, entry audit.Entry) (Host, error)
	Undrain(ctx context.Context, host id.Host, entry audit.Entry) (Host, error)
	Losses(ctx context.Context, host id.Host, p page.Request) (Losses, error)
	// Delete ends all that lives on the host, voids its credentials and deletes
	// it; has_active_sandboxes when anything would be lost and it is not by force.
	Delete(ctx context.Context, d Deletion) (Departure, error)
	Get(ctx context.Context, host id.Host) (Host, error)
	// List pages through all hosts, or those of a team.
	List(ctx context.Context, team *id.Team, p page.Request) (page.Page[Host], error)
}

// Service is the room's use cases.
type Service struct {
	store    Store
	keys     *keyring.Keyring
	secret   keyring.Secret
	agents   Agents
	agentURL string
	log      *slog.Logger
	woken    func(id.Host)
	gone     func(id.Host)
}

// NewService makes the room. agentURL is where hosts reach the control plane.
func NewService(store Store, keys *keyring.Keyring, secret keyring.Secret, agents Agents, agentURL string, log *slog.Logger) *Service {
	return &Service{
		store: store, keys: keys, secret: secret, agents: agents, agentURL: strings.TrimRight(agentURL, "/"), log: log, woken: func(id.Host) {}, gone: func(id.Host) {},
	}
}

// OnContact has fn called, as a hint, whenever a host came online.
func (s *Service) OnContact(fn func(id.Host)) { s.woken = fn }

// OnDeleted has fn called once a host was deleted.
func (s *Service) OnDeleted(fn func(id.Host)) { s.gone = fn }

// Create announces a host.
func (s *Service) Create(ctx context.Context, by principal.Principal, req CreateRequest) (Created, error) {
	if err := req.Validate(); err != nil {
		return Created{}, err
	}
	team := id.PlatformTeamID
	if req.Type == TypeBYOC {
		t, err := by.Team()
		if err != nil {
			return Created{}, err
		}
		team = t
	}
	if err := mayManage(by, req.Type, team); err != nil {
		return Created{}, err
	}
	name := strings.TrimSpace(req.Name)
	if name == "" {
		name = Unnamed
	}
	h := Host{
		ID: id.NewHost(), TeamID: team, Type: req.Type, Name: name, Provider: req.Provider, AvailabilityZone: req.AvailabilityZone, Labels: req.Labels,
	}
	secret, token := newToken()
	user := by.UserID
	return s.store.Create(ctx, h, &user, token, audit.By(by).HostCreated(team, h.ID, h.Name), s.receipt(secret))
}

// IssueToken makes a new registration token; the old one is void. A host that
// lost its credentials joins again with it.
func (s *Service) IssueToken(ctx context.Context, by principal.Principal, host id.Host) (Created, error) {
	h, err := s.managed(ctx, by, host)
	if err != nil {
		return Created{}, err
	}
	secret, token := newToken()
	return s.store.NewToken(ctx, host, token, audit.By(by).HostTokenIssued(h.TeamID, h.ID), s.receipt(secret))
}

// mayManage: regular hosts are for platform admins, a customer's for the owner
// and admins of its team.
func mayManage(by principal.Principal, t Type, team id.Team) error {
	switch {
	case by.Kind == principal.KindAnonymous:
		return errs.Unauthenticated("unauthenticated", "Log in first.")
	case by.Kind != principal.KindUser:
		return errs.Forbidden("session_required", "Hosts are managed by people: log in instead of using a key.")
	case t == TypeRegular && !by.IsAdmin:
		return errs.Forbidden("admin_required", "Only a platform admin may manage regular hosts.")
	case t == TypeBYOC && !by.IsAdmin && (!by.HasTeam || by.TeamID != team || (by.Role != principal.RoleOwner && by.Role != principal.RoleAdmin)):
		return errs.Forbidden("role_required", "Only the owner and admins of the team may manage its hosts.")
	}
	return nil
}

func newToken() (secret string, t NewToken) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	secret = hex.EncodeToString(raw)
	return secret, NewToken{ID: id.NewHostToken(), Hash: hash(secret)}
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

func (s *Service) receipt(token string) func(Host, time.Time) Created {
	return func(h Host, expires time.Time) Created {
		sum := s.keys.CASHA256()
		return Created{
			Host: h, Token: token, ExpiresAt: expires, CASHA256: sum,
			Install: fmt.Sprintf("skerry join --server %s --ca-sha256 %s --registration-token %s", s.agentURL, sum, token),
		}
	}
}

// request reads a PEM certificate request and the key that signed it.
func request(csrPEM string) (der, publicKey []byte, err error) {
	block, _ := pem.Decode([]byte(csrPEM))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, nil, errs.Field("csr", "csr must be a certificate request in PEM.")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = req.CheckSignature()
	}
	if err != nil {
		return nil, nil, errs.Field("csr", "The certificate request is malformed or not signed by its own key.").Because(err)
	}
	publicKey, err = x509.MarshalPKIXPublicKey(req.PublicKey)
	if err != nil {
		return nil, nil, errs.Field("csr", "The certificate request has a key of an unknown kind.").Because(err)
	}
	return block.Bytes, publicKey, nil
}

// What people are told of a host whose credentials are void.
const (
	reusedReason = "A refresh token of this host was used twice, so its credentials were made void. " + remedy
	remedy       = "Make a registration token with POST /v1/hosts/{id}/token and have its agent join again with it."
	voidReason   = "The credentials of this host are void or have expired. " + remedy
)

// Register lets a machine join with its one-time token. The same key may repeat
// it for five minutes and gets the same credentials.
func (s *Service) Register(ctx context.Context, by principal.Principal, token, csrPEM string, facts Facts) (Credentials, error) {
	der, publicKey, err := request(csrPEM)
	if err != nil {
		return Credentials{}, err
	}
	if err := facts.Validate(); err != nil {
		return Credentials{}, err
	}
	sum := sha256.Sum256(publicKey)
	family := id.NewHostRefreshToken()
	joined, err := s.store.Register(ctx, Registration{
		TokenHash: hash(token), KeyHash: sum[:], PublicKey: publicKey, Facts: facts,
		Family: family, RefreshHash: hash(s.refreshToken(family, 1)),
		Audit: func(team id.Team, host id.Host) audit.Entry {
			as := by
			as.Kind, as.HostID = principal.KindHost, host
			return audit.By(as).HostRegistered(team, host, facts.Address)
		},
	})
	if err != nil {
		return Credentials{}, s.told(err)
	}
	return s.credentials(joined, der)
}

// Refresh rotates a host's credentials. The request must be signed with the
// host's own key.
func (s *Service) Refresh(ctx context.Context, by principal.Principal, token, csrPEM string) (Credentials, error) {
	family, counter, err := s.parseRefresh(token)
	if err != nil {
		return Credentials{}, err
	}
	der, publicKey, err := request(csrPEM)
	if err != nil {
		return Credentials{}, err
	}
	joined, err := s.store.Rotate(ctx, Rotation{
		Family: family, Counter: counter, TokenHash: hash(token), PublicKey: publicKey, Next: hash(s.refreshToken(family, counter+1)),
		Audit: func(team id.Team, host id.Host, revoked bool) audit.Entry {
			as := by
			as.Kind, as.HostID = principal.KindHost, host
			return audit.By(as).HostTokenReused(team, host, revoked)
		},
		Reason: reusedReason,
	})
	if err != nil {
		return Credentials{}, s.told(err)
	}
	return s.credentials(joined, der)
}

func (s *Service) credentials(j Joined, csrDER []byte) (Credentials, error) {
	cert, err := s.keys.SignHostCertificate(j.Host, csrDER)
	if err != nil {
		return Credentials{}, err
	}
	jwt, expires, err := s.keys.SignHost(keyring.HostClaims{Host: j.Host, Family: j.Family})
	if err != nil {
		return Credentials{}, err
	}
	return Credentials{
		HostID: j.Host, JWT: jwt, JWTExpiresAt: expires,
		RefreshToken: s.refreshToken(j.Family, j.Counter), RefreshExpiresAt: j.Expires,
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), CA: string(s.keys.CAPEM()),
	}, nil
}

// AuthenticateHost says that a host whose token was verified still lives with
// these credentials.
func (s *Service) AuthenticateHost(ctx context.Context, claims keyring.HostClaims) (principal.Principal, error) {
	owner, err := s.store.Alive(ctx, claims.Family)
	if err != nil {
		return principal.Principal{}, s.told(err)
	}
	if owner != claims.Host {
		return principal.Principal{}, ErrHostToken
	}
	return principal.Principal{Kind: principal.KindHost, HostID: owner, HostFamily: claims.Family}, nil
}

// Heartbeat notes that a host lives, and puts it in service once it was reached
// at its address. Whether the caller's credentials live is found out here: a host
// beats all the time, and costs the database one statement.
func (s *Service) Heartbeat(ctx context.Context, by principal.Principal, b Beat) error {
	if by.Kind != principal.KindHost || by.HostID != b.Host {
		return ErrHostToken
	}
	if err := ValidateAddress(b.Address); err != nil {
		return err
	}
	if b.Generation < 0 || !text(b.Version, 64) {
		return errs.Field("generation", "generation must not be negative and version must be text.")
	}
	b.Family = by.HostFamily
	h, err := s.store.Heartbeat(ctx, b)
	if err != nil || (h.Status != StatusPending && h.Status != StatusUnreachable) {
		return s.told(err)
	}
	return s.contact(ctx, h)
}

// contactLimit bounds the call that proves a host's address.
const contactLimit = 5 * time.Second

func (s *Service) contact(ctx context.Context, h Host) error {
	cctx, cancel := context.WithTimeout(ctx, contactLimit)
	defer cancel()
	generation, err := s.agents.Hello(cctx, Ref{ID: h.ID, Address: h.Facts.Address, Generation: h.Generation})
	if err == nil && generation != h.Generation {
		err = fmt.Errorf("generation %d answers, %d reported", generation, h.Generation)
	}
	if err != nil {
		s.log.WarnContext(ctx, "host cannot be reached at its address", "host_id", h.ID.String(), "address", h.Facts.Address, "error", err)
		return s.store.SetReason(ctx, h.ID, fmt.Sprintf("The control plane cannot reach the agent at %s. Open that port, or set the agent's public address if it is behind NAT.", h.Facts.Address))
	}
	if err := s.store.MarkOnline(ctx, h, audit.By(principal.System("host_monitor")).HostMarkedUp(h.TeamID, h.ID)); err != nil {
		return err
	}
	s.woken(h.ID)
	return nil
}

// Get reads a host the caller may see.
func (s *Service) Get(ctx context.Context, by principal.Principal, host id.Host) (Host, error) {
	h, err := s.store.Get(ctx, host)
	if err != nil {
		return Host{}, err
	}
	if !by.IsAdmin && (!by.HasTeam || by.TeamID != h.TeamID) {
		return Host{}, ErrNotFound
	}
	return h, nil
}

// List pages through all hosts for a platform admin, the team's own for others.
func (s *Service) List(ctx context.Context, by principal.Principal, p page.Request) (page.Page[Host], error) {
	if by.IsAdmin {
		return s.store.List(ctx, nil, p)
	}
	team, err := by.Team()
	if err != nil {
		return page.Page[Host]{}, err
	}
	return s.store.List(ctx, &team, p)
}

// ListBuilders are those that may build what all teams start from: never a
// customer's machine.
func (s *Service) ListBuilders(ctx context.Context) ([]Ref, error) { return s.store.ListBuilders(ctx) }

// ListActiveHosts are those in reach.
func (s *Service) ListActiveHosts(ctx context.Context) ([]Ref, error) {
	return s.store.ListActiveHosts(ctx)
}
