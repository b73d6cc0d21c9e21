// Package manager owns the sandboxes of one host: it makes them exist, finds
// them again after the agent was restarted, notices how they end and removes
// every trace of them. It never decides what should exist; that is the control
// plane's, whose commands name an incarnation and may be repeated.
//
// Each sandbox has at most one operation at a time. An operation belongs to
// the manager, not to the call that asked for it: a caller that leaves changes
// nothing, one that comes back with the same arguments waits for the same
// operation. A destroy supersedes a create.
//
// A create is a table of named steps, and its cleanup the same table backwards;
// a destroy and the recovery after a crash walk the whole of it. Two points of
// a create are on disk before anything goes on: that it began, before its
// first effect, and that it runs. Nothing between needs a write of its own,
// because an unfinished create is always undone, and every undo succeeds on
// nothing.
//
// Some instances are made before there is a sandbox for them, by the same table:
// they are isolated as any, ran one command, belong to nobody, and are held so
// that they use no CPU. A create that one fits takes it over in one transaction
// of the journal, before the guest is told who it is; whatever fails after that
// ends the instance, and the same create starts another.
package manager
