package identity

// Step is a point between two effects. What was done before it outlives a
// crash, but for what was written and not yet synced.
type Step string

// The steps, in the order in which a life has them. Those of a write come with
// each file that holds credentials or the statement of the host's deletion.
const (
	StepKeyKept  Step = "key_kept" // the host's key is on disk, nobody has heard of it
	StepAnswered Step = "answered" // the control plane acted; nothing of it is here
	StepWritten  Step = "written"  // in a file of another name, maybe not on disk
	StepSynced   Step = "synced"
	StepRenamed  Step = "renamed" // the directory is maybe not on disk
	StepKept     Step = "kept"    // the new credentials are on disk and not in force

	StepStated      Step = "stated"       // the statement is on disk, all else still there
	StepNothingLeft Step = "nothing_left" // it is noted that no sandbox is left
	StepForgotten   Step = "forgotten"    // credentials and key are gone, the note is not
)

// Steps are all of them.
func Steps() []Step {
	return []Step{StepKeyKept, StepAnswered, StepWritten, StepSynced, StepRenamed, StepKept, StepStated, StepNothingLeft, StepForgotten}
}
