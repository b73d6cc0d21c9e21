package id

// The kinds. One type, one constructor and one Format/Parse pair for each; the
// prefixes are part of the public contract and never change.

type (
	user             struct{}
	team             struct{}
	apiKey           struct{}
	host             struct{}
	hostToken        struct{}
	hostRefreshToken struct{}
	sandbox          struct{}
	template         struct{}
	snapshot         struct{}
	auditEntry       struct{}
	operation        struct{}
	session          struct{}
	build            struct{}
	invitation       struct{}
	artifact         struct{}
	buildContext     struct{}
	portAccess       struct{}
)

func (user) prefix() string             { return "usr" }
func (team) prefix() string             { return "team" }
func (apiKey) prefix() string           { return "key" }
func (host) prefix() string             { return "host" }
func (hostToken) prefix() string        { return "htok" }
func (hostRefreshToken) prefix() string { return "hrt" }
func (sandbox) prefix() string          { return "sb" }
func (template) prefix() string         { return "tpl" }
func (snapshot) prefix() string         { return "snap" }
func (auditEntry) prefix() string       { return "log" }
func (operation) prefix() string        { return "op" }
func (session) prefix() string          { return "ses" }
func (build) prefix() string            { return "bld" }
func (invitation) prefix() string       { return "inv" }
func (artifact) prefix() string         { return "art" }
func (buildContext) prefix() string     { return "ctx" }
func (portAccess) prefix() string       { return "port" }

type (
	User             = ID[user]
	Team             = ID[team]
	APIKey           = ID[apiKey]
	Host             = ID[host]
	HostToken        = ID[hostToken]
	HostRefreshToken = ID[hostRefreshToken]
	Sandbox          = ID[sandbox]
	Template         = ID[template]
	Snapshot         = ID[snapshot]
	AuditEntry       = ID[auditEntry]
	Operation        = ID[operation]
	Session          = ID[session]
	Build            = ID[build]
	Invitation       = ID[invitation]
	Artifact         = ID[artifact]
	BuildContext     = ID[buildContext]
	PortAccess       = ID[portAccess]
)

// NewUser makes a time-ordered id.
func NewUser() User { return newID[user]() }

// FormatUser returns the wire form, "usr-…".
func FormatUser(i User) string { return i.String() }

// ParseUser reads the wire form; anything else is invalid_id.
func ParseUser(s string) (User, error) { return parse[user](s) }

// NewTeam makes a time-ordered id.
func NewTeam() Team { return newID[team]() }

// FormatTeam returns the wire form, "team-…".
func FormatTeam(i Team) string { return i.String() }

// ParseTeam reads the wire form; anything else is invalid_id.
func ParseTeam(s string) (Team, error) { return parse[team](s) }

// NewAPIKey makes a time-ordered id.
func NewAPIKey() APIKey { return newID[apiKey]() }

// FormatAPIKey returns the wire form, "key-…".
func FormatAPIKey(i APIKey) string { return i.String() }

// ParseAPIKey reads the wire form; anything else is invalid_id.
func ParseAPIKey(s string) (APIKey, error) { return parse[apiKey](s) }

// NewHost makes a time-ordered id.
func NewHost() Host { return newID[host]() }

// FormatHost returns the wire form, "host-…".
func FormatHost(i Host) string { return i.String() }

// ParseHost reads the wire form; anything else is invalid_id.
func ParseHost(s string) (Host, error) { return parse[host](s) }

// NewHostToken makes a time-ordered id.
func NewHostToken() HostToken { return newID[hostToken]() }

// FormatHostToken returns the wire form, "htok-…".
func FormatHostToken(i HostToken) string { return i.String() }

// ParseHostToken reads the wire form; anything else is invalid_id.
func ParseHostToken(s string) (HostToken, error) { return parse[hostToken](s) }

// NewHostRefreshToken makes a time-ordered id.
func NewHostRefreshToken() HostRefreshToken { return newID[hostRefreshToken]() }

// FormatHostRefreshToken returns the wire form, "hrt-…".
func FormatHostRefreshToken(i HostRefreshToken) string { return i.String() }

