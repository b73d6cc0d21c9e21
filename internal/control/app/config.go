// Package app puts the control plane together: one function a subsystem, in the
// order in which they rest on one another.
package app

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/control/oauth"
	"skerry.dev/skerry/internal/control/oauth/oauthprovider"
	"skerry.dev/skerry/internal/control/port"
	"skerry.dev/skerry/internal/control/ratelimit"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/warm"
	"skerry.dev/skerry/internal/control/web"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/telemetry"
)

// Config is what an operator sets, by flag, environment or .env.
type Config struct {
	DatabaseURL    string `name:"database-url" help:"PostgreSQL, as postgres://user@host/database." env:"DATABASE_URL" placeholder:"URL"`
	Secret         string `help:"32 bytes in hex or base64; the same on all servers." env:"SKERRY_SECRET" placeholder:"SECRET"`
	Listen         string `help:"Address of the API." env:"SKERRY_LISTEN" default:"127.0.0.1:7070" placeholder:"ADDR"`
	TLSCert        string `name:"tls-cert" help:"Certificate of the API, PEM; left out: plain HTTP." env:"SKERRY_TLS_CERT" placeholder:"FILE"`
	TLSKey         string `name:"tls-key" help:"Its key." env:"SKERRY_TLS_KEY" placeholder:"FILE"`
	URL            string `name:"public-url" help:"Where people reach the API (default: made from the address)." env:"SKERRY_URL" placeholder:"URL"`
	AgentListen    string `help:"Address at which agents reach the server." env:"SKERRY_AGENT_LISTEN" default:"127.0.0.1:7071" placeholder:"ADDR"`
	AgentURL       string `name:"agent-url" help:"The same as agents see it (default: made from the address)." env:"SKERRY_AGENT_URL" placeholder:"URL"`
	SandboxListen  string `help:"Address at which ports of sandboxes are reached." env:"SKERRY_SANDBOX_LISTEN" default:"127.0.0.1:7075" placeholder:"ADDR"`
	SandboxURL     string `name:"sandbox-url" help:"Where people reach these ports: a domain of its own, below which each has a name (default: localhost or this machine's name, and the address's port)." env:"SKERRY_SANDBOX_URL" placeholder:"URL"`
	SandboxTLSCert string `name:"sandbox-tls-cert" help:"Certificate of that domain and all names below it, PEM; left out: plain HTTP." env:"SKERRY_SANDBOX_TLS_CERT" placeholder:"FILE"`
	SandboxTLSKey  string `name:"sandbox-tls-key" help:"Its key." env:"SKERRY_SANDBOX_TLS_KEY" placeholder:"FILE"`
	Store          string `name:"store" aliases:"store-dir" help:"Where saved states and images are kept: a directory, or s3://bucket/prefix?endpoint=…&region=… (default: store in the data directory)." env:"SKERRY_STORE,SKERRY_STORE_DIR" placeholder:"WHERE"`
	S3AccessKey    string `name:"s3-access-key" help:"Of a bucket." env:"SKERRY_S3_ACCESS_KEY" placeholder:"KEY"`
	S3SecretKey    string `name:"s3-secret-key" help:"Of a bucket." env:"SKERRY_S3_SECRET_KEY" placeholder:"SECRET"`

	Scratch      string `name:"scratch" help:"Directory for what is on its way to the store (default: scratch in the data directory)." env:"SKERRY_SCRATCH" placeholder:"DIR"`
	MaxContextMB int    `name:"max-context-mb" help:"How large an archive may be that a template is built from." env:"SKERRY_MAX_CONTEXT_MB" default:"1024" placeholder:"MB"`

	MetricsListen string `help:"Address of /metrics, /healthz and /readyz for those who watch, without a login; left out: none." env:"SKERRY_METRICS_LISTEN" placeholder:"ADDR"`
	// Version is this release's, for people.
	Version string `kong:"-"`

	Signup         string `help:"Who may sign up: open, closed, or mail domains (default: open on loopback without a proxy, else closed)." env:"SKERRY_SIGNUP" placeholder:"WHO"`
	SMTPURL        string `name:"smtp-url" help:"Mail server, as smtp://user:password@host:587 (STARTTLS) or smtps://…:465; left out: no mail." env:"SKERRY_SMTP_URL" placeholder:"URL"`
	MailFrom       string `name:"mail-from" help:"Sender of mail, as Skerry <skerry@example.com>." env:"SKERRY_MAIL_FROM" placeholder:"ADDR"`
	AuditRetention string `name:"audit-retention" help:"How long audit entries are kept, as 365d, or forever." env:"SKERRY_AUDIT_RETENTION" default:"forever" placeholder:"DAYS"`
	AuthLimit      int    `name:"auth-limit" help:"Calls a minute that one address may make to log in, sign up and the like; 0: no limit." env:"SKERRY_AUTH_LIMIT" default:"30" placeholder:"N"`
	TrustedProxies string `name:"trusted-proxies" help:"Networks whose X-Forwarded-For is believed." env:"SKERRY_TRUSTED_PROXIES" placeholder:"CIDRS"`

	GitHubID     string `name:"github-client-id" help:"Log in with GitHub: the OAuth app's id." env:"SKERRY_GITHUB_CLIENT_ID" placeholder:"ID"`
	GitHubSecret string `name:"github-client-secret" help:"Its secret." env:"SKERRY_GITHUB_CLIENT_SECRET" placeholder:"SECRET"`
	GoogleID     string `name:"google-client-id" help:"Log in with Google: the client's id." env:"SKERRY_GOOGLE_CLIENT_ID" placeholder:"ID"`
	GoogleSecret string `name:"google-client-secret" help:"Its secret." env:"SKERRY_GOOGLE_CLIENT_SECRET" placeholder:"SECRET"`
	OIDCIssuer   string `name:"oidc-issuer" help:"Log in at an OpenID Connect issuer." env:"SKERRY_OIDC_ISSUER" placeholder:"URL"`
	OIDCID       string `name:"oidc-client-id" help:"The client's id there." env:"SKERRY_OIDC_CLIENT_ID" placeholder:"ID"`
	OIDCSecret   string `name:"oidc-client-secret" help:"Its secret." env:"SKERRY_OIDC_CLIENT_SECRET" placeholder:"SECRET"`
	OIDCName     string `name:"oidc-name" help:"What the login page calls it." env:"SKERRY_OIDC_NAME" default:"Single sign-on" placeholder:"NAME"`

	Scheduler     string  `help:"On which of the hosts that have room a sandbox starts: round-robin, least-loaded or bin-pack." env:"SKERRY_SCHEDULER" default:"round-robin" placeholder:"POLICY"`
	CPUOvercommit float64 `name:"cpu-overcommit" help:"How many times a host's CPUs are promised." env:"SKERRY_CPU_OVERCOMMIT" default:"32" placeholder:"N"`
	MemOvercommit float64 `name:"memory-overcommit" help:"How many times a host's memory is promised." env:"SKERRY_MEMORY_OVERCOMMIT" default:"4" placeholder:"N"`

	UploadAfter   string `name:"upload-after" help:"How long after a pause what was saved is brought to the store; off for never. Snapshots are at once." env:"SKERRY_UPLOAD_AFTER" default:"10s" placeholder:"DURATION"`
	DiskWatermark string `name:"disk-watermark" help:"How much of a host's disk is to be free; below it, copies of what is in the store go. 0 for no limit." env:"SKERRY_DISK_WATERMARK" default:"15%" placeholder:"PERCENT"`

	WarmPool string `name:"warm-pool" help:"How many sandboxes each host starts before anybody asks for them: auto, by what was started lately, off, or a number." env:"SKERRY_WARM_POOL" default:"auto" placeholder:"N"`

	HostSilence time.Duration `name:"host-silence" help:"After how long without a heartbeat a host counts as unreachable." env:"SKERRY_HOST_SILENCE" default:"90s" placeholder:"DURATION"`
	HostLook    time.Duration `name:"host-look" help:"How often what a host holds is compared with the database. What does not belong there is left alone for twice as long." env:"SKERRY_HOST_LOOK" default:"30s" placeholder:"DURATION"`
}

