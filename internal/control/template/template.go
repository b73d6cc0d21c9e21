// Package template owns what sandboxes are made from: rows that name an image
// by its digest. A row never changes what it means; a new build of a name is a
// new row, and the old one stays for the sandboxes that refer to it.
package template

import (
	"context"
	"fmt"
	"strings"
	"time"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/artifact"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/page"
)

// buildLease is how long a build may take before it begins to upload.
const buildLease = time.Hour

// BaseName is the template that comes with Skerry.
const BaseName = "base"

// Template is one row.
type Template struct {
	ID             id.Template
	TeamID         id.Team
	Name           string
	Status         string
	Error          string
	ImageDigest    content.Digest
	ImageSizeBytes int64
	ManifestDigest content.Digest
	// Artifact is its image in the store.
	Artifact  id.Artifact
	Engine    string
	CPUMillis int64
	MemoryMB  int64
	DiskMB    int64
	// Arch is what the image is made for; empty where that is not known.
	Arch           string
	DefaultUser    string
	DefaultWorkdir string
	CreatedAt      time.Time
	// Env is of every command in its sandboxes.
	Env map[string]string
	// Start is what runs in them from the start and Ready what tells that it has
	// come up, as recipes have them; empty for none.
	Start, Ready string
	// StateID is what they start from instead of being booted; nil for none.
	StateID *id.Snapshot
	BuildID *id.Build
	// BuiltOn is the host that made the image, of one about to be published.
	BuiltOn id.Host
}

// Platform reports whether it is shared with all teams.
func (t Template) Platform() bool { return t.TeamID == id.PlatformTeamID }

// ErrNotFound is a template that does not exist or is another team's.
var ErrNotFound = errs.NotFound("template_not_found", "There is no such template. List them with GET /v1/templates; `base` is built by `skerry template build base`.")

// Built is an image that a host made and the artifact store holds.
type Built struct {
	Digest         content.Digest
	SizeBytes      int64
	ManifestDigest content.Digest
}

// Store keeps templates. Each verb is one transaction.
type Store interface {
	// Resolve finds a living template by name; the team's own shadows the
	// platform's.
	ResolveName(ctx context.Context, team id.Team, name string) (Template, error)
	// ByID reads any row, also a replaced one. deleted says that it was.
	ByID(ctx context.Context, tpl id.Template) (t Template, deleted bool, err error)
	List(ctx context.Context, team id.Team, p page.Request) (page.Page[Template], error)
	// Delete retires one of the team's; what was made from it keeps its bytes.
	Delete(ctx context.Context, team id.Team, tpl id.Template, entry audit.Entry) error
	// BeginImage makes the row of an image that is about to be uploaded.
	BeginImage(ctx context.Context, n artifact.New) error
	// Publish makes a ready template of an image that the store has; the living
	// one of the same name is retired in the same transaction.
	Publish(ctx context.Context, t Template, entry audit.Entry) (Template, error)
}

// Hosts finds a host that can build.
type Hosts interface {
	// ListBuilders are the platform's own hosts that take work now.
	ListBuilders(ctx context.Context) ([]host.Ref, error)
}

// Builder is the agents, as far as they build. log is called for each line, in
// order; an error from it ends the build.
type Builder interface {
	BuildBase(ctx context.Context, h host.Ref, to content.Source, log func(line string) error) (Built, error)
}

// Artifacts gives hosts access to the store.
type Artifacts interface {
	Source(ctx context.Context, a id.Artifact, h id.Host, op artifact.Op) (content.Source, error)
}

// Service is the room's use cases.
type Service struct {
	store     Store
	hosts     Hosts
	builder   Builder
	artifacts Artifacts
}

// NewService makes the room.
func NewService(store Store, hosts Hosts, builder Builder, artifacts Artifacts) *Service {
	return &Service{store: store, hosts: hosts, builder: builder, artifacts: artifacts}
}

// Get finds a template of the caller's team or of the platform by id or name.
func (s *Service) Get(ctx context.Context, by principal.Principal, nameOrID string) (Template, error) {
	team, err := reader(by)
	if err != nil {
		return Template{}, err
	}
	return s.find(ctx, team, nameOrID)
}

// List pages through the team's templates and the platform's, newest first.
func (s *Service) List(ctx context.Context, by principal.Principal, p page.Request) (page.Page[Template], error) {
	team, err := reader(by)
	if err != nil {
		return page.Page[Template]{}, err
	}
	return s.store.List(ctx, team, p)
}

// reader is the team whose templates the caller may read. A platform admin
// without a team reads the platform's.
func reader(by principal.Principal) (id.Team, error) {
	if !by.Can(principal.ScopeTemplates, principal.ScopeSandboxes, principal.ScopeRead) {
		return id.Team{}, errs.Forbidden("missing_scope", "This key may not read templates. Make one with the scope `read`.")
	}
	if by.Kind == principal.KindUser && by.IsAdmin && !by.HasTeam {
		return id.PlatformTeamID, nil
	}
	return by.Team()
}

