package web

import (
	"maps"
	"slices"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
)

// Permission says which kinds of callers may call an operation at all. What
// they may do to which object is decided by the room, which answers 404 for
// what belongs to another team.
type Permission struct {
	Anonymous bool              // anybody; nothing else is looked at
	User      bool              // a logged-in user
	Roles     []principal.Role  // in the active team; empty: any, or none
	Admin     bool              // of the platform
	Scopes    []principal.Scope // API keys with one of these; empty: no key
	Host      bool              // a host, by its own token
	// Claimed: of a host's token only the signature is looked at here. The room
	// asks whether its credentials live, in the statement that it makes anyway.
	Claimed bool
}

var (
	anybody   = Permission{Anonymous: true}
	user      = Permission{User: true}
	admin     = Permission{User: true, Admin: true}
	host      = Permission{Host: true}
	beating   = Permission{Host: true, Claimed: true}
	sandboxes = Permission{User: true, Scopes: []principal.Scope{principal.ScopeSandboxes}}
	reading   = Permission{User: true, Scopes: []principal.Scope{principal.ScopeSandboxes, principal.ScopeRead}}
	limits    = Permission{User: true, Scopes: []principal.Scope{principal.ScopeSandboxes, principal.ScopeSnapshots, principal.ScopeTemplates, principal.ScopeRead}}
	snapshots = Permission{User: true, Scopes: []principal.Scope{principal.ScopeSnapshots}}
	saved     = Permission{User: true, Scopes: []principal.Scope{principal.ScopeSnapshots, principal.ScopeSandboxes, principal.ScopeRead}}
	templates = Permission{User: true, Scopes: []principal.Scope{principal.ScopeTemplates, principal.ScopeSandboxes, principal.ScopeRead}}
	building  = Permission{User: true, Scopes: []principal.Scope{principal.ScopeTemplates}}
)

// permissions has a line for each operation of the document; a test fails when
// one is missing, and an operation without a line is refused.
var permissions = map[string]Permission{
	"signup": anybody,
	"login":  anybody,
	"logout": user,

	"refreshSession":       anybody, // carries the refresh cookie
	"listAuthProviders":    anybody,
	"startOAuth":           anybody,
	"finishOAuth":          anybody, // carries the state it was given
	"requestPasswordReset": anybody,
	"confirmPasswordReset": anybody, // carries a one-time token
	"confirmEmail":         anybody, // carries a one-time token
	"startDeviceLogin":     anybody,
	"pollDeviceLogin":      anybody, // carries the device code
	"getDeviceLogin":       user,
	"decideDeviceLogin":    user,
	"switchTeam":           user,

	"getMe":             user,
	"updateMe":          user,
	"deleteMe":          user,
	"changePassword":    user,
	"requestEmailProof": user,
	"listSessions":      user,
	"endSession":        user,
	"listIdentities":    user,
	"linkIdentity":      user,
	"unlinkIdentity":    user,

	// What a role may do is decided by the room, for the team that is named.
	"listTeams":         user,
	"createTeam":        user,
	"getTeam":           user,
	"updateTeam":        user,
	"deleteTeam":        user,
	"transferTeam":      user,
	"leaveTeam":         user,
	"listMembers":       user,
	"addMember":         user,
	"updateMember":      user,
	"removeMember":      user,
	"listInvitations":   user,
	"createInvitation":  user,
	"revokeInvitation":  user,
	"previewInvitation": anybody, // carries the invitation's token
	"acceptInvitation":  user,
	"searchUsers":       user,
	"getLimits":         limits,

	"adminListUsers":       admin,
	"adminSetUserAdmin":    admin,
	"adminSetUserActive":   admin,
	"adminCreateResetLink": admin,
	"adminListTeams":       admin,
	"setBYOC":              admin,
	"adminGetTeamLimits":   admin,
	"adminSetTeamLimits":   admin,
	"adminListAuditLogs":   admin,
	"adminExportAuditLogs": admin,
	"adminStreamEvents":    admin,

	"listAuditLogs":   user,
	"exportAuditLogs": user, // owners and admins
	"listAuditKeys":   anybody,

	"streamEvents":        limits,
	"createEventTicket":   limits,
	"createSandboxTicket": reading, // and what the operation itself asks for

	"listAPIKeys":  user,
	"createAPIKey": user,
	"deleteAPIKey": user,

	"listHosts":           user,
	"createHost":          user, // regular hosts: the room wants a platform admin
	"getHost":             user,
	"createHostToken":     user,
	"updateHost":          user,
	"previewHostDeletion": user,
	"deleteHost":          user,
	"drainHost":           user,
	"undrainHost":         user,
	"listHostStrays":      user,
	"destroyHostStray":    user,

	"registerHost":      anybody, // carries a one-time token
	"refreshHost":       anybody, // carries a refresh token and a signature
	"heartbeat":         beating,
	"reportHostEvents":  host,
	"reportHostSamples": host,

	"listTemplates":     templates,
	"getTemplate":       templates,
	"buildBaseTemplate": admin,

	"createTemplate":     building,
	"deleteTemplate":     building,
	"uploadBuildContext": building,
	"listBuilds":         templates,
	"getBuild":           templates,
	"getBuildLogs":       templates,
	"cancelBuild":        building,

	"listSandboxes":     reading,
	"createSandbox":     sandboxes,
	"getSandbox":        reading,
	"deleteSandbox":     sandboxes,
	"listSandboxEvents": reading,
	"execSandbox":       sandboxes,
	"pauseSandbox":      sandboxes,
	"resumeSandbox":     sandboxes,
	"recoverSandbox":    sandboxes,
	"forkSandbox":       sandboxes,
	"setSandboxTimeout": sandboxes,
	"pingSandbox":       sandboxes,
	"getSandboxMetrics": reading,
	"getSandboxLogs":    reading,
	"listPorts":         reading,
	"openPort":          sandboxes,
	"closePort":         sandboxes,
	"listSnapshots":     saved,
	"createSnapshot":    snapshots,
	"getSnapshot":       saved,
	"deleteSnapshot":    snapshots,
	"streamExec":        sandboxes,
	"openPTY":           sandboxes,
	"downloadFile":      reading,
	"uploadFile":        sandboxes,
	"removeFile":        sandboxes,
	"listFiles":         reading,
	"statFile":          reading,
	"makeDirectory":     sandboxes,
	"moveFile":          sandboxes,

	"getHealth":    anybody,
	"getReadiness": anybody,
	"getOpenAPI":   anybody,
	"getDocs":      anybody,
	"getDocsAsset": anybody,

	"getDeviceLoginPage": anybody,
}