// Defaults fills in what is left out. data is the data directory.
func (c Config) Defaults(data string) Config {
	set := func(to *string, v string) {
		if *to == "" {
			*to = v
		}
	}
	set(&c.Listen, "127.0.0.1:7070")
	set(&c.AgentListen, "127.0.0.1:7071")
	set(&c.Store, filepath.Join(data, "store"))
	set(&c.Scratch, filepath.Join(data, "scratch"))
	if c.MaxContextMB == 0 {
		c.MaxContextMB = 1024
	}
	over := scheduler.DefaultOvercommit()
	set(&c.Scheduler, scheduler.RoundRobin)
	if c.CPUOvercommit == 0 {
		c.CPUOvercommit = over.CPU
	}
	if c.MemOvercommit == 0 {
		c.MemOvercommit = over.Memory
	}
	set(&c.UploadAfter, sandbox.DefaultUploadAfter.String())
	set(&c.DiskWatermark, fmt.Sprintf("%g%%", sandbox.DefaultDiskWatermark*100))
	set(&c.WarmPool, "auto")
	if c.HostSilence == 0 {
		c.HostSilence = host.StaleAfter
	}
	if c.HostLook == 0 {
		c.HostLook = host.ReconcileEvery
	}
	scheme := "http://"
	if c.TLSCert != "" {
		scheme = "https://"
	}
	set(&c.URL, scheme+dialable(c.Listen))
	set(&c.AgentURL, "https://"+dialable(c.AgentListen))
	set(&c.SandboxListen, "127.0.0.1:7075")
	set(&c.SandboxURL, sandboxURL(c.SandboxListen, c.SandboxTLSCert != ""))
	if c.Signup == "" {
		c.Signup = "closed"
		// A proxy in front lets in whoever reaches it.
		if u, err := url.Parse(c.URL); err == nil && loopback(c.Listen) && loopback(net.JoinHostPort(u.Hostname(), "0")) && c.TrustedProxies == "" {
			c.Signup = "open"
		}
	}
	return c
}

