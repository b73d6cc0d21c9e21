// Package logkey names the keys of structured logs, so that one request can be
// followed through every program under the same words.
package logkey

// The keys. Values are plain strings or numbers, never secrets.
const (
	Actor       = "actor"
	APIKeyID    = "api_key_id"
	DurationMS  = "duration_ms"
	Error       = "error"
	HostID      = "host_id"
	IP          = "ip"
	Incarnation = "incarnation"
	Method      = "method"
	Op          = "op"
	Path        = "path"
	RequestID   = "request_id"
	SandboxID   = "sandbox_id"
	Status      = "status"
	Step        = "step"
	TeamID      = "team_id"
	UserID      = "user_id"
)
