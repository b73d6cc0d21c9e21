package build

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// cancelWait is how long a cancel waits for the build to have ended.
const cancelWait = 9 * time.Second

// Service is the room's use cases.
type Service struct {
	store     Store
	templates Templates
	artifacts Artifacts
	feed      *Feed
	driver    *Driver
	secret    keyring.Secret
	scratch   string
	maxBytes  int64
	uploads   *uploads
	log       *slog.Logger
}

// ServiceConfig of a Service.
type ServiceConfig struct {
	// Scratch is a directory for what is being uploaded, of this server alone.
	Scratch string
	// MaxContextBytes bounds an uploaded archive.
	MaxContextBytes int64
}

// NewService makes the room.
func NewService(store Store, templates Templates, artifacts Artifacts, feed *Feed, driver *Driver, secret keyring.Secret, cfg ServiceConfig, log *slog.Logger) *Service {
	return &Service{
		store: store, templates: templates, artifacts: artifacts, feed: feed, driver: driver, secret: secret, scratch: cfg.Scratch, maxBytes: cfg.MaxContextBytes,
		uploads: &uploads{of: map[id.Team]int{}}, log: log,
	}
}

func writer(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeTemplates) {
		return id.Team{}, errs.Forbidden("missing_scope", "This key may not build templates. Make one with the scope `templates`.")
	}
	return by.Team()
}

func reader(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeTemplates, principal.ScopeSandboxes, principal.ScopeRead) {
		return id.Team{}, errs.Forbidden("missing_scope", "This key may not read builds. Make one with the scope `read`.")
	}
	return by.Team()
}

// Create queues a build: once it returns, the build comes to an end whether or
// not anybody waits.
func (s *Service) Create(ctx context.Context, by principal.Principal, req Request) (Receipt, error) {
	team, err := writer(by)
	if err != nil {
		return Receipt{}, err
	}
	spec, read, err := req.validate()
	if err != nil {
		return Receipt{}, err
	}
	b := Build{
		ID: id.NewBuild(), TeamID: team, Name: req.Name, Status: StatusQueued, Spec: spec, Steps: len(read.Steps),
		CreatedByType: string(by.Kind), CreatedByID: by.ActorID(), CreatedByName: by.ActorName(),
	}
	if b.ContextID, err = s.archive(ctx, team, "context_id", req.Context); err != nil {
		return Receipt{}, err
	}
	if b.TarballID, err = s.archive(ctx, team, "from_tarball", req.FromTarball); err != nil {
		return Receipt{}, err
	}
	if b.TarballID != nil {
		b.Spec.FromTemplate = ""
	}
	if b.Spec.FromTemplate != "" {
		// What is wrong is said now and not in a log.
		base, err := s.templates.Resolve(ctx, team, b.Spec.FromTemplate)
		if errs.Is(err, "template_not_found") && read.From != "" {
			return Receipt{}, errs.Invalid("invalid_recipe", fmt.Sprintf(
				"Line 1: there is no template %q. Write FROM %s:latest for an image of that name.", read.From, read.From)).With("field", "recipe").With("line", 1)
		}
		if err != nil {
			return Receipt{}, err
		}
		env := base.Env
		if _, err := read.Plan(baseOf(base, env)); err != nil {
			return Receipt{}, err
		}
	}
	if req.Login != nil {
		plain, err := json.Marshal(req.Login)
		if err != nil {
			return Receipt{}, errs.Internal(err)
		}
		owner := b.ID.UUID()
		b.Secrets = s.secret.Seal(sealLogin, plain, owner[:])
	}
	receipt, err := s.store.Create(ctx, b, audit.By(by).BuildCreated(team, b.ID, b.Name))
	if err == nil {
		s.driver.Wake()
	}
	return receipt, err
}

const sealLogin = "build-registry"