// sandboxURL is where ports of sandboxes are reached when nobody says: below a
// name, which an address has none of.
func sandboxURL(listen string, secure bool) string {
	scheme := "http://"
	if secure {
		scheme = "https://"
	}
	h, port, err := net.SplitHostPort(dialable(listen))
	if err != nil {
		return scheme + "localhost"
	}
	if _, err := netip.ParseAddr(h); err == nil || loopback(listen) {
		h = "localhost"
	}
	return scheme + net.JoinHostPort(h, port)
}

// dialable turns an address that means "everywhere" into one that can be called.
func dialable(listen string) string {
	h, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(h); h == "" || err == nil && ip.IsUnspecified() {
		h = "127.0.0.1"
		if name, err := os.Hostname(); err == nil {
			h = name
		}
	}
	return net.JoinHostPort(h, port)
}

func loopback(listen string) bool {
	h, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(h)
	return h == "localhost" || err == nil && ip.IsLoopback()
}

// settings are a Config that was read.
type settings struct {
	Config
	secret    keyring.Secret
	at        storeAt
	sandboxes port.Origin
	signup    account.SignupPolicy
	proxies   web.Proxies
	keep      audit.Retention
	scheduler scheduler.Scheduler

	uploadAfter *time.Duration // nil for never
	watermark   float64        // of a disk
	warm        warm.Policy
}

// Validate lists every fault at once. Secrets are never part of it.
func (c Config) Validate() error {
	_, err := c.parse()
	return err
}

