// Package web is the HTTP plumbing of the control plane, the same for every
// room: request ids, logs, limits, authentication and permission before a
// handler runs, and one mapping from errors to answers after it. It knows the
// operations of the published document and no room.
package web