// ParseHostRefreshToken reads the wire form; anything else is invalid_id.
func ParseHostRefreshToken(s string) (HostRefreshToken, error) { return parse[hostRefreshToken](s) }

// NewSandbox makes a time-ordered id.
func NewSandbox() Sandbox { return newID[sandbox]() }

// FormatSandbox returns the wire form, "sb-…".
func FormatSandbox(i Sandbox) string { return i.String() }

// ParseSandbox reads the wire form; anything else is invalid_id.
func ParseSandbox(s string) (Sandbox, error) { return parse[sandbox](s) }

// NewTemplate makes a time-ordered id.
func NewTemplate() Template { return newID[template]() }

// FormatTemplate returns the wire form, "tpl-…".
func FormatTemplate(i Template) string { return i.String() }

// ParseTemplate reads the wire form; anything else is invalid_id.
func ParseTemplate(s string) (Template, error) { return parse[template](s) }

// NewSnapshot makes a time-ordered id.
func NewSnapshot() Snapshot { return newID[snapshot]() }

// FormatSnapshot returns the wire form, "snap-…".
func FormatSnapshot(i Snapshot) string { return i.String() }

// ParseSnapshot reads the wire form; anything else is invalid_id.
func ParseSnapshot(s string) (Snapshot, error) { return parse[snapshot](s) }

// NewAuditEntry makes a time-ordered id.
func NewAuditEntry() AuditEntry { return newID[auditEntry]() }

// FormatAuditEntry returns the wire form, "log-…".
func FormatAuditEntry(i AuditEntry) string { return i.String() }

// ParseAuditEntry reads the wire form; anything else is invalid_id.
func ParseAuditEntry(s string) (AuditEntry, error) { return parse[auditEntry](s) }

// NewOperation makes a time-ordered id.
func NewOperation() Operation { return newID[operation]() }

// FormatOperation returns the wire form, "op-…".
func FormatOperation(i Operation) string { return i.String() }

// ParseOperation reads the wire form; anything else is invalid_id.
func ParseOperation(s string) (Operation, error) { return parse[operation](s) }

// NewSession makes a time-ordered id.
func NewSession() Session { return newID[session]() }

// FormatSession returns the wire form, "ses-…".
func FormatSession(i Session) string { return i.String() }

// ParseSession reads the wire form; anything else is invalid_id.
func ParseSession(s string) (Session, error) { return parse[session](s) }

// NewBuild makes a time-ordered id.
func NewBuild() Build { return newID[build]() }

// FormatBuild returns the wire form, "bld-…".
func FormatBuild(i Build) string { return i.String() }

// ParseBuild reads the wire form; anything else is invalid_id.
func ParseBuild(s string) (Build, error) { return parse[build](s) }

// NewInvitation makes a time-ordered id.
func NewInvitation() Invitation { return newID[invitation]() }

// FormatInvitation returns the wire form, "inv-…".
func FormatInvitation(i Invitation) string { return i.String() }

// ParseInvitation reads the wire form; anything else is invalid_id.
func ParseInvitation(s string) (Invitation, error) { return parse[invitation](s) }

// PlatformTeamID is the all-zero UUID. It owns what is shared with all teams.
var PlatformTeamID = Team{}

// NewArtifact makes a time-ordered id.
func NewArtifact() Artifact { return newID[artifact]() }

// NewBuildContext makes a time-ordered id.
func NewBuildContext() BuildContext { return newID[buildContext]() }

// FormatBuildContext returns the wire form, "ctx-…".
func FormatBuildContext(i BuildContext) string { return i.String() }

// ParseBuildContext reads the wire form; anything else is invalid_id.
func ParseBuildContext(s string) (BuildContext, error) { return parse[buildContext](s) }

// NewPortAccess makes a time-ordered id.
func NewPortAccess() PortAccess { return newID[portAccess]() }

// FormatPortAccess returns the wire form, "port-…".
func FormatPortAccess(i PortAccess) string { return i.String() }

// ParsePortAccess reads the wire form; anything else is invalid_id.
func ParsePortAccess(s string) (PortAccess, error) { return parse[portAccess](s) }