func (s *Service) find(ctx context.Context, team id.Team, nameOrID string) (Template, error) {
	if !strings.HasPrefix(nameOrID, "tpl-") {
		return s.store.ResolveName(ctx, team, nameOrID)
	}
	tpl, err := id.ParseTemplate(nameOrID)
	if err != nil {
		// A name may begin like an id.
		if t, nameErr := s.store.ResolveName(ctx, team, nameOrID); nameErr == nil {
			return t, nil
		}
		return Template{}, err
	}
	t, deleted, err := s.store.ByID(ctx, tpl)
	if err != nil {
		return Template{}, err
	}
	if deleted || (t.TeamID != team && !t.Platform()) {
		return Template{}, ErrNotFound
	}
	return t, nil
}

// Delete gives up one of the team's own templates, by id or name. Sandboxes and
// saved states made from it live on.
func (s *Service) Delete(ctx context.Context, by principal.Principal, nameOrID string) error {
	if !by.Can(principal.ScopeTemplates) {
		return errs.Forbidden("missing_scope", "This key may not delete templates. Make one with the scope `templates`.")
	}
	team, err := by.Team()
	if err != nil {
		return err
	}
	t, err := s.find(ctx, team, nameOrID)
	if err != nil {
		return err
	}
	if t.TeamID != team {
		return errs.Forbidden("platform_template", "This template is the platform's; a team deletes its own.")
	}
	return s.store.Delete(ctx, team, t.ID, audit.By(by).TemplateDeleted(team, t.ID, t.Name))
}

// Resolve finds what a sandbox of the team is to be made from.
func (s *Service) Resolve(ctx context.Context, team id.Team, nameOrID string) (Template, error) {
	t, err := s.find(ctx, team, nameOrID)
	if err != nil {
		return Template{}, err
	}
	if t.Status != "ready" {
		return Template{}, errs.FailedPrecondition("template_not_ready", fmt.Sprintf("The template is %s. Wait for its build, or build it again.", t.Status)).
			With("status", t.Status)
	}
	return t, nil
}

// ByID reads a template that a sandbox refers to, also a replaced one.
func (s *Service) ByID(ctx context.Context, tpl id.Template) (Template, error) {
	t, _, err := s.store.ByID(ctx, tpl)
	return t, err
}

// ImageSource lets a host fetch the template's image for a limited time. Of one
// that is not in the store there is none; hosts that have it need none.
func (s *Service) ImageSource(ctx context.Context, t Template, h id.Host) (content.Source, error) {
	if t.Artifact.IsZero() {
		return content.Source{}, nil
	}
	return s.artifacts.Source(ctx, t.Artifact, h, artifact.Read)
}

// BuildBase builds the platform's base on one online host, telling log each
// line, and publishes it. Repeated, it makes a new row; sandboxes of the old one
// keep theirs.
func (s *Service) BuildBase(ctx context.Context, by principal.Principal, log func(line string) error) (Template, error) {
	if err := MayBuild(by); err != nil {
		return Template{}, err
	}
	hosts, err := s.hosts.ListBuilders(ctx)
	if err != nil {
		return Template{}, err
	}
	if len(hosts) == 0 {
		return Template{}, errs.Unavailable("no_host", "No host is online to build on. Add one with POST /v1/hosts, or wait for it to come online.").After(5 * time.Second)
	}
	image := artifact.New{ID: id.NewArtifact(), Team: id.PlatformTeamID, Kind: artifact.KindImage, Host: hosts[0].ID, Lease: buildLease}
	if err := s.store.BeginImage(ctx, image); err != nil {
		return Template{}, err
	}
	to, err := s.artifacts.Source(ctx, image.ID, image.Host, artifact.Write)
	if err != nil {
		return Template{}, err
	}
	built, err := s.builder.BuildBase(ctx, hosts[0], to, log)
	if err != nil {
		return Template{}, err
	}
	if err := built.Digest.Validate(); err != nil {
		return Template{}, errs.Internal(fmt.Errorf("host %s named a broken image digest: %w", hosts[0].ID, err))
	}
	if err := built.ManifestDigest.Validate(); err != nil {
		return Template{}, errs.Internal(fmt.Errorf("host %s named a broken manifest digest: %w", hosts[0].ID, err))
	}
	t := Template{
		ID: id.NewTemplate(), TeamID: id.PlatformTeamID, Name: BaseName,
		ImageDigest: built.Digest, ImageSizeBytes: built.SizeBytes, ManifestDigest: built.ManifestDigest,
		Artifact: image.ID, BuiltOn: hosts[0].ID,
	}
	return s.store.Publish(ctx, t, audit.By(by).TemplateBuilt(t.TeamID, t.ID, t.Name, true))
}

// MayBuild says whether the caller may build the platform's templates.
func MayBuild(by principal.Principal) error {
	switch {
	case by.Kind == principal.KindAnonymous:
		return errs.Unauthenticated("unauthenticated", "Log in as a platform admin.")
	case by.Kind != principal.KindUser || !by.IsAdmin:
		return errs.Forbidden("admin_required", "Only a platform admin may build the platform's templates.")
	}
	return nil
}