// openLogin is nil for none.
func openLogin(secret keyring.Secret, b Build) (*Login, error) {
	if len(b.Secrets) == 0 {
		return nil, nil
	}
	owner := b.ID.UUID()
	plain, err := secret.Open(sealLogin, b.Secrets, owner[:])
	if err != nil {
		return nil, fmt.Errorf("open the registry's login of %s: %w", b.ID, err)
	}
	var l Login
	if err := json.Unmarshal(plain, &l); err != nil {
		return nil, fmt.Errorf("the registry's login of %s: %w", b.ID, err)
	}
	return &l, nil
}

// archive finds an uploaded archive of the team; nil for no word.
func (s *Service) archive(ctx context.Context, team id.Team, field, word string) (*id.BuildContext, error) {
	if word == "" {
		return nil, nil
	}
	ctxID, err := id.ParseBuildContext(word)
	if err != nil {
		return nil, errs.Field(field, field+" must be the id of an uploaded archive (POST /v1/build-contexts).")
	}
	c, err := s.store.Context(ctx, ctxID)
	if err != nil {
		return nil, err
	}
	if c.TeamID != team {
		return nil, ErrContextNotFound
	}
	return &ctxID, nil
}

// Get reads one of the caller's team.
func (s *Service) Get(ctx context.Context, by principal.Principal, b id.Build) (Build, error) {
	team, err := reader(by)
	if err != nil {
		return Build{}, err
	}
	got, err := s.store.Get(ctx, b)
	if err == nil && got.TeamID != team {
		return Build{}, ErrNotFound
	}
	return got, err
}

// Lookup reads the build that a receipt of the caller names.
func (s *Service) Lookup(ctx context.Context, r Receipt) (Build, error) {
	return s.store.Get(ctx, r.Build)
}

// List pages through the team's builds, newest first; of one name when it is not
// empty.
func (s *Service) List(ctx context.Context, by principal.Principal, name string, p page.Request) (page.Page[Build], error) {
	team, err := reader(by)
	if err != nil {
		return page.Page[Build]{}, err
	}
	return s.store.List(ctx, team, name, p)
}

// Cancel ends a build and returns it as it ended, or, when that takes longer, as
// it is: it will. Repeats are harmless.
func (s *Service) Cancel(ctx context.Context, by principal.Principal, b id.Build) (Build, error) {
	team, err := writer(by)
	if err != nil {
		return Build{}, err
	}
	told, stop := s.feed.watch(b)
	defer stop()
	got, err := s.store.AskCancel(ctx, team, b, audit.By(by).BuildCanceled(team, b))
	if err != nil {
		return Build{}, err
	}
	s.driver.cancel(b)
	s.feed.Hint(b)
	patience := time.NewTimer(cancelWait)
	defer patience.Stop()
	for !got.Status.Ended() {
		select {
		case <-told:
		case <-patience.C:
			return got, nil
		case <-ctx.Done():
			return got, nil // it goes on; nobody hears the answer
		}
		if got, err = s.store.Get(ctx, b); err != nil {
			return got, err
		}
	}
	return got, nil
}

// linesAtOnce bounds one read of a log.
const linesAtOnce = 500

// Logs tells emit the lines after a number, in order. With follow it goes on
// until the build has ended, and returns it as it is then.
func (s *Service) Logs(ctx context.Context, by principal.Principal, b id.Build, after int, follow bool, emit func([]Line) error) (Build, error) {
	if _, err := s.Get(ctx, by, b); err != nil {
		return Build{}, err
	}
	told, stop := s.feed.watch(b)
	defer stop()
	for {
		// Read first, so that no line is written after the last look at them.
		got, err := s.store.Get(ctx, b)
		if err != nil {
			return got, err
		}
		lines, err := s.store.Lines(ctx, b, after, linesAtOnce)
		if err != nil {
			return got, err
		}
		if len(lines) > 0 {
			if err := emit(lines); err != nil {
				return got, err
			}
			after = lines[len(lines)-1].Seq
		}
		if len(lines) == linesAtOnce {
			continue
		}
		if !follow || got.Status.Ended() {
			return got, nil
		}
		select {
		case <-told:
		case <-ctx.Done():
			return got, errs.New(errs.CodeCanceled, "canceled", "The request ended before the build did; it goes on.").Because(ctx.Err())
		}
	}
}
