// Package build owns the jobs that make templates: what was asked for, how far
// each is, what it says, and what it leaves. A build runs its steps in a sandbox
// of its own, and makes an image of what they left of the disk.
//
// It never speaks HTTP, SQL or RPC. Rows of templates are the template room's;
// the sandboxes are the sandbox room's, which hides them from the team.
package build

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	content "skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/recipe"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Status is where a build is in its life.
type Status string

// The statuses.
const (
	StatusQueued   Status = "queued"
	StatusRunning  Status = "running"
	StatusReady    Status = "ready"
	StatusFailed   Status = "failed"
	StatusCanceled Status = "canceled"
)

// Ended reports whether nothing more comes of it.
func (s Status) Ended() bool { return s != StatusQueued && s != StatusRunning }

// Build is one row.
type Build struct {
	ID         id.Build
	TeamID     id.Team
	Name       string
	Status     Status
	Spec       Spec
	Secrets    []byte // sealed
	ContextID  *id.BuildContext
	TarballID  *id.BuildContext
	BaseID     *id.Template
	TemplateID *id.Template
	SandboxID  *id.Sandbox
	Step       int
	Steps      int
	Reason     string
	Error      string
	// CancelAsked: somebody wants it ended.
	CancelAsked   bool
	Attempts      int
	CreatedByType string
	CreatedByID   string
	CreatedByName string
	CreatedAt     time.Time
	StartedAt     *time.Time
	FinishedAt    *time.Time
}

// Spec is what was asked for, as the row keeps it. Exactly one of the first three
// is set, the tarball in a column of its own.
type Spec struct {
	FromTemplate string `json:"from_template,omitempty"`
	FromImage    string `json:"from_image,omitempty"`
	Recipe       string `json:"recipe,omitempty"`
	// Zero values are what the base has.
	CPUMillis int64 `json:"cpu_millis,omitempty"`
	MemoryMB  int64 `json:"memory_mb,omitempty"`
	DiskMB    int64 `json:"disk_mb,omitempty"`
	NoCache   bool  `json:"no_cache,omitempty"`
}

// Login is for a registry of images.
type Login struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Request is what a caller asks for.
type Request struct {
	Name         string
	FromTemplate string
	FromImage    string
	FromTarball  string
	Login        *Login
	Recipe       string
	Context      string
	VCPUs        *float64
	MemoryMB     *int64
	DiskMB       *int64
	NoCache      bool
}

// Bounds of a request. Those of sizes are a sandbox's.
const (
	minVCPUs    = 0.1
	maxVCPUs    = 512
	minMemoryMB = 64
	maxMemoryMB = 1 << 20
	minDiskMB   = 64
	maxDiskMB   = 16 << 20
)

// nameForm is a template's name.
const nameForm = `^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`

// validate checks what can be checked by itself, and reads the recipe.
func (r Request) validate() (Spec, recipe.Recipe, error) {
	var spec Spec
	if !regexp.MustCompile(nameForm).MatchString(r.Name) || strings.HasPrefix(r.Name, "tpl-") {
		return spec, recipe.Recipe{}, errs.Field("name", "name must be a letter or digit, then up to 63 of letters, digits, dot, underscore and dash; tpl- begins ids.")
	}
	read, err := recipe.Parse(r.Recipe)
	if err != nil {
		return spec, read, err
	}
	spec = Spec{FromTemplate: r.FromTemplate, FromImage: r.FromImage, Recipe: r.Recipe, NoCache: r.NoCache}
	given := 0
	for _, s := range []string{r.FromTemplate, r.FromImage, r.FromTarball, read.From} {
		if s != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return spec, read, errs.Field("from_template", "Say once what the template begins with: from_template, from_image, from_tarball, or FROM in the recipe.")
	case read.From != "":
		spec.FromTemplate, spec.FromImage = fromWord(read.From)
	case given == 0:
		spec.FromTemplate = template.BaseName
	}
	if len(spec.FromTemplate) > 100 {
		return spec, read, errs.Field("from_template", "from_template must be the name or id of a template.")
	}
	if len(spec.FromImage) > 512 || strings.ContainsAny(spec.FromImage, " \t\n") || strings.HasPrefix(spec.FromImage, "-") {
		return spec, read, errs.Field("from_image", "from_image must be a reference such as docker.io/library/debian:12.")
	}
	if r.Login != nil && (spec.FromImage == "" || len(r.Login.Username) > 256 || len(r.Login.Password) > 8192) {
		return spec, read, errs.Field("registry", "registry is the login for from_image: a username and a password.")
	}
	if r.VCPUs != nil {
		if !(*r.VCPUs >= minVCPUs && *r.VCPUs <= maxVCPUs) { // NaN fails too
			return spec, read, errs.Field("vcpus", fmt.Sprintf("vcpus must be between %g and %d.", minVCPUs, maxVCPUs))
		}
		spec.CPUMillis = int64(*r.VCPUs*1000 + 0.5)
	}
	for _, x := range []struct {
		field     string
		v         *int64
		low, high int64
		to        *int64
	}{{"memory_mb", r.MemoryMB, minMemoryMB, maxMemoryMB, &spec.MemoryMB}, {"disk_mb", r.DiskMB, minDiskMB, maxDiskMB, &spec.DiskMB}} {
		if x.v == nil {
			continue
		}
		if *x.v < x.low || *x.v > x.high {
			return spec, read, errs.Field(x.field, fmt.Sprintf("%s must be between %d and %d.", x.field, x.low, x.high))
		}
		*x.to = *x.v
	}
	for _, s := range read.Steps {
		if s.Kind == recipe.Copy && r.Context == "" {
			return spec, read, recipe.InvalidAt(s.Line, "COPY needs a context: upload one (POST /v1/build-contexts) and give its id as context_id")
		}
	}
	return spec, read, nil
}

// fromWord tells a template from an image by how FROM is written: names of
// templates have no slash, colon or at sign in them, and an image that had none
// would be one that nobody said which.
func fromWord(s string) (tpl, image string) {
	if strings.ContainsAny(s, "/:@") {
		return "", s
	}
	return s, ""
}

// Image is what a host made, and what it says of itself.
type Image struct {
	Digest         content.Digest
	SizeBytes      int64
	ManifestDigest content.Digest
	Arch           string
	Env            map[string]string
	User           string
	Workdir        string
	Command        []string
}

// Receipt is what an accepted build is known by; a repeated request gets the same.
type Receipt struct {
	Build id.Build `json:"build"`
}

// Line is one of a build's log.
type Line struct {
	Seq    int
	Step   int
	At     time.Time
	Stream string
	Text   string
}

// The streams of a log; system is the build itself.
const (
	Stdout = "stdout"
	Stderr = "stderr"
	System = "system"
)

// Context is an uploaded archive.
type Context struct {
	ID        id.BuildContext
	TeamID    id.Team
	Artifact  id.Artifact
	SizeBytes int64
	Digest    string
	ExpiresAt time.Time
}

// Head is how far a build is.
type Head struct {
	Status Status
	Seq    int
}

// ErrNotFound is a build that does not exist or is another team's.
var ErrNotFound = errs.NotFound("build_not_found", "There is no such build in your team. List yours with GET /v1/builds.")

// ErrContextNotFound is an archive that does not exist, is another team's, or
// whose time is over.
var ErrContextNotFound = errs.NotFound("context_not_found", "There is no such build context in your team, or its time is over. Upload it again (POST /v1/build-contexts).")

// ErrOvertaken: another server drives the build, or it has ended.
var ErrOvertaken = errs.Conflict("build_overtaken", "The build is driven elsewhere, or has ended.")