func (c Config) parse() (settings, error) {
	s := settings{Config: c}
	var faults []error
	fault := func(name string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	var err error
	if c.DatabaseURL == "" {
		fault("DATABASE_URL", errors.New("missing; give a PostgreSQL URL, or use `skerry up`"))
	}
	if s.secret, err = keyring.ParseSecret(c.Secret); err != nil {
		fault("SKERRY_SECRET", errors.New("must be 32 bytes in hex or base64, for example from `openssl rand -hex 32`"))
	}
	fault("SKERRY_LISTEN", address(c.Listen))
	fault("SKERRY_AGENT_LISTEN", address(c.AgentListen))
	if c.MetricsListen != "" {
		fault("SKERRY_METRICS_LISTEN", address(c.MetricsListen))
	}
	if err = telemetry.Check(); err != nil {
		faults = append(faults, err)
	}
	fault("SKERRY_URL", webURL(c.URL, "http", "https"))
	fault("SKERRY_AGENT_URL", webURL(c.AgentURL, "https"))
	if (c.TLSCert == "") != (c.TLSKey == "") {
		fault("SKERRY_TLS_CERT", errors.New("give both SKERRY_TLS_CERT and SKERRY_TLS_KEY, or neither"))
	}
	fault("SKERRY_SANDBOX_LISTEN", address(c.SandboxListen))
	if (c.SandboxTLSCert == "") != (c.SandboxTLSKey == "") {
		fault("SKERRY_SANDBOX_TLS_CERT", errors.New("give both SKERRY_SANDBOX_TLS_CERT and SKERRY_SANDBOX_TLS_KEY, or neither"))
	}
	if s.sandboxes, err = port.ParseOrigin(c.SandboxURL); err == nil {
		err = apart(c.URL, s.sandboxes)
	}
	fault("SKERRY_SANDBOX_URL", err)
	s.at, err = parseStore(c.Store, c.S3AccessKey, c.S3SecretKey)
	fault("SKERRY_STORE", err)
	if !filepath.IsAbs(c.Scratch) {
		fault("SKERRY_SCRATCH", fmt.Errorf("must be an absolute path, not %q", c.Scratch))
	}
	if c.MaxContextMB < 1 || c.MaxContextMB > 64<<10 {
		fault("SKERRY_MAX_CONTEXT_MB", errors.New("must be between 1 and 65536"))
	}
	s.signup, err = account.ParseSignupPolicy(c.Signup)
	fault("SKERRY_SIGNUP", err)
	if _, err = mail.Open(c.SMTPURL, c.MailFrom, slog.New(slog.DiscardHandler), clock.System{}); err != nil {
		fault("SKERRY_SMTP_URL, SKERRY_MAIL_FROM", err)
	}
	s.keep, err = audit.ParseRetention(c.AuditRetention)
	fault("SKERRY_AUDIT_RETENTION", err)
	for _, pair := range []struct{ name, id, secret string }{
		{"SKERRY_GITHUB_CLIENT_ID", c.GitHubID, c.GitHubSecret},
		{"SKERRY_GOOGLE_CLIENT_ID", c.GoogleID, c.GoogleSecret},
		{"SKERRY_OIDC_CLIENT_ID", c.OIDCID, c.OIDCSecret},
	} {
		if (pair.id == "") != (pair.secret == "") {
			fault(pair.name, errors.New("give both the client's id and its secret, or neither"))
		}
	}
	if (c.OIDCIssuer == "") != (c.OIDCID == "") {
		fault("SKERRY_OIDC_ISSUER", errors.New("give both SKERRY_OIDC_ISSUER and SKERRY_OIDC_CLIENT_ID, or neither"))
	} else if c.OIDCIssuer != "" {
		fault("SKERRY_OIDC_ISSUER", issuerURL(c.OIDCIssuer))
	}
	if c.AuthLimit < 0 {
		fault("SKERRY_AUTH_LIMIT", errors.New("must be 0 or more"))
	}
	s.proxies, err = web.ParseProxies(c.TrustedProxies)
	fault("SKERRY_TRUSTED_PROXIES", err)
	s.scheduler, err = scheduler.New(c.Scheduler, scheduler.Overcommit{CPU: c.CPUOvercommit, Memory: c.MemOvercommit})
	fault("SKERRY_SCHEDULER", err)
	if !(c.CPUOvercommit >= 1 && c.CPUOvercommit <= 1000) {
		fault("SKERRY_CPU_OVERCOMMIT", errors.New("must be between 1 and 1000"))
	}
	if !(c.MemOvercommit >= 1 && c.MemOvercommit <= 1000) {
		fault("SKERRY_MEMORY_OVERCOMMIT", errors.New("must be between 1 and 1000"))
	}
	s.uploadAfter, err = parseUploadAfter(c.UploadAfter)
	fault("SKERRY_UPLOAD_AFTER", err)
	s.watermark, err = parsePercent(c.DiskWatermark)
	fault("SKERRY_DISK_WATERMARK", err)
	s.warm, err = warm.ParsePolicy(c.WarmPool)
	fault("SKERRY_WARM_POOL", err)
	// One late heartbeat is no silence.
	if c.HostSilence < 3*time.Second || c.HostSilence > time.Hour {
		fault("SKERRY_HOST_SILENCE", errors.New("must be between 3s and 1h, and several heartbeats of the agents"))
	}
	// What ends by itself ends only where a look was not long ago.
	if c.HostLook < time.Second || c.HostLook > host.ReconcileEvery {
		fault("SKERRY_HOST_LOOK", fmt.Errorf("must be between 1s and %s", host.ReconcileEvery))
	}
	return s, errors.Join(faults...)
}

// parseUploadAfter reads how old saved states are before they are stored; nil is
// never.
func parseUploadAfter(s string) (*time.Duration, error) {
	if s == "off" {
		return nil, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > 24*time.Hour {
		return nil, fmt.Errorf("must be off or between 0s and 24h, not %q", s)
	}
	return &d, nil
}

// parsePercent reads a share of at most nine tenths.
func parsePercent(s string) (float64, error) {
	n, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(n >= 0 && n <= 90) {
		return 0, fmt.Errorf("must be between 0%% and 90%%, not %q", s)
	}
	return n / 100, nil
}

// providers are the ways to log in elsewhere that are configured.
func (s settings) providers() []oauth.Provider {
	var out []oauth.Provider
	if s.OIDCIssuer != "" {
		out = append(out, oauthprovider.NewOIDC("oidc", cmp.Or(s.OIDCName, "Single sign-on"), s.OIDCIssuer, s.OIDCID, s.OIDCSecret))
	}
	if s.GoogleID != "" {
		out = append(out, oauthprovider.NewOIDC("google", "Google", oauthprovider.GoogleIssuer, s.GoogleID, s.GoogleSecret))
	}
	if s.GitHubID != "" {
		out = append(out, oauthprovider.NewGitHub(s.GitHubID, s.GitHubSecret, oauthprovider.GitHubSite, oauthprovider.GitHubAPI))
	}
	return out
}

func (s settings) limits() web.Limits {
	limits := web.DefaultLimits()
	limits.Auth.Burst = s.AuthLimit
	if s.AuthLimit == 0 {
		limits.Auth, limits.Unknown = ratelimit.Rate{}, ratelimit.Rate{}
	}
	return limits
}

// issuerURL checks an issuer: what it says is believed, so the way there must be
// authenticated, but for one on this machine.
func issuerURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("must be a URL such as https://accounts.example.com, not %q", s)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Host) && u.Hostname() != "localhost") {
		return errors.New("must begin with https://")
	}
	return nil
}

func address(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil || port == "" {
		return fmt.Errorf("must be host:port, not %q", s)
	}
	return nil
}

func webURL(s string, schemes ...string) error {
	u, err := url.Parse(s)
	if err == nil && u.Host != "" && u.RawQuery == "" && u.Fragment == "" && strings.Trim(u.Path, "/") == "" {
		for _, scheme := range schemes {
			if u.Scheme == scheme {
				return nil
			}
		}
	}
	return fmt.Errorf("must be %s://host[:port], not %q", strings.Join(schemes, " or "), s)
}