// PermissionOf returns the line of an operation.
func PermissionOf(operationID string) (Permission, bool) {
	p, ok := permissions[operationID]
	return p, ok
}

// Permit decides whether a caller may call an operation at all.
func Permit(operationID string, caller principal.Principal) error {
	p, ok := permissions[operationID]
	if !ok {
		return errUnauthenticated
	}
	return p.allow(caller)
}

// PermittedOperations lists the operations that have a line, sorted.
func PermittedOperations() []string { return slices.Sorted(maps.Keys(permissions)) }

var (
	errNoKeysHere = errs.Forbidden("api_key_not_allowed",
		"API keys act on sandboxes, snapshots and templates only. Log in and use the session's token here.")
	errAdminOnly = errs.Forbidden("admin_required", "Only a platform admin may do this.")
	errRole      = errs.Forbidden("role_required", "Your role in the team does not allow this. Ask its owner or an admin.")
	errWrongKind = errs.Unauthenticated("invalid_token", "This token is of a kind that may not call this operation.")
)

// allow decides whether a caller may call at all.
func (p Permission) allow(caller principal.Principal) error {
	switch {
	case p.Anonymous:
		return nil
	case caller.Kind == principal.KindHost:
		if !p.Host {
			return errWrongKind
		}
	case caller.Kind == principal.KindAPIKey:
		if len(p.Scopes) == 0 {
			return errNoKeysHere
		}
		if !caller.Can(p.Scopes...) {
			return errs.Forbidden("scope_required", "This API key lacks the scope for this. Make one that has it.").With("scopes", p.Scopes)
		}
	case caller.Kind == principal.KindUser:
		switch {
		case !p.User:
			return errWrongKind
		case p.Admin:
			return requireAdmin(caller)
		case len(p.Roles) > 0 && !slices.Contains(p.Roles, caller.Role):
			return errRole
		}
	default:
		return errUnauthenticated
	}
	return nil
}

// requireAdmin relies on the flag that was read from the database for this
// very request.
func requireAdmin(caller principal.Principal) error {
	if !caller.IsAdmin {
		return errAdminOnly
	}
	return nil
}
