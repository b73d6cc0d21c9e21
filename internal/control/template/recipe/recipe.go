// Package recipe reads recipes of templates: a small part of what a Dockerfile
// can say, read as one is. It looks at nothing but the text: what variables
// expand to is decided by Plan, which knows what the steps begin with.
package recipe

import (
	"fmt"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Bounds of a recipe.
const (
	MaxBytes = 256 << 10
	MaxSteps = 200
	maxWords = 1000 // of one instruction
)

// Kind is an instruction.
type Kind string

// The instructions that are steps.
const (
	Run     Kind = "RUN"
	Copy    Kind = "COPY"
	Env     Kind = "ENV"
	Workdir Kind = "WORKDIR"
	User    Kind = "USER"
)

// Those that are none.
const (
	from  = "FROM"
	start = "START"
	ready = "READY"
)

// Recipe is what a text says, in its order.
type Recipe struct {
	// From is what the steps begin with, as it was written; empty when nothing was.
	From  string
	Steps []Step
	// Start runs in each sandbox of the template; Ready succeeds when it has come
	// up. Nil for none.
	Start, Ready *Step
}

// Step is one instruction. Which fields are set depends on its kind; words are
// as they were written, quotes and variables included.
type Step struct {
	Kind Kind
	Line int    // where it begins, from 1
	Text string // for people: the instruction on one line
	// Shell is a line for the shell, Args a program with its arguments: one of
	// them, of Run.
	Shell string
	Args  []string
	// Of Copy.
	Sources []word
	Dest    word
	Chown   word
	Pairs   []pair // of Env
	Arg     word   // of Workdir and User
}

// word is a part of an instruction. An exact one comes out of JSON: quotes in it
// are data, and only its variables are expanded.
type word struct {
	text  string
	exact bool
}

type pair struct {
	name  string
	value word
}

// fault is an error of a line, and what to write instead.
func fault(line int, format string, args ...any) *errs.Error {
	return errs.Invalid("invalid_recipe", fmt.Sprintf("Line %d: ", line)+fmt.Sprintf(format, args...)).With("field", "recipe").With("line", line)
}

// unknown says what to write in place of what Dockerfiles have and recipes have
// not.
func unknown(line int, name string) error {
	remedy, ok := map[string]string{
		"ADD":         "Use COPY for files, and RUN curl or tar for what ADD does beyond.",
		"ARG":         "Use ENV.",
		"CMD":         "Use START for what is to run in each sandbox.",
		"ENTRYPOINT":  "Use START for what is to run in each sandbox.",
		"EXPOSE":      "Leave it out: every port of a sandbox can be reached.",
		"HEALTHCHECK": "Use READY for what tells that START has come up.",
		"LABEL":       "Leave it out.",
		"MAINTAINER":  "Leave it out.",
		"ONBUILD":     "Write the instruction itself.",
		"SHELL":       `Use RUN ["program", "argument"].`,
		"STOPSIGNAL":  "Leave it out.",
		"VOLUME":      "Leave it out: a sandbox's whole disk is its own.",
	}[name]
	if !ok {
		remedy = "A line is one of FROM, RUN, COPY, ENV, WORKDIR, USER, START, READY, or a comment that begins with #."
	}
	return fault(line, "there is no instruction %q. %s", name, remedy)
}
